//! `e2llm train`: training and evaluation of adapters.

use anyhow::{Result, bail};
use e2llm_runtime::Shutdown;

use crate::settings::Settings;

/// `e2llm train …`
#[derive(Debug, clap::Args)]
pub(crate) struct TrainArgs {}

/// Runs the command until it ends or shutdown is requested.
pub(crate) async fn run(args: TrainArgs, settings: &Settings, shutdown: Shutdown) -> Result<()> {
    let _ = (args, settings, shutdown);
    bail!("training is not part of this build yet")
}
