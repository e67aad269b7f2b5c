//! Options that several commands share.

use std::path::PathBuf;

use clap::Args;
use e2llm_api::v1::{ContextOptions, GenerateOptions};

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
    /// Chunks to read as raw text, nearest first; 0 switches expansion off
    #[arg(long, value_name = "M")]
    pub(crate) expand: Option<u32>,
    /// Most decoder positions for raw text
    #[arg(long, value_name = "N")]
    pub(crate) expand_positions: Option<u32>,
    /// Most decoder positions for soft tokens and raw text together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_positions: Option<u32>,
}

impl ContextArgs {
    /// As the services take it.
    pub(crate) fn to_options(&self) -> ContextOptions {
        ContextOptions {
            max_positions: self.max_positions,
            expand_chunks: self.expand,
            expand_positions: self.expand_positions,
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
