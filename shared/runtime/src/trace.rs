//! Traces across processes: OTLP export, and the W3C `traceparent` header between client and server.
//!
//! All work of a job is one trace, whose id follows from the job's name: whoever works on a task knows it without being told. A call outside
//! of jobs belongs to its caller's trace.

use std::sync::OnceLock;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::RuntimeError;

/// What ends with the process: spans that were not sent yet.
static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// Starts the export of spans to a collector, as the service `name`. Needs a tokio runtime.
pub(crate) fn export(endpoint: &str, name: &str) -> Result<SdkTracer, RuntimeError> {
    let failed = |error: &dyn std::fmt::Display| RuntimeError::Traces {
        endpoint: endpoint.to_owned(),
        reason: error.to_string(),
    };
    let exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|error| failed(&error))?;
    let resource = Resource::builder().with_service_name(name.to_owned()).build();
    let provider = SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
    let tracer = provider.tracer("e2llm");
    PROVIDER.set(provider).map_err(|_| failed(&"traces are exported already"))?;
    Ok(tracer)
}

/// Sends what was not sent yet, at the end of a process. Blocks for some seconds at most.
pub fn flush() {
    if let Some(Err(error)) = PROVIDER.get().map(SdkTracerProvider::shutdown) {
        tracing::warn!(%error, "the last spans could not be sent");
    }
}

fn is_exporting() -> bool {
    PROVIDER.get().is_some()
}

/// The span of a call that arrived, in its caller's trace. Workers report and probes ask all the time: theirs have none.
pub(crate) fn call(path: &str, headers: &HeaderMap) -> Span {
    if path.ends_with("/ReportStatus") || path.starts_with("/grpc.health.") {
        return Span::none();
    }
    // Names of ours only: others are made up by callers.
    let rpc = path.strip_prefix("/e2llm.v1.").filter(|rpc| e2llm_api::rpcs().contains(*rpc)).unwrap_or("unknown");
    let span = info_span!("call", otel.name = rpc, otel.kind = "server", rpc);
    if is_exporting() {
        follow(&span, TraceContextPropagator::new().extract(&Headers(headers)));
    }
    span
}

/// Tells the server of a call which trace it belongs to.
pub(crate) fn inject(headers: &mut HeaderMap) {
    if is_exporting() {
        TraceContextPropagator::new().inject_context(&Span::current().context(), &mut HeadersMut(headers));
    }
}

/// The span of work for a job.
pub fn of_job(span: Span, job_id: &str) -> Span {
    if is_exporting() {
        let hash = blake3::hash(job_id.as_bytes());
        let (trace, root) = (first(hash.as_bytes()), first(&hash.as_bytes()[16..]));
        let job = SpanContext::new(
            TraceId::from_bytes(trace),
            SpanId::from_bytes(root),
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        );
        follow(&span, opentelemetry::Context::new().with_remote_span_context(job));
    }
    span
}

fn follow(span: &Span, parent: opentelemetry::Context) {
    if parent.span().span_context().is_valid() {
        // Fails where the span is filtered out: then there is nothing to follow.
        let _ = span.set_parent(parent);
    }
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|index| bytes.get(index).copied().unwrap_or_default())
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(key), Ok(value)) = (HeaderName::from_bytes(key.as_bytes()), HeaderValue::from_str(&value)) {
            self.0.insert(key, value);
        }
    }
}
