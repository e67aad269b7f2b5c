//! `cargo xtask faults`: many seeded runs, one line each.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use e2llm_faults::{Fleet, Keep, Plan, Report, Site, run};
use tokio::signal::unix::{SignalKind, signal};

/// Runs jobs on real processes, with one fault each.
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Args {
    /// How many runs
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..))]
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
    /// Where logs are kept
    #[arg(long, value_name = "DIR", default_value = "target/faults")]
    logs: PathBuf,
}

/// Seeds looked at to find those of one kind.
const SEARCHED: u64 = 100_000;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let mut terminated = signal(SignalKind::terminate())?;
    // Whatever ends it early drops the fleet, and with it its processes.
    tokio::select! {
        ended = run_all(Args::parse()) => ended,
        _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    }
}

async fn run_all(args: Args) -> Result<ExitCode> {
    let keep = if args.keep_logs { Keep::All } else { Keep::Failures };
    let mut failed = Vec::new();
    let mut done = 0;
    for (site, plans) in by_site(plans(&args)?) {
        eprintln!("starting index, coordinator, 2 encoders and 2 decoders, store on {site}");
        let fleet = Fleet::start(site).await?;
        for plan in plans {
            let report = run(&fleet, &plan, &args.logs, keep).await;
            print(&report, args.json)?;
            done += 1;
            if !report.is_sound() {
                explain(&report);
                failed.push(plan.seed);
            }
        }
    }
    eprintln!(
        "{done} runs, {} failed{}",
        failed.len(),
        if failed.is_empty() { String::new() } else { format!(": {failed:?}") }
    );
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plans(args: &Args) -> Result<Vec<Plan>> {
    let is_wanted = |plan: &Plan| args.only.as_ref().is_none_or(|name| plan.name().starts_with(name.as_str()));
    let seeds = args.first..args.first.saturating_add(if args.only.is_some() { SEARCHED } else { args.seeds });
    let count = usize::try_from(args.seeds)?;
    let plans: Vec<Plan> = seeds.map(Plan::of).filter(is_wanted).take(count).collect();
    ensure!(
        !plans.is_empty(),
        "no fault is called {}; see the lines of a run without --only",
        args.only.as_deref().unwrap_or("")
    );
    Ok(plans)
}

/// A fleet has its store in one place: runs on the same go together.
fn by_site(plans: Vec<Plan>) -> Vec<(Site, Vec<Plan>)> {
    let on = |site: Site| (site, plans.iter().filter(|plan| plan.site == site).cloned().collect::<Vec<_>>());
    [on(Site::Disk), on(Site::Bucket)].into_iter().filter(|(_, plans)| !plans.is_empty()).collect()
}

fn print(report: &Report, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", report.json())?
    } else {
        writeln!(out, "{}", report.line())?
    }
    Ok(out.flush()?)
}

fn explain(report: &Report) {
    let logs = report.logs.as_ref().map_or_else(|| "none".to_owned(), |path| path.display().to_string());
    eprintln!("repeat it: cargo xtask faults --seeds 1 --first {}; logs: {logs}", report.plan.seed);
}
