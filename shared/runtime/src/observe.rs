//! What a server writes down of every call: how long it took and how it ended, and of calls that change something who made them.

use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use metrics::{counter, histogram};
use tonic::Code;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tower::{Layer, Service};
use tracing::Instrument;

use crate::auth::{Caller, Role, Seen, required_role};
use crate::trace;

const STATUS: &str = "grpc-status";
/// Characters of a path in the audit log: unknown ones are made up by callers.
const AUDITED: usize = 100;
/// What calls of nothing are counted under.
const UNKNOWN: &str = "unknown";

/// Measures and audits.
#[derive(Debug, Clone)]
pub(crate) struct ObserveLayer;

impl<S> Layer<S> for ObserveLayer {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Observed<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for Observed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let peer = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        let mut call = Call::new(request.uri().path(), peer);
        let seen = Seen::default();
        request.extensions_mut().insert(seen.clone());
        call.seen = seen;
        let span = trace::call(request.uri().path(), request.headers());
        let answer = span.in_scope(|| self.inner.call(request)).instrument(span);
        Box::pin(async move {
            let response = answer.await?;
            if let Some(code) = code_in(response.headers()) {
                // Refused at once: no body follows.
                call.end(code);
                return Ok(response);
            }
            Ok(response.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    if let Some(code) = frame.trailers_ref().and_then(code_in) {
                        call.end(code);
                    }
                    frame
                }))
            }))
        })
    }
}

/// One call, from its headers to its trailers; one that is dropped before was given up by its client.
struct Call {
    path: String,
    peer: Option<std::net::SocketAddr>,
    seen: Seen,
    begun: Instant,
    ended: bool,
}

impl Call {
    fn new(path: &str, peer: Option<std::net::SocketAddr>) -> Self {
        Self { path: path.to_owned(), peer, seen: Seen::default(), begun: Instant::now(), ended: false }
    }

    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let needed = required_role(&self.path);
        let (service, method) = names(&self.path, needed);
        let code = name_of(code);
        counter!("e2llm_requests_total", "service" => service.clone(), "method" => method.clone(), "code" => code)
            .increment(1);
        histogram!("e2llm_request_seconds", "service" => service, "method" => method)
            .record(self.begun.elapsed().as_secs_f64());
        self.audit(needed, code);
    }

    /// Whoever changes something, or tries what is not theirs, is written down. Workers do so all the time: their reports are left out.
    fn audit(&self, needed: Option<Role>, code: &'static str) {
        let refused = matches!(code, "UNAUTHENTICATED" | "PERMISSION_DENIED");
        let changes = matches!(needed, Some(Role::Write | Role::Admin));
        if !changes && !refused {
            return;
        }
        let peer = self.peer.map(|peer| peer.to_string()).unwrap_or_default();
        // A call that is broken off before anybody looked at it has no caller.
        let caller = self.seen.get().map_or("?", Caller::name);
        let rpc: String = self.path.chars().take(AUDITED).collect();
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(target: "e2llm_audit", caller, peer, rpc, code, ms, "call");
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Names of ours as they are, all others under one name: labels must not grow with what callers make up.
fn names(path: &str, needed: Option<Role>) -> (String, String) {
    let known = path.strip_prefix("/e2llm.v1.").filter(|rpc| e2llm_api::rpcs().contains(*rpc));
    let (service, method) = match known.and_then(|rpc| rpc.split_once('/')) {
        Some(names) => names,
        None if needed.is_none() => ("Health", "Check"),
        None => (UNKNOWN, UNKNOWN),
    };
    (service.to_owned(), method.to_owned())
}

fn code_in(headers: &HeaderMap<HeaderValue>) -> Option<Code> {
    headers.get(STATUS).map(|value| Code::from_bytes(value.as_bytes()))
}

/// As the gRPC specification spells codes.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
