//! `e2llm reshard`: another number of shards for the index of a store.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2llm_index::reshard;
use e2llm_store::Store;
use serde_json::json;

use super::doctor::must_exist;
use crate::app::App;
use crate::cli::ReshardArgs;
use crate::local::{change_shards, check_change};
use crate::output::print_line;
use crate::progress::Meter;
use crate::render::count;

pub(crate) async fn run(app: &App, args: &ReshardArgs) -> Result<ExitCode> {
    let settings = &app.settings;
    if settings.server.is_some() {
        bail!("reshard works on a store, not through services; leave out --server and give --store");
    }
    must_exist(&settings.store)?;
    let store = Store::open(&settings.store).await?;
    check_change(&store, (args.from, args.to)).await?;
    // Views that are needed once; those of an attempt that was stopped are of use to the next.
    let directory = settings.index_dir(&store)?.join("reshard");
    let mut meter = Meter::start("reshard", "records", settings.quiet);
    let moving = reshard(&store, &directory, (args.from, args.to), |records| meter.update(records, None, ""));
    let moved = app.interruptible(moving).await.context("run the same command again to go on")??;
    change_shards(&store, args.to).await?;
    let seconds = (meter.seconds() * 10.0).round() / 10.0;
    drop(meter);
    if settings.json {
        let (records, manifests) = (moved.records, moved.manifests);
        let (from, to) = (args.from, args.to);
        let line = json!({"from": from, "to": to, "records": records, "manifests": manifests, "seconds": seconds});
        print_line(&line.to_string())?;
    } else {
        let how = if args.to == 1 { "without --shards".to_owned() } else { format!("with --shards {}", args.to) };
        print_line(&format!("{} records moved in {seconds} s; start the index {how} now", count(moved.records)))?;
    }
    Ok(ExitCode::SUCCESS)
}
