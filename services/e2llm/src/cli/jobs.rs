//! The commands that look after bulk jobs.

use clap::{Args, Subcommand};

use super::bulk::INPUT_HELP;
use super::{AskWork, EncodeWork, OutputArgs, SummarizeWork};

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
}
