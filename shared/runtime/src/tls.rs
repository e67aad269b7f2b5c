//! TLS of servers and clients, from PEM files that are read again when they change.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

use crate::RuntimeError;
use crate::reload::Reloading;

/// How long a client may take for its handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time; more wait.
const HANDSHAKES: usize = 256;
/// Connections that may wait for the server to take them.
const BACKLOG: usize = 64;
const HTTP2: &[u8] = b"h2";

/// PEM files of one side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate chain and private key: a server's, or those that a client shows when it is asked.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// Certificates by which the other side is verified. For a server: only clients with a certificate of these are let in. For a client:
    /// instead of those that the operating system trusts.
    pub trusted: Option<PathBuf>,
}

/// How a server speaks TLS.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<Reloading<ServerConfig>>,
    verifies_clients: bool,
}

/// How a client speaks TLS.
#[derive(Debug, Clone)]
pub struct ClientTls(Arc<Reloading<ClientConfig>>);

impl TlsFiles {
    fn paths(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate.clone(), key.clone()]);
        identity.chain(self.trusted.clone()).collect()
    }

    fn bad(&self, reason: String) -> RuntimeError {
        // `reason` names the file.
        RuntimeError::BadTls { reason }
    }

    fn identity(&self) -> Result<Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, String> {
        let Some((certificate, key)) = &self.identity else { return Ok(None) };
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
        Ok(Some((chain, key)))
    }

    fn roots(&self) -> Result<Option<RootCertStore>, String> {
        let Some(path) = &self.trusted else { return Ok(None) };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(Some(roots))
    }
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, String> {
    let failed = |error: rustls::pki_types::pem::Error| format!("{}: {error}", path.display());
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    if found.is_empty() {
        return Err(format!("{} holds no certificate; give PEM", path.display()));
    }
    Ok(found)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl ServerTls {
    /// From files, read now and whenever they change.
    ///
    /// # Errors
    /// [`RuntimeError::BadTls`]
    pub fn new(files: TlsFiles) -> Result<Self, RuntimeError> {
        let verifies_clients = files.trusted.is_some();
        let (paths, again) = (files.paths(), files.clone());
        let config = Reloading::new(paths, move || server_config(&again)).map_err(|reason| files.bad(reason))?;
        Ok(Self { config: Arc::new(config), verifies_clients })
    }

    /// Whether only clients with a certificate are let in.
    pub fn verifies_clients(&self) -> bool {
        self.verifies_clients
    }

    /// Accepts connections and shakes hands with them, several at a time: a slow client holds up no other.
    pub(crate) fn incoming(self, listener: TcpListener) -> ReceiverStream<io::Result<TlsConnection>> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(HANDSHAKES));
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = sender.closed() => return,
                };
                let (stream, peer) = match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of file descriptors, mostly: others are still served.
                        tracing::warn!(%error, "a connection could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, sender) = (TlsAcceptor::from(self.config.current()), sender.clone());
                tokio::spawn(async move {
                    let _place = place;
                    let handshake = async {
                        stream.set_nodelay(true)?;
                        acceptor.accept(stream).await
                    };
                    match tokio::time::timeout(HANDSHAKE, handshake).await {
                        // The server may have ended.
                        Ok(Ok(stream)) => drop(sender.send(Ok(TlsConnection(stream))).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
                    }
                });
            }
        });
        ReceiverStream::new(receiver)
    }
}

fn server_config(files: &TlsFiles) -> Result<ServerConfig, String> {
    let (chain, key) = files.identity()?.ok_or("a server needs a certificate and a key")?;
    let versions = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| error.to_string())?;
    let builder = match files.roots()? {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.build().map_err(|error| error.to_string())?)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| format!("certificate and key: {error}"))?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

impl ClientTls {
    /// From files, read now and whenever they change.
    ///
    /// # Errors
    /// [`RuntimeError::BadTls`]
    pub fn new(files: TlsFiles) -> Result<Self, RuntimeError> {
        let (paths, again) = (files.paths(), files.clone());
        let config = Reloading::new(paths, move || client_config(&again)).map_err(|reason| files.bad(reason))?;
        Ok(Self(Arc::new(config)))
    }

    /// Opens a connection; `host` is what the server's certificate must name.
    pub(crate) async fn connect(&self, address: (String, u16), host: &str) -> io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(self.0.current()).connect(name, stream).await
    }
}

fn client_config(files: &TlsFiles) -> Result<ClientConfig, String> {
    let roots = match files.roots()? {
        Some(roots) => roots,
        None => system_roots()?,
    };
    let versions = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| error.to_string())?.with_root_certificates(roots);
    let config = match files.identity()? {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key),
        None => Ok(builder.with_no_client_auth()),
    };
    let mut config = config.map_err(|error| format!("certificate and key: {error}"))?;
    config.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(config)
}

fn system_roots() -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    // Those that cannot be parsed are of no use to anyone.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err("the operating system trusts no certificates; give --tls-ca".to_owned());
    }
    Ok(roots)
}

/// A connection that a server has shaken hands on.
#[derive(Debug)]
pub(crate) struct TlsConnection(server::TlsStream<TcpStream>);

impl Connected for TlsConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.0.get_ref().0.connect_info()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
