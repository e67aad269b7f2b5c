use std::sync::Arc;
use std::time::Duration;

use e2llm_api::MAX_MESSAGE_BYTES;
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::decoder_client::DecoderClient;
use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::index_client::IndexClient;
use http::{HeaderValue, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::channel::Token;
use crate::reload::Reloading;
use crate::{Channel, ClientTls, RuntimeError};

/// HTTP/2 window of one stream, in bytes.
pub(crate) const STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2 window of one connection, in bytes.
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;

/// How clients connect.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// How long opening a connection may take. Default: 5 s.
    pub connect_timeout: Duration,
    /// How often an idle or busy connection is probed. Default: 10 s.
    pub keepalive_interval: Duration,
    /// How long a probe may stay unanswered before the connection is dropped. Default: 10 s.
    pub keepalive_timeout: Duration,
    /// How servers with `https` are verified, and what they are shown. Default: by the certificates that the operating system trusts.
    tls: Option<ClientTls>,
    /// Sent with every call. Default: none.
    token: Option<Arc<Token>>,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
            tls: None,
            token: None,
        }
    }
}

impl ClientOptions {
    /// Speaks TLS so with servers whose URL says `https`.
    pub fn with_tls(self, tls: ClientTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// Sends the token that stands in a file, which is read again when it changes.
    ///
    /// # Errors
    /// [`RuntimeError::BadFile`]
    pub fn with_token_file(self, path: &std::path::Path) -> Result<Self, RuntimeError> {
        let file = path.to_owned();
        let token = Reloading::new(vec![file.clone()], move || bearer(&file));
        let token = token.map_err(|reason| RuntimeError::BadFile { path: path.to_owned(), reason })?;
        Ok(Self { token: Some(Arc::new(token)), ..self })
    }

    fn apply(&self, endpoint: tonic::transport::Endpoint) -> tonic::transport::Endpoint {
        self.windows(endpoint)
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(self.keepalive_interval))
    }

    pub(crate) fn windows(&self, endpoint: tonic::transport::Endpoint) -> tonic::transport::Endpoint {
        endpoint.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW)
    }
}

/// The client side of one server, over TCP or in-process. Cheap to clone; clones share the connection.
///
/// It connects at the first call and again after a broken connection. It sets no deadline of its own: use
/// [`crate::with_deadline`] or [`crate::retry`] per call.
#[derive(Debug, Clone)]
pub struct Endpoint {
    address: String,
    channel: Channel,
}

macro_rules! client {
    ($name:ident, $client:ident) => {
        /// A client with this repository's message limits.
        pub fn $name(&self) -> $client<Channel> {
            $client::new(self.channel.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
        }
    };
}

impl Endpoint {
    /// The endpoint behind `url`: `http://host:port` (`host:port` for short), `https://host:port`, or `dns:///host:port` and
    /// `dns+https:///host:port` for all addresses of a name, which take calls in turn. Connects lazily; needs a tokio runtime.
    ///
    /// # Errors
    /// [`RuntimeError::BadUrl`] when `url` is none of these; [`RuntimeError::BadTls`] when the operating system trusts nobody.
    pub fn connect(url: &str, options: &ClientOptions) -> Result<Self, RuntimeError> {
        let bad = |reason: &str| RuntimeError::BadUrl { url: url.to_owned(), reason: reason.to_owned() };
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let (each, plain) = match full.split_once(":///") {
            Some(("dns", rest)) => (true, format!("http://{rest}")),
            Some(("dns+https", rest)) => (true, format!("https://{rest}")),
            _ => (false, full.clone()),
        };
        let uri: Uri = plain.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(bad("its scheme is not http, https, dns or dns+https"));
        }
        let (Some(host), Some(port)) = (uri.host(), uri.port_u16()) else { return Err(bad("it has no port")) };
        if !matches!(uri.path(), "" | "/") {
            return Err(bad("it has a path"));
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = match (&options.tls, uri.scheme_str()) {
            (_, Some("http")) => None,
            (Some(tls), _) => Some(tls.clone()),
            (None, _) => Some(ClientTls::new(crate::TlsFiles::default())?),
        };
        let dial = Dial { options: options.clone(), tls, host: host.clone(), origin: uri };
        let channel = match each {
            true => {
                Channel::each(host, port, move |to| dial.open(to.ip().to_string(), to.port()), options.token.clone())
            }
            false => Channel::one(dial.open(host, port), options.token.clone()),
        };
        Ok(Self { address: full, channel })
    }

    /// Of a server whose address nobody gave: every call fails with `name`.
    pub fn unknown(name: &str) -> Self {
        let reason = format!("there is no address of {name}");
        let refuse = tower::service_fn(move |_: Uri| {
            let reason = reason.clone();
            async move { Err::<TokioIo<TcpStream>, _>(std::io::Error::other(reason)) }
        });
        let channel = tonic::transport::Endpoint::from_static("http://unknown").connect_with_connector_lazy(refuse);
        Self::from_channel(name, channel)
    }

    pub(crate) fn from_channel(address: &str, channel: tonic::transport::Channel) -> Self {
        Self { address: address.to_owned(), channel: Channel::one(channel, None) }
    }

    /// What to call the server in messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The channel, for clients of other packages such as `grpc.health.v1`.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    client!(encoder, EncoderClient);
    client!(index, IndexClient);
    client!(decoder, DecoderClient);
    client!(coordinator, CoordinatorClient);
}

/// How connections to one server, or to each of several, are opened.
struct Dial {
    options: ClientOptions,
    tls: Option<ClientTls>,
    /// What certificates must name.
    host: String,
    origin: Uri,
}

impl Dial {
    fn open(&self, to: String, port: u16) -> tonic::transport::Channel {
        let endpoint = self.options.apply(tonic::transport::Endpoint::from(self.origin.clone()));
        let (tls, host) = (self.tls.clone(), self.host.clone());
        endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let (tls, to, host) = (tls.clone(), (to.clone(), port), host.clone());
            async move {
                let stream: Box<dyn Stream> = match &tls {
                    Some(tls) => Box::new(tls.connect(to, &host).await?),
                    None => {
                        let stream = TcpStream::connect(to).await?;
                        stream.set_nodelay(true)?;
                        Box::new(stream)
                    }
                };
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        }))
    }
}

/// What bytes go through.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

fn bearer(path: &std::path::Path) -> Result<HeaderValue, String> {
    let token = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    if token.trim().is_empty() {
        return Err("it is empty; it must hold a token".to_owned());
    }
    let mut header = HeaderValue::from_str(&format!("Bearer {}", token.trim()))
        .map_err(|_| "it holds more than a token: control characters or several lines".to_owned())?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_needs_host_and_port_and_no_more() {
        let options = ClientOptions::default();
        assert_eq!(Endpoint::connect("localhost:7700", &options).unwrap().address(), "http://localhost:7700");
        for url in ["http://[::1]:7700/", "dns:///localhost:1", "https://localhost:1", "dns+https:///localhost:1"] {
            assert!(Endpoint::connect(url, &options).is_ok(), "{url}");
        }
        for (url, reason) in [
            ("localhost", "no port"),
            ("dns:///localhost", "no port"),
            ("ftp://localhost:1", "not http"),
            ("http://localhost:1/api", "has a path"),
            ("http://a b:1", "invalid"),
        ] {
            let error = Endpoint::connect(url, &options).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains(reason), "{error}");
        }
    }
}
