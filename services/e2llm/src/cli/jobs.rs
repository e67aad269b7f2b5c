//! The commands that look after bulk jobs.

use clap::Subcommand;

use super::OutputArgs;

/// `e2llm jobs …`
#[derive(Debug, Subcommand)]
pub(crate) enum JobsCommand {
    /// List jobs, oldest first
    List,
    /// Show a job's counts
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
