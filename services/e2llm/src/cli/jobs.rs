//! The commands that look after bulk jobs.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::bulk::INPUT_HELP;
use super::{AskWork, EncodeWork, JobOptions, OutputArgs, SummarizeWork};

/// `e2llm jobs …`
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// Submit a job and return once all its rows are planned; it prints the job's status. On a server it goes on by
    /// itself; without --server it runs when it is watched or resumed here
    Submit(Box<SubmitArgs>),
    /// List jobs, oldest first
    List,
    /// Show a job's counts, times and errors
    Show {
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Show a job's progress until it ends
    Watch {
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Print a job's results in input order, waiting for those to come
    Result {
        #[arg(value_name = "JOB")]
        job: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Fetch the bundle that a training job has written, to be used with --bundle DIR
    Bundle {
        #[arg(value_name = "JOB")]
        job: String,
        /// Directory for bundle.json, adapter.safetensors and lora.safetensors
        #[arg(long, short, value_name = "DIR")]
        output: PathBuf,
    },
    /// Cancel a job; what it has finished stays
    Cancel {
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Delete a job that has ended, with its results, before it expires
    Delete {
        #[arg(value_name = "JOB")]
        job: String,
    },
    /// Go on with a cancelled job; without --server it is run here to its end
    Resume {
        #[arg(value_name = "JOB")]
        job: String,
    },
}

/// `e2llm jobs submit …`
#[derive(Debug, Args)]
pub(crate) struct SubmitArgs {
    #[command(subcommand)]
    pub(crate) submission: Submission,
}

/// What a submitted job does: as the command of the same name.
#[derive(Debug, Subcommand)]
pub(crate) enum Submission {
    /// Encode documents and store their soft prompts; unchanged documents are skipped
    #[command(after_long_help = INPUT_HELP)]
    Encode(EncodeWork),
    /// Summarise documents, encoding first what is new
    #[command(after_long_help = INPUT_HELP)]
    Summarize(SummarizeWork),
    /// Ask many questions, or one question of many documents
    Ask(AskWork),
    /// Train an adapter and a decoder LoRA by encoder-decoder pairs that meet in rounds
    Train(TrainWork),
}

/// What to train, on what, and by how many.
#[derive(Debug, Args)]
pub(crate) struct TrainWork {
    /// What to train, in YAML; as for `e2llm train`
    #[arg(long, value_name = "FILE")]
    pub(crate) recipe: PathBuf,
    /// Documents to train on: JSON Lines of {"id", "text", "abstract"?}; may be given several times
    #[arg(long = "input", value_name = "FILE", required = true)]
    pub(crate) inputs: Vec<PathBuf>,
    /// Encoder-decoder pairs; each takes its share of every batch
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) pairs: u32,
    /// Optimizer steps that a pair takes before all meet; 1 is synchronous training
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) local_steps: usize,
    /// Rate of the outer step towards the pairs' mean; 1 with momentum 0 is the mean itself
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub(crate) outer_rate: f64,
    /// Nesterov momentum of the outer step
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    pub(crate) outer_momentum: f64,
    /// Pairs that are enough to end a round when the others are late [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) quorum: Option<u32>,
    /// How long a quorum waits for the others
    #[arg(long, value_name = "DURATION", default_value = "2min", value_parser = humantime::parse_duration)]
    pub(crate) quorum_wait: Duration,
    /// Name of the bundle that is written in the end
    #[arg(long, value_name = "NAME", default_value = "trained")]
    pub(crate) name: String,
    /// Name of the job: the same command under the same name is the same job
    #[arg(long, value_name = "NAME")]
    pub(crate) job: Option<String>,
    #[command(flatten)]
    pub(crate) options: JobOptions,
}
