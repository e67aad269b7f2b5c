//! Structured logs on stderr. Stdout belongs to data.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::{RuntimeError, trace};

/// The environment variable that sets the log filter.
pub const LOG_VARIABLE: &str = "E2LLM_LOG";

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

/// What to log and how.
#[derive(Debug, Clone)]
pub struct TelemetryOptions {
    /// Text or JSON. Default: text.
    pub format: LogFormat,
    /// Filter from a flag, such as `debug` or `e2llm=debug,warn`; it wins over `E2LLM_LOG`. Default: none.
    pub filter: Option<String>,
    /// Filter when neither flag nor variable is set. Default: `warn`, so that the CLI is quiet; servers pass `info`.
    pub default_filter: &'static str,
    /// Address of an OTLP collector that spans are sent to, over gRPC, and the name of this service. Default: none.
    pub traces: Option<(String, String)>,
}

impl Default for TelemetryOptions {
    fn default() -> Self {
        Self { format: LogFormat::Text, filter: None, default_filter: "warn", traces: None }
    }
}

/// Installs the process's subscriber. A later call changes nothing.
///
/// # Errors
/// [`RuntimeError::BadLogFilter`] when the filter does not parse.
pub fn init(options: &TelemetryOptions) -> Result<(), RuntimeError> {
    let filter = parse_filter(options, std::env::var(LOG_VARIABLE).ok())?;
    let traces = match &options.traces {
        Some((endpoint, name)) => {
            let tracer = trace::export(endpoint, name)?;
            // Of other crates' spans only warnings: those of the transport would be most of all.
            let spans = EnvFilter::new(
                "warn,e2llm=info,e2llm_runtime=info,e2llm_encoder=info,e2llm_decoder=info,e2llm_index=info,e2llm_coordinator=info",
            );
            Some(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(spans))
        }
        None => None,
    };
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = match options.format {
        LogFormat::Text => layer.with_ansi(std::io::stderr().is_terminal()).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    };
    let registry = tracing_subscriber::registry().with(logs.with_filter(filter)).with(traces);
    let installed = registry.with(tasks()).try_init();
    if installed.is_err() {
        tracing::debug!("telemetry was initialised before");
    }
    Ok(())
}

/// What tokio-console connects to: 127.0.0.1:6669, or `TOKIO_CONSOLE_BIND`.
#[cfg(feature = "tokio-console")]
fn tasks<S>() -> Option<impl Layer<S>>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    Some(console_subscriber::ConsoleLayer::builder().with_default_env().spawn())
}

#[cfg(not(feature = "tokio-console"))]
fn tasks() -> Option<tracing_subscriber::layer::Identity> {
    None
}

fn parse_filter(options: &TelemetryOptions, variable: Option<String>) -> Result<EnvFilter, RuntimeError> {
    let given = options.filter.clone().or(variable).filter(|text| !text.trim().is_empty());
    let filter = given.unwrap_or_else(|| options.default_filter.to_owned());
    EnvFilter::builder()
        .parse(&filter)
        .map_err(|error| RuntimeError::BadLogFilter { filter, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_wins_over_the_variable_and_the_variable_over_the_default() {
        let flag = TelemetryOptions { filter: Some("debug".into()), ..Default::default() };
        assert_eq!(parse_filter(&flag, Some("error".into())).unwrap().to_string(), "debug");
        let no_flag = TelemetryOptions::default();
        assert_eq!(parse_filter(&no_flag, Some("error".into())).unwrap().to_string(), "error");
        assert_eq!(parse_filter(&no_flag, Some(String::new())).unwrap().to_string(), "warn");
    }

    #[test]
    fn a_bad_filter_is_named() {
        let options = TelemetryOptions { filter: Some("e2llm=loud".into()), ..Default::default() };
        let error = parse_filter(&options, None).unwrap_err().to_string();
        assert!(error.contains("e2llm=loud") && error.contains("use error, warn"), "{error}");
    }
}
