//! `e2llm serve …`

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};
use e2llm_runtime::telemetry::LogFormat;

/// Which services a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Chunks, encodes and stores documents
    Encoder,
    /// Finds records by document id
    Index,
    /// Answers and summarises
    Decoder,
    /// Plans bulk jobs
    Coordinator,
    /// All four at one address
    All,
}

/// `e2llm serve …`
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Which service
    #[arg(value_enum)]
    pub(crate) role: Role,
    /// Address to listen on; port 0 picks a free one
    #[arg(long, env = "E2LLM_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:7700")]
    pub(crate) listen: SocketAddr,
    /// Where the index serves, for an encoder or decoder; the addresses of all shards in their order, with commas between them. Each http://, https://, or dns:/// and dns+https:/// for all addresses of a
    /// name, as for --server
    #[arg(long, env = "E2LLM_INDEX_URL", value_name = "URL")]
    pub(crate) index_url: Option<String>,
    /// Where the encoder serves, for a decoder
    #[arg(long, env = "E2LLM_ENCODER_URL", value_name = "URL")]
    pub(crate) encoder_url: Option<String>,
    /// Where the coordinator serves, for an encoder or decoder
    #[arg(long, env = "E2LLM_COORDINATOR_URL", value_name = "URL")]
    pub(crate) coordinator_url: Option<String>,
    /// End when this job has ended, for an encoder or decoder that is started for one job; the job may be submitted later
    #[arg(long, env = "E2LLM_UNTIL_JOB", value_name = "JOB")]
    pub(crate) until_job: Option<String>,
    /// How long a worker may be silent before its tasks go to others, for a coordinator
    #[arg(long, env = "E2LLM_LEASE", value_name = "DURATION", default_value = "15s", value_parser = humantime::parse_duration)]
    pub(crate) lease: Duration,
    /// How often workers report, for a coordinator
    #[arg(long, env = "E2LLM_HEARTBEAT", value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    pub(crate) heartbeat: Duration,
    /// Most rows of a job, for a coordinator; each takes about 130 bytes of its memory while the job runs
    #[arg(long, env = "E2LLM_MAX_JOB_ROWS", value_name = "N", default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_job_rows: u64,
    /// Directory of the index's local view; it can be deleted while the index is stopped
    #[arg(long, env = "E2LLM_INDEX_DIR", value_name = "DIR")]
    pub(crate) index_dir: Option<PathBuf>,
    /// Commits after which the index writes a snapshot, from which a lost view is rebuilt sooner
    #[arg(long, env = "E2LLM_SNAPSHOT_EVERY", value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) snapshot_every: u64,
    /// Into how many shards the index is split, by the hash of a document's id. A store keeps its number
    #[arg(long, env = "E2LLM_SHARDS", value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) shards: u32,
    /// Which of them this index is, from 0
    #[arg(long, env = "E2LLM_SHARD", value_name = "I", default_value_t = 0)]
    pub(crate) shard: u32,
    /// Serve reads only, as a replica of the index that serves this store, at most a second behind it
    #[arg(long, env = "E2LLM_REPLICA", value_parser = BoolishValueParser::new())]
    pub(crate) replica: bool,
    #[command(flatten)]
    pub(crate) caches: CacheArgs,
    #[command(flatten)]
    pub(crate) guard: GuardArgs,
    /// Address for plain HTTP: /metrics for Prometheus, /livez, /readyz and /forwardz for probes [default: none]
    #[arg(long, env = "E2LLM_ADMIN_LISTEN", value_name = "ADDR")]
    pub(crate) admin_listen: Option<SocketAddr>,
    /// How log lines look
    #[arg(long, env = "E2LLM_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub(crate) log_format: LogFormatArg,
    /// Collector that traces are sent to, by OTLP over gRPC, such as http://localhost:4317 [default: none]
    #[arg(long, env = "E2LLM_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
    /// YAML file of these settings, by the flags' names; flags and environment variables win over it
    #[arg(long, env = "E2LLM_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print all settings with what they mean and where they stand now, as such a file, and exit
    #[arg(long)]
    pub(crate) print_config: bool,
}

impl ServeArgs {
    /// Where spans are sent, and as which service.
    pub(crate) fn traces(&self) -> Option<(String, String)> {
        let role = self.role.to_possible_value()?;
        Some((self.otlp_endpoint.clone()?, format!("e2llm-{}", role.get_name())))
    }
}

/// Who is let in.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Access to this server")]
pub(crate) struct GuardArgs {
    /// YAML file of the API tokens that are taken, as `e2llm tokens new` prints them; read again when it changes
    #[arg(long, env = "E2LLM_TOKENS", value_name = "FILE")]
    pub(crate) tokens: Option<PathBuf>,
    /// PEM certificates: only clients with a certificate of these are let in
    #[arg(long, env = "E2LLM_TLS_CLIENT_CA", value_name = "FILE")]
    pub(crate) tls_client_ca: Option<PathBuf>,
    /// Listen on other addresses than this machine's own without asking anyone who they are
    #[arg(long, env = "E2LLM_ALLOW_UNAUTHENTICATED", value_parser = BoolishValueParser::new())]
    pub(crate) allow_unauthenticated: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormatArg {
    /// One readable line per event
    #[default]
    Text,
    /// One JSON object per event
    Json,
}

impl From<LogFormatArg> for LogFormat {
    fn from(format: LogFormatArg) -> Self {
        match format {
            LogFormatArg::Text => Self::Text,
            LogFormatArg::Json => Self::Json,
        }
    }
}

/// What a decoder keeps of what it has read.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Caches of a decoder")]
pub(crate) struct CacheArgs {
    /// Soft prompts and texts in memory
    #[arg(long, env = "E2LLM_DOCUMENT_CACHE", value_name = "BYTES", default_value = "256MiB")]
    pub(crate) document_cache: ByteSize,
    /// Soft prompts as files in the directory of --cache, for a store that is not a local directory
    #[arg(long, env = "E2LLM_DISK_CACHE", value_name = "BYTES", default_value = "4GiB")]
    pub(crate) disk_cache: ByteSize,
    /// Keys and values of prompts, so that what another prompt begins with is not read again
    #[arg(long, env = "E2LLM_PREFIX_CACHE", value_name = "BYTES", default_value = "512MiB")]
    pub(crate) prefix_cache: ByteSize,
}

/// Of a single command: the files are a server's.
impl Default for CacheArgs {
    fn default() -> Self {
        Self {
            document_cache: ByteSize::mib(256),
            disk_cache: ByteSize::b(0),
            prefix_cache: ByteSize::b(e2llm_model::generate::PREFIX_BYTES),
        }
    }
}
