//! Plain HTTP for whoever runs a process: `/metrics`, and health as `/livez`, `/readyz` and `/forwardz`.
//!
//! It speaks neither TLS nor tokens, because probes and Prometheus have none, and it shows no names and no content. It is for the pod's
//! network, not for users'.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::{Check, Health, Listener, RuntimeError, Shutdown};

/// How long a client may take to send its request's head.
const HEAD: Duration = Duration::from_secs(5);
/// How often what was measured is put together while nobody asks, so that it does not pile up.
const UPKEEP: Duration = Duration::from_secs(5);
/// Seconds.
const BUCKETS: [f64; 14] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0];
/// Sequences.
const COUNTS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 24.0, 32.0];

/// What metrics mean. Labels: `stage` encode, decode or train; `class` interactive or bulk.
const HELP: [(&str, &str); 19] = [
    ("e2llm_build_info", "1, with the version."),
    ("e2llm_requests_total", "gRPC calls that ended, by service, method and code."),
    ("e2llm_request_seconds", "From a call's headers to its trailers, by service and method."),
    ("e2llm_tasks", "Tasks of unfinished jobs, by stage and state: queued or running."),
    ("e2llm_task_seconds", "Workers' time in tasks that count, by stage."),
    ("e2llm_leases_expired_total", "Tasks taken back from workers that stopped reporting, by stage."),
    ("e2llm_task_retries_total", "Attempts that failed or were lost, by stage."),
    ("e2llm_rows_total", "Rows that have their result, by stage."),
    ("e2llm_rows_dead_total", "Of these, rows that failed for good, by stage."),
    ("e2llm_queue_wait_seconds", "From an answer's order to its place in the batch, by class."),
    ("e2llm_batch_sequences", "Answers written in one step."),
    ("e2llm_tokens_total", "Positions of prompts, of these reused ones, and generated tokens, by kind and class."),
    ("e2llm_first_token_seconds", "From a request's arrival to its first token, by class."),
    ("e2llm_cache_requests_total", "Look-ups of soft prompts, by cache (memory, disk) and result (hit, miss)."),
    ("e2llm_kv_positions", "Positions of running answers, for which keys and values are kept."),
    ("e2llm_kv_positions_limit", "Positions beyond which no bulk answer begins."),
    ("e2llm_documents_encoded_total", "Documents encoded and committed; unchanged ones do not count."),
    ("e2llm_chunks_encoded_total", "Their chunks."),
    ("e2llm_manifest_commits_total", "Manifests written by this index."),
];

/// The process's metrics.
#[derive(Debug, Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Collects what the process measures from now on: services that start later tell their counters at zero.
    ///
    /// # Errors
    /// [`RuntimeError::Metrics`] when metrics were installed before.
    pub fn install() -> Result<Self, RuntimeError> {
        let failed = |error: BuildError| RuntimeError::Metrics { reason: error.to_string() };
        let builder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_sequences".to_owned()), &COUNTS));
        let handle = builder.and_then(PrometheusBuilder::install_recorder).map_err(failed)?;
        // Only the text is used: what kind a metric is shows where it is measured.
        HELP.iter().for_each(|(name, help)| metrics::describe_counter!(*name, *help));
        metrics::gauge!("e2llm_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self(handle))
    }

    /// Serves them with `health`, also while the process drains.
    pub fn serve(self, listener: Listener, health: Health, shutdown: Shutdown) {
        tracing::info!(address = %listener.address(), "metrics and health are served");
        tokio::spawn(upkeep(self.0.clone(), shutdown.clone()));
        tokio::spawn(accept(listener, self.0, health, shutdown));
    }
}

async fn upkeep(handle: PrometheusHandle, shutdown: Shutdown) {
    while !shutdown.is_requested() {
        tokio::time::sleep(UPKEEP).await;
        handle.run_upkeep();
    }
}

/// Goes on while the process drains: that is what its health is asked for.
async fn accept(listener: Listener, handle: PrometheusHandle, health: Health, shutdown: Shutdown) {
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (handle, health, shutdown) = (handle.clone(), health.clone(), shutdown.clone());
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let answer = respond(request.method(), request.uri().path(), &handle, &health, &shutdown);
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = http1::Builder::new();
            // A client that breaks off is its own affair.
            let _ = server
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(stream), answer)
                .await;
        });
    }
}

fn respond(
    method: &Method,
    path: &str,
    handle: &PrometheusHandle,
    health: &Health,
    shutdown: &Shutdown,
) -> Response<Full<Bytes>> {
    let verdict = |passed: bool| {
        let status = if passed { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, if passed { "ok\n" } else { "not now\n" }.to_owned())
    };
    let (status, text) = match path {
        _ if method != Method::GET && method != Method::HEAD => (StatusCode::METHOD_NOT_ALLOWED, "GET\n".to_owned()),
        "/metrics" => (StatusCode::OK, handle.render()),
        "/livez" => verdict(true),
        "/readyz" => verdict(!shutdown.is_requested() && health.is_ready()),
        "/forwardz" => verdict(health.passes(Check::Forward)),
        _ => (StatusCode::NOT_FOUND, "/metrics, /livez, /readyz, /forwardz\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
