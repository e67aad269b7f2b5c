//! `e2llm data`: training and evaluation data from packaged texts, from seeds, and from the full-text decoder.

mod prepare;
mod synthesize;
mod teach;

use anyhow::{Context, Result};
use clap::Subcommand;
use e2llm_runtime::Shutdown;

use crate::failure::Interrupted;
use crate::settings::Settings;
use prepare::PrepareArgs;
use synthesize::SynthesizeArgs;
use teach::TeachArgs;

pub(crate) use synthesize::tokenizer;

/// `e2llm data …`
#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Turn packaged texts into train, validate and test files
    Prepare(PrepareArgs),
    /// Make long-context tasks with known answers, as in RULER, from any seed
    Synthesize(SynthesizeArgs),
    /// Have the decoder, reading the full text without LoRA, answer what has no label; repeating the command goes on
    Teach(TeachArgs),
}

/// Runs the command until it ends or shutdown is requested.
pub(crate) async fn run(command: DataCommand, settings: &Settings, shutdown: Shutdown) -> Result<()> {
    let hint = matches!(command, DataCommand::Teach(_)).then(|| "run the same command again to go on".to_owned());
    let settings = settings.clone();
    let work = tokio::task::spawn_blocking(move || match command {
        DataCommand::Prepare(args) => prepare::run(&args, &settings),
        DataCommand::Synthesize(args) => synthesize::run(&args, &settings),
        DataCommand::Teach(args) => teach::run(&args, &settings),
    });
    tokio::select! {
        done = work => done.context("the work stopped")?,
        () = shutdown.requested() => Err(Interrupted { hint }.into()),
    }
}
