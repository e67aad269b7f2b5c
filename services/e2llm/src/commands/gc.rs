//! `e2llm gc`: deletes expired jobs, and what no document and no job refers to.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Result, bail};
use e2llm_api::v1::collect_garbage_request::Part as Asked;
use e2llm_api::v1::collect_garbage_response::Part as Told;
use e2llm_api::v1::{
    Amount, CollectGarbageRequest, ExpireJobsRequest, ExpireJobsResponse, GarbageCounts, GarbageOptions,
    GarbageProgress, GarbageReport, HeldTextsPart, HeldTextsRequest, HeldTextsResponse,
};
use e2llm_runtime::{RetryPolicy, retry};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::app::App;
use crate::cli::GcArgs;
use crate::failure::{of_call, of_status, warn_line};
use crate::local::{Needs, Services};
use crate::output::print_line;
use crate::render::{bytes, clean, count};

/// Messages on their way to the index.
const QUEUE: usize = 16;

pub(crate) async fn run(app: &App, args: &GcArgs) -> Result<ExitCode> {
    let services = app.services(Needs::Records).await?;
    let outcome = app.interruptible(work(app, &services, args)).await;
    // Also after Ctrl-C: a batch that is being deleted is finished.
    services.stop().await;
    outcome??;
    Ok(ExitCode::SUCCESS)
}

async fn work(app: &App, services: &Services, args: &GcArgs) -> Result<()> {
    let request = ExpireJobsRequest { dry_run: args.dry_run };
    let expire = async || services.coordinator().expire_jobs(request).await;
    // Deleting the jobs of a year takes longer than other calls.
    let policy = RetryPolicy { deadline: Duration::from_secs(600), ..RetryPolicy::default() };
    let jobs = retry(&policy, "Coordinator.ExpireJobs", services.address(), expire).await.map_err(of_call)?;
    let options = GarbageOptions { dry_run: args.dry_run, grace_s: seconds(args.grace), only: Vec::new() };
    let quiet = app.settings.quiet || app.settings.json;
    let report = collect(services, options, |progress| {
        if !quiet {
            warn_line(&progress_text(progress));
        }
    });
    print(app, args.dry_run, &jobs.into_inner(), &report.await?)
}

/// A part of a second counts as a whole one: it must not become no grace period at all.
fn seconds(grace: Duration) -> u64 {
    grace.as_secs() + u64::from(grace.subsec_nanos() > 0)
}

/// Has the index collect garbage, and tells it which texts jobs hold once it wants to know.
pub(super) async fn collect(
    services: &Services,
    options: GarbageOptions,
    progress: impl Fn(GarbageProgress),
) -> Result<GarbageReport> {
    let failed = |status| of_status(&status, services.address());
    let (sender, requests) = mpsc::channel(QUEUE);
    let send = async |part| {
        // If the index wants no more, its answer says why.
        let _ = sender.send(CollectGarbageRequest { part: Some(part) }).await;
    };
    send(Asked::Options(options)).await;
    let answers = services.index().collect_garbage(ReceiverStream::new(requests)).await;
    let mut answers = answers.map_err(failed)?.into_inner();
    loop {
        match answers.message().await.map_err(failed)?.and_then(|answer| answer.part) {
            Some(Told::Ready(_)) => {
                let held = services.coordinator().held_texts(HeldTextsRequest {}).await;
                let mut held = held.map_err(failed)?.into_inner();
                while let Some(HeldTextsResponse { text_hashes, submitting }) = held.message().await.map_err(failed)? {
                    send(Asked::Held(HeldTextsPart { text_hashes, submitting, last: false })).await;
                }
                send(Asked::Held(HeldTextsPart { last: true, ..Default::default() })).await;
            }
            Some(Told::Progress(told)) => progress(told),
            Some(Told::Report(report)) => return Ok(report),
            None => bail!("the index ended garbage collection without a report; run it again"),
        }
    }
}

fn progress_text(progress: GarbageProgress) -> String {
    let GarbageProgress { looked_at, swept, to_sweep } = progress;
    match to_sweep {
        0 => format!("gc: {} objects looked at", count(looked_at)),
        _ => format!("gc: {} of {} objects deleted", count(swept), count(to_sweep)),
    }
}

fn print(app: &App, dry_run: bool, jobs: &ExpireJobsResponse, report: &GarbageReport) -> Result<()> {
    let (blobs, texts) = (report.blobs.unwrap_or_default(), report.texts.unwrap_or_default());
    if app.settings.json {
        return print_line(&report_json(dry_run, jobs, report).to_string());
    }
    let will = if dry_run { "to delete" } else { "deleted" };
    for job in &jobs.job_ids {
        print_line(&format!("expired job {will}: {}", clean(job)))?;
    }
    if !jobs.job_ids.is_empty() {
        print_line(&format!("jobs: {} {will} ({})", count(jobs.job_ids.len() as u64), bytes(jobs.bytes)))?;
    }
    print_line(&format!("soft prompts: {}", counts_text(&blobs, dry_run)))?;
    print_line(&format!("texts: {}", counts_text(&texts, dry_run)))?;
    if report.next_sweep_unix_ms > 0 {
        let when = date(report.next_sweep_unix_ms);
        print_line(&format!("what is marked is deleted by the first `e2llm gc` after {when}"))?;
    }
    if report.submitting && !app.settings.quiet {
        warn_line("no text was deleted because documents are being submitted; run `e2llm gc` again later");
    }
    Ok(())
}

fn counts_text(counts: &GarbageCounts, dry_run: bool) -> String {
    let (swept, marked) = if dry_run { ("to delete", "to mark") } else { ("deleted", "marked") };
    let parts = [
        (counts.swept, swept),
        (counts.marked, marked),
        (counts.waiting, "marked before"),
        (counts.held, "held by jobs"),
        (counts.young, "too young"),
        (counts.in_use, "in use"),
    ];
    let part = |(amount, what): (Option<Amount>, &str)| {
        let Amount { objects, bytes: size } = amount.filter(|amount| amount.objects > 0)?;
        Some(format!("{} {what} ({})", count(objects), bytes(size)))
    };
    let parts: Vec<String> = parts.into_iter().filter_map(part).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

fn report_json(dry_run: bool, jobs: &ExpireJobsResponse, report: &GarbageReport) -> Value {
    let amount = |amount: Option<Amount>| {
        let Amount { objects, bytes } = amount.unwrap_or_default();
        json!({"objects": objects, "bytes": bytes})
    };
    let counts = |counts: Option<GarbageCounts>| {
        let counts = counts.unwrap_or_default();
        json!({
            "swept": amount(counts.swept), "marked": amount(counts.marked), "waiting": amount(counts.waiting),
            "held": amount(counts.held), "young": amount(counts.young), "in_use": amount(counts.in_use),
        })
    };
    json!({
        "dry_run": dry_run,
        "jobs": {"expired": jobs.job_ids, "objects": jobs.objects, "bytes": jobs.bytes},
        "soft_prompts": counts(report.blobs),
        "texts": counts(report.texts),
        "next_sweep_unix_ms": report.next_sweep_unix_ms,
        "submitting": report.submitting,
    })
}

/// A time as RFC 3339, in UTC.
pub(in crate::commands) fn date(unix_ms: u64) -> String {
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(unix_ms)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_there_is_and_leaves_out_what_there_is_not() {
        let amount = |objects, bytes| Some(Amount { objects, bytes });
        let counts = GarbageCounts { swept: amount(1200, 5_000), in_use: amount(3, 7), ..Default::default() };
        assert_eq!(counts_text(&counts, false), "1,200 deleted (5.00 kB), 3 in use (7 B)");
        assert!(counts_text(&counts, true).starts_with("1,200 to delete"));
        assert_eq!(counts_text(&GarbageCounts::default(), false), "none");
        let report = GarbageReport { blobs: Some(counts), ..Default::default() };
        let json = report_json(false, &ExpireJobsResponse::default(), &report);
        assert_eq!(json["soft_prompts"]["swept"], json!({"objects": 1200, "bytes": 5000}));
        assert_eq!(json["texts"]["held"]["objects"], 0);
    }

    #[test]
    fn a_grace_period_below_a_second_is_not_none() {
        assert_eq!(seconds(Duration::from_millis(1)), 1);
        assert_eq!((seconds(Duration::ZERO), seconds(Duration::from_secs(90))), (0, 90));
    }

    #[test]
    fn dates_are_in_utc() {
        assert_eq!(date(1_764_094_513_999), "2025-11-25T18:15:13Z");
    }
}
