use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use e2llm_api::v1::coordinator_server::{Coordinator, CoordinatorServer};
use e2llm_api::v1::decoder_server::{Decoder, DecoderServer};
use e2llm_api::v1::encoder_server::{Encoder, EncoderServer};
use e2llm_api::v1::index_server::{Index, IndexServer};
use e2llm_api::{DESCRIPTORS, ErrorCode, MAX_MESSAGE_BYTES, status};
use http_body_util::BodyExt;
use tokio::net::{TcpListener, TcpStream};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tower::layer::util::{Identity, Stack};
use tower::util::MapRequestLayer;
use tracing::{info, warn};

use crate::auth::{Auth, AuthLayer};
use crate::endpoint::{CONNECTION_WINDOW, STREAM_WINDOW};
use crate::observe::ObserveLayer;
use crate::{Health, PipeListener, RuntimeError, ServerTls, ServiceName, Shutdown};

/// How a server treats its connections.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// How often a connection is probed. Default: 20 s.
    pub keepalive_interval: Duration,
    /// How long a probe may stay unanswered. Default: 20 s.
    pub keepalive_timeout: Duration,
    /// Calls one TCP connection may have waiting for an answer; more are `RESOURCE_EXHAUSTED`. Default: 256.
    pub calls_per_connection: usize,
    /// How long calls may go on after shutdown was requested. Default: 25 s, below Kubernetes' 30 s.
    pub drain: Duration,
    /// Who may call what. Default: everybody everything. Calls of the process on itself are never asked.
    pub auth: Auth,
    /// Default: none, plain HTTP/2.
    pub tls: Option<ServerTls>,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            calls_per_connection: 256,
            drain: Duration::from_secs(25),
            auth: Auth::Open,
            tls: None,
        }
    }
}

/// A bound port. Bind every port before the slow parts of boot.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`, such as `127.0.0.1:7700`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`RuntimeError::AddressInUse`] or [`RuntimeError::Bind`].
    pub async fn bind(address: &str) -> Result<Self, RuntimeError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => RuntimeError::AddressInUse { address: address.to_owned() },
            _ => RuntimeError::Bind { address: address.to_owned(), source },
        };
        let inner = TcpListener::bind(address).await.map_err(failed)?;
        let address = inner.local_addr().map_err(failed)?;
        Ok(Self { inner, address })
    }

    pub(crate) async fn accept(&self) -> io::Result<TcpStream> {
        Ok(self.inner.accept().await?.0)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Collects the services of a process and serves them, with health and reflection beside them.
#[derive(Debug)]
pub struct ServerBuilder {
    options: ServerOptions,
    routes: Routes,
    health: Health,
}

macro_rules! service {
    ($name:ident, $service:ident, $server:ident) => {
        /// Adds the service, with this repository's message limits.
        pub fn $name(mut self, service: impl $service) -> Self {
            let server = $server::new(service)
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES);
            self.health.register(ServiceName::$service);
            self.routes = self.routes.add_service(server);
            self
        }
    };
}

impl ServerBuilder {
    /// A server without services.
    pub fn new(options: ServerOptions) -> Self {
        Self { options, routes: Routes::default(), health: Health::new() }
    }

    service!(encoder, Encoder, EncoderServer);
    service!(index, Index, IndexServer);
    service!(decoder, Decoder, DecoderServer);
    service!(coordinator, Coordinator, CoordinatorServer);

    /// The handle that sets what the health service answers, before and while serving.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Serves TCP until shutdown is requested and calls in flight have ended or the drain time is over.
    ///
    /// # Errors
    /// [`RuntimeError::Serve`] when the listener fails.
    pub async fn serve(self, listener: Listener, shutdown: Shutdown) -> Result<(), RuntimeError> {
        let address = listener.address.to_string();
        let ServerOptions { drain, auth, tls, .. } = self.options.clone();
        let health = self.health.clone();
        let server = Server::builder()
            .http2_keepalive_interval(Some(self.options.keepalive_interval))
            .http2_keepalive_timeout(Some(self.options.keepalive_timeout))
            .concurrency_limit_per_connection(self.options.calls_per_connection)
            .load_shed(true);
        let (tokens, mtls) = (matches!(auth, Auth::Tokens(_)), tls.as_ref().is_some_and(ServerTls::verifies_clients));
        let router = self.router(server, auth).await?;
        info!(tls = tls.is_some(), mtls, tokens, "callers are asked for");
        info!(%address, "serving");
        let ended = drained(health, shutdown.clone());
        match tls {
            Some(tls) => {
                let serving = router.serve_with_incoming_shutdown(tls.incoming(listener.inner), ended);
                until_drained(serving, shutdown, drain, address).await
            }
            None => {
                let incoming = TcpIncoming::from(listener.inner).with_nodelay(Some(true));
                let incoming = incoming.with_keepalive(Some(Duration::from_secs(60)));
                let serving = router.serve_with_incoming_shutdown(incoming, ended);
                until_drained(serving, shutdown, drain, address).await
            }
        }
    }

    /// Serves the connections of a [`crate::Dialer`], in the same way as [`ServerBuilder::serve`].
    ///
    /// There is no limit of calls per connection: services of one process call each other, and a limit could
    /// make them wait for themselves.
    ///
    /// # Errors
    /// [`RuntimeError::Serve`] when the server fails.
    pub async fn serve_in_process(self, listener: PipeListener, shutdown: Shutdown) -> Result<(), RuntimeError> {
        let drain = self.options.drain;
        let health = self.health.clone();
        let router = self.router(Server::builder(), Auth::Open).await?;
        let serving = router.serve_with_incoming_shutdown(listener.incoming(), drained(health, shutdown.clone()));
        until_drained(serving, shutdown, drain, "this process".to_owned()).await
    }

    async fn router(self, server: Server, auth: Auth) -> Result<Router<Layers>, RuntimeError> {
        let Self { routes, health, .. } = self;
        health.publish().await;
        let routes = add_reflection(routes, &health.services())?;
        let health_service = HealthServer::new(HealthService::from_health_reporter(health.reporter()));
        Ok(server
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(1024)
            .http2_max_header_list_size(16 << 10)
            .layer(ObserveLayer)
            .layer(AuthLayer(auth))
            .layer(MapRequestLayer::new(tell_broken_from_ended as MapBody))
            .add_routes(routes.add_service(health_service)))
    }
}

type MapBody = fn(http::Request<Body>) -> http::Request<Body>;
type Layers = Stack<MapRequestLayer<MapBody>, Stack<AuthLayer, Stack<ObserveLayer, Identity>>>;

/// Makes a request stream that its client broke off end in an error.
///
/// tonic ends it as if it were complete: half a document, half a job would pass for the whole.
fn tell_broken_from_ended(request: http::Request<Body>) -> http::Request<Body> {
    let broken_off = |failure: Status| match failure.code() {
        Code::Cancelled => status(ErrorCode::Unavailable, "the client went away before its stream ended"),
        _ => failure,
    };
    request.map(|body| Body::new(body.map_err(broken_off)))
}

fn add_reflection(routes: Routes, services: &[ServiceName]) -> Result<Routes, RuntimeError> {
    let configure = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .with_service_name("grpc.health.v1.Health");
        services.iter().fold(builder, |builder, service| builder.with_service_name(service.as_str()))
    };
    let damaged = |error: tonic_reflection::server::Error| RuntimeError::Descriptors { reason: error.to_string() };
    let current = configure().build_v1().map_err(damaged)?;
    let older = configure().build_v1alpha().map_err(damaged)?;
    Ok(routes.add_service(current).add_service(older))
}

async fn drained(health: Health, shutdown: Shutdown) {
    shutdown.requested().await;
    health.drain().await;
}

async fn until_drained(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    shutdown: Shutdown,
    drain: Duration,
    address: String,
) -> Result<(), RuntimeError> {
    let limit = async {
        shutdown.requested().await;
        tokio::time::sleep(drain).await;
    };
    tokio::select! {
        served = serving => served.map_err(|source| RuntimeError::Serve { address, source }),
        () = limit => {
            warn!(%address, ?drain, "drain time is over; dropping calls in flight");
            Ok(())
        }
    }
}
