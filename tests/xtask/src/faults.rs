//! `cargo xtask faults`: the fault suite of `tests/faults` over many seeds.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::{run, test};

/// `cargo xtask faults`
#[derive(Args)]
pub(crate) struct FaultsArgs {
    /// How many runs
    #[arg(long, value_name = "N", default_value_t = 12)]
    seeds: u64,
    /// Seed of the first; the others follow
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    first: u64,
    /// Only faults of this kind, such as kill-encoder, or those whose kind begins so: kill
    #[arg(long, value_name = "NAME")]
    only: Option<String>,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    /// Keep the logs of all runs, not only of those that fail
    #[arg(long)]
    keep_logs: bool,
    /// Do not install or fetch anything: what is needed is there
    #[arg(long)]
    offline: bool,
}

/// Builds and runs it.
pub(crate) fn run(args: &FaultsArgs) -> Result<()> {
    let python = test::prepare(args.offline)?;
    let mut faults = Command::new(test::binary("faults"));
    faults.args(["--seeds", &args.seeds.to_string(), "--first", &args.first.to_string()]);
    faults.args(args.only.iter().flat_map(|name| ["--only", name]));
    faults.args(args.json.then_some("--json"));
    faults.args(args.keep_logs.then_some("--keep-logs"));
    faults.env("E2LLM_BIN", test::binary("e2llm"));
    run::run(test::with_python(&mut faults, &python))
}
