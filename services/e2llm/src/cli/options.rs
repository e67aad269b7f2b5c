//! Options that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use e2llm_api::v1::{ContextOptions, GenerateOptions, JobSpec, Reading};
use e2llm_coordinator::JobId;

/// How to generate; what is not given is the bundle's default.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerateArgs {
    /// Most tokens to write
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: Option<u32>,
    /// 0 is greedy
    #[arg(long, value_name = "T", value_parser = temperature)]
    pub(crate) temperature: Option<f32>,
    /// Sample from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", value_parser = probability)]
    pub(crate) top_p: Option<f32>,
    /// Divides the scores of tokens already written; 1 is off
    #[arg(long, value_name = "R", value_parser = penalty)]
    pub(crate) repetition_penalty: Option<f32>,
    /// Makes sampling repeatable
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

impl GenerateArgs {
    /// As the services take it; zero means the bundle's default.
    pub(crate) fn to_options(&self) -> GenerateOptions {
        GenerateOptions {
            max_tokens: self.max_tokens.unwrap_or(0),
            temperature: self.temperature.unwrap_or(0.0),
            top_p: self.top_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(0.0),
            seed: self.seed.unwrap_or(0),
            stop: self.stop.clone(),
        }
    }
}

/// How soft tokens and raw text share the decoder's positions.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Context")]
pub(crate) struct ContextArgs {
    /// Most chunks to read as raw text, 0 for none: for a question the nearest one, and others that hold at least half as many of its words
    #[arg(long, value_name = "M")]
    pub(crate) expand: Option<u32>,
    /// Most decoder positions for raw text
    #[arg(long, value_name = "N")]
    pub(crate) expand_positions: Option<u32>,
    /// Most decoder positions for soft tokens and raw text together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_positions: Option<u32>,
    /// Summaries: most prompt windows; what does not fit them is left out, and the result says how many chunks; 0: all that are needed
    #[arg(long, value_name = "N")]
    pub(crate) max_windows: Option<u32>,
    /// What to read of a document; all but soft read raw text or nothing, and are there to compare with
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = ReadingArg::Soft)]
    pub(crate) reading: ReadingArg,
}

/// What is read of a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ReadingArg {
    /// Soft tokens, and raw text of a few chunks
    #[default]
    Soft,
    /// Raw text of the chunks that soft would read as text
    Retrieved,
    /// Raw text of the chunks nearest to the question, until the positions are used up
    Filled,
    /// Raw text from the beginning
    Opening,
    /// Raw text up to the decoder's window, cut in the middle
    Full,
    /// Nothing
    None,
}

impl From<ReadingArg> for Reading {
    fn from(reading: ReadingArg) -> Self {
        match reading {
            ReadingArg::Soft => Self::Soft,
            ReadingArg::Retrieved => Self::Retrieved,
            ReadingArg::Filled => Self::Filled,
            ReadingArg::Opening => Self::Opening,
            ReadingArg::Full => Self::Full,
            ReadingArg::None => Self::None,
        }
    }
}

impl ContextArgs {
    /// As the services take it.
    pub(crate) fn to_options(&self) -> ContextOptions {
        ContextOptions {
            max_positions: self.max_positions,
            expand_chunks: self.expand,
            expand_positions: self.expand_positions,
            max_windows: self.max_windows,
            reading: Reading::from(self.reading).into(),
            ..ContextOptions::default()
        }
    }
}

/// Which of the stored documents to work on.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Stored documents")]
pub(crate) struct StoredArgs {
    /// The documents whose ids stand in this file, object or `-`: one a line, or JSON Lines or Parquet with an "id"
    #[arg(long, value_name = "FILE", conflicts_with = "conditions")]
    pub(crate) ids_from: Option<String>,
    /// The documents whose metadata meets this condition, such as `year>=2020`, `lang=en` or `!draft`; given several
    /// times, all of them
    #[arg(long = "where", value_name = "COND")]
    pub(crate) conditions: Vec<String>,
}

impl StoredArgs {
    /// Whether any documents are named this way.
    pub(crate) fn is_given(&self) -> bool {
        self.ids_from.is_some() || !self.conditions.is_empty()
    }
}

/// The job that does the work of a bulk command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Job")]
pub(crate) struct JobArgs {
    /// Name of the job, 1 to 100 of A-Z a-z 0-9 . _ -: the same command under the same name is the same job, and once it
    /// has finished its results are printed again. Without a name, a command that was interrupted goes on when it is
    /// repeated, and one that has finished starts anew
    #[arg(long, value_name = "NAME", value_parser = job_name)]
    pub(crate) job: Option<String>,
    /// Read and check the inputs and print what there is to do: documents, tokens, bytes that will be stored, and time
    /// by measured rates. Nothing is written
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) options: JobOptions,
}

/// How the coordinator treats a job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Job")]
pub(crate) struct JobOptions {
    /// Jobs of a higher priority are served first, equal ones take turns [default: 0]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) priority: Option<i32>,
    /// Most tasks of the job that run at the same time [default: no limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) parallelism: Option<u32>,
    /// How often a row is tried before it fails [default: the coordinator's, 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) max_attempts: Option<u32>,
    /// How long the job and its results are kept after its end, such as 12h or 30days [default: the coordinator's, 7days]
    #[arg(long, value_name = "DURATION", value_parser = retention)]
    pub(crate) retention: Option<Duration>,
    /// Leave the job to workers whose bundle's fingerprint begins so, where a server has several bundles (`docs show` names a
    /// document's) [default: whoever asks first]
    #[arg(long, value_name = "FINGERPRINT")]
    pub(crate) for_bundle: Option<String>,
}

impl JobOptions {
    /// `spec` with these options; zero means the coordinator's default.
    pub(crate) fn apply_to(&self, spec: JobSpec) -> anyhow::Result<JobSpec> {
        let wanted = self.for_bundle.as_deref().unwrap_or_default();
        if !spec.fingerprint.is_empty() && !spec.fingerprint.starts_with(wanted) {
            bail!(
                "--for-bundle {wanted} is for servers; the bundle in use here is {}, give another one with --bundle",
                spec.fingerprint
            );
        }
        let fingerprint = if spec.fingerprint.is_empty() { wanted.to_owned() } else { spec.fingerprint.clone() };
        Ok(JobSpec {
            fingerprint,
            priority: self.priority.unwrap_or(0),
            parallelism: self.parallelism.unwrap_or(0),
            max_attempts: self.max_attempts.unwrap_or(0),
            retention_s: self.retention.map_or(0, |retention| retention.as_secs()),
            ..spec
        })
    }
}

/// Where the results go.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct OutputArgs {
    /// Write JSON Lines to this file or object (s3://…), or Parquet if its name ends in .parquet. It appears only
    /// once all of it is there
    #[arg(long, short, value_name = "PATH")]
    pub(crate) output: Option<PathBuf>,
    /// Write rows that failed here instead, as JSON Lines of {"id", "code", "attempts", "message"}
    #[arg(long, value_name = "PATH")]
    pub(crate) errors: Option<PathBuf>,
}

fn job_name(text: &str) -> Result<String, String> {
    JobId::new(text).map(|job| job.as_str().to_owned()).map_err(|error| error.to_string())
}

fn retention(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(retention) if retention >= Duration::from_secs(1) => Ok(retention),
        Ok(_) => Err("give at least 1s".to_owned()),
        Err(error) => Err(format!("{error}; write it like 90min, 12h or 30days")),
    }
}

fn number(text: &str, fits: fn(f32) -> bool, expected: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if fits(value) => Ok(value),
        _ => Err(format!("expected {expected}")),
    }
}

fn temperature(text: &str) -> Result<f32, String> {
    number(text, |t| (0.0..=100.0).contains(&t), "a number from 0 to 100")
}

fn probability(text: &str) -> Result<f32, String> {
    number(text, |p| p > 0.0 && p <= 1.0, "a number above 0, up to 1")
}

fn penalty(text: &str) -> Result<f32, String> {
    number(text, |r| (1.0..=100.0).contains(&r), "a number from 1 to 100")
}
