use std::time::Duration;

use e2llm_api::MAX_MESSAGE_BYTES;
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::decoder_client::DecoderClient;
use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::index_client::IndexClient;
use tonic::transport::Channel;

use crate::RuntimeError;

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
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
        }
    }
}

impl ClientOptions {
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
    /// The endpoint behind `url`: `http://host:port`, or `host:port` for short. Connects lazily.
    ///
    /// # Errors
    /// [`RuntimeError::BadUrl`] when `url` is not the URL of a plain-text server.
    pub fn connect(url: &str, options: &ClientOptions) -> Result<Self, RuntimeError> {
        let bad = |reason: &str| RuntimeError::BadUrl { url: url.to_owned(), reason: reason.to_owned() };
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: http::Uri = full.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(bad("TLS is not spoken here; put a proxy in front")),
            _ => return Err(bad("its scheme is not http")),
        }
        if uri.port_u16().is_none() {
            return Err(bad("it has no port"));
        }
        if !matches!(uri.path(), "" | "/") {
            return Err(bad("it has a path"));
        }
        let channel = options.apply(tonic::transport::Endpoint::from(uri)).connect_lazy();
        Ok(Self { address: full, channel })
    }

    pub(crate) fn from_channel(address: &str, channel: Channel) -> Self {
        Self { address: address.to_owned(), channel }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_needs_host_and_port_and_no_more() {
        let options = ClientOptions::default();
        assert_eq!(Endpoint::connect("localhost:7700", &options).unwrap().address(), "http://localhost:7700");
        assert!(Endpoint::connect("http://[::1]:7700/", &options).is_ok());
        for (url, reason) in [
            ("https://localhost:1", "TLS"),
            ("localhost", "no port"),
            ("ftp://localhost:1", "not http"),
            ("http://localhost:1/api", "has a path"),
            ("http://a b:1", "invalid"),
        ] {
            let error = Endpoint::connect(url, &options).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains(reason), "{error}");
        }
    }
}
