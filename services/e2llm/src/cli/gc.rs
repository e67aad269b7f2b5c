//! The commands that delete.

use std::time::Duration;

use clap::Args;
use e2llm_api::DocId;

/// `e2llm gc`
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Only tell what would be deleted and marked
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// What is younger is left alone, and what was found unused is deleted by the first run this long after that
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub(crate) grace: Duration,
}

/// `e2llm docs delete`
#[derive(Debug, Args)]
pub(crate) struct DeleteArgs {
    #[arg(required_unless_present_any = ["prefix", "conditions"], conflicts_with_all = ["prefix", "conditions"],
        value_name = "ID")]
    pub(crate) ids: Vec<DocId>,
    /// All documents whose ids begin with this
    #[arg(long, value_name = "TEXT")]
    pub(crate) prefix: Option<String>,
    /// All documents whose metadata meets this condition (as for `docs list`); given several times, all of them
    #[arg(long = "where", value_name = "COND")]
    pub(crate) conditions: Vec<String>,
    /// Do it: without this, --prefix and --where only tell how many documents it would be
    #[arg(long)]
    pub(crate) yes: bool,
    /// Delete the ended jobs too that hold outputs of these documents, with all their results
    #[arg(long)]
    pub(crate) outputs: bool,
}
