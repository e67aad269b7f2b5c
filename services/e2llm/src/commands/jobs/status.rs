//! The status of a job, for people and for programs.

use std::time::{Duration, SystemTime};

use e2llm_api::v1::{JobKind, JobStatus};
use serde_json::{Value, json};

use crate::render::{self, clean, count, duration};

/// The name of a kind of job.
pub(in crate::commands) fn kind_name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Unspecified => "unknown",
        JobKind::Encode => "encode",
        JobKind::Summarize => "summarize",
        JobKind::Ask => "ask",
        JobKind::Train => "train",
    }
}

/// A status for programs.
pub(super) fn status_json(status: &JobStatus) -> Value {
    json!({
        "job_id": status.job_id, "kind": kind_name(status.kind()), "state": status.state,
        "collection": status.collection, "fingerprint": status.fingerprint, "priority": status.priority, "rows": status.rows,
        "rows_encoded": status.rows_encoded, "rows_done": status.rows_done, "rows_failed": status.rows_failed,
        "source_tokens": status.source_tokens, "generated_tokens": status.generated_tokens,
        "tasks_open": status.tasks_open, "tasks_running": status.tasks_running, "retries": status.retries,
        "encode_busy_s": seconds(status.encode_busy_us), "decode_busy_s": seconds(status.decode_busy_us),
        "created_unix_ms": status.created_unix_ms, "ended_unix_ms": status.ended_unix_ms,
        "expires_unix_ms": status.expires_unix_ms, "train": status.train.as_ref().map(render::training_json),
    })
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

/// A status as one line.
pub(super) fn status_text(status: &JobStatus) -> String {
    let mut text = format!(
        "{}  {:<9}  {:<9}  {} of {} rows done, {} failed",
        clean(&status.job_id),
        kind_name(status.kind()),
        clean(&status.state),
        count(status.rows_done),
        count(status.rows),
        count(status.rows_failed)
    );
    if status.retries > 0 {
        text += &format!(", {} tried again", count(status.retries));
    }
    if let Some(train) = &status.train {
        text += &format!(", {}", render::training_text(train));
    }
    if let Some(took) = status.ended_unix_ms.checked_sub(status.created_unix_ms) {
        text += &format!(", in {}", duration(took / 1000));
    }
    if status.priority != 0 {
        text += &format!(", priority {}", status.priority);
    }
    for (name, unix_ms) in times(status) {
        text += &format!(", {name} {}", time(unix_ms));
    }
    text
}

/// All of a status, a line for each thing.
pub(super) fn status_block(status: &JobStatus) -> String {
    let mut text = format!(
        "{}\n  {} in collection {}",
        clean(&status.job_id),
        kind_name(status.kind()),
        clean(&status.collection)
    );
    if !status.fingerprint.is_empty() {
        text += &format!(", bundle {}", clean(&status.fingerprint));
    }
    text += &format!(
        "\n  {}: {} of {} rows done, {} encoded, {} failed; {} attempts were repeated\n  priority {}",
        clean(&status.state),
        count(status.rows_done),
        count(status.rows),
        count(status.rows_encoded),
        count(status.rows_failed),
        count(status.retries),
        status.priority
    );
    for (name, unix_ms) in times(status) {
        text += &format!(", {name} {}", time(unix_ms));
    }
    text += &format!("\n  {} tasks open, {} of them running", count(status.tasks_open), count(status.tasks_running));
    if let Some(train) = &status.train {
        let seconds = seconds(train.busy_us);
        return format!(
            "{text}\n  {}; {} target tokens of {} positions in {seconds:.1} s of all members",
            render::training_text(train),
            count(train.targets),
            count(train.positions)
        );
    }
    text += &format!(
        "\n  {} tokens read in {:.1} s of encoding, {} written in {:.1} s of decoding",
        count(status.source_tokens),
        seconds(status.encode_busy_us),
        count(status.generated_tokens),
        seconds(status.decode_busy_us)
    );
    text
}

/// The times that are known.
fn times(status: &JobStatus) -> impl Iterator<Item = (&'static str, u64)> {
    let times =
        [("created", status.created_unix_ms), ("ended", status.ended_unix_ms), ("expires", status.expires_unix_ms)];
    times.into_iter().filter(|(_, unix_ms)| *unix_ms > 0)
}

/// Such as `2026-11-24T01:05:35Z`.
fn time(unix_ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix_ms / 1000));
    // Beyond the year 9999 there is nothing to format.
    let latest = Duration::from_secs(253_402_300_799);
    match time {
        Some(time) if unix_ms / 1000 <= latest.as_secs() => humantime::format_rfc3339_seconds(time).to_string(),
        _ => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2llm_api::v1::{ObjectiveLoss, TrainStatus};

    #[test]
    fn a_status_tells_how_far_the_job_is() {
        let status = JobStatus {
            job_id: "j1".into(),
            kind: JobKind::Summarize.into(),
            state: "running".into(),
            rows: 1200,
            rows_done: 7,
            rows_failed: 1,
            created_unix_ms: 1000,
            ..Default::default()
        };
        let started = "created 1970-01-01T00:00:01Z";
        let line = format!("j1  summarize  running    7 of 1,200 rows done, 1 failed, {started}");
        assert_eq!(status_text(&status), line);
        assert_eq!(status_json(&status)["kind"], "summarize");
        let ended = JobStatus { ended_unix_ms: 9500, expires_unix_ms: 70_000, retries: 2, priority: -3, ..status };
        let ends = format!(
            "1 failed, 2 tried again, in 8 s, priority -3, {started}, ended 1970-01-01T00:00:09Z, \
             expires 1970-01-01T00:01:10Z"
        );
        assert!(status_text(&ended).ends_with(&ends), "{}", status_text(&ended));
        let block = status_block(&ended);
        for part in ["0 encoded, 1 failed; 2 attempts were repeated", "priority -3", "ended 1970-01-01T00:00:09Z"] {
            assert!(block.contains(part), "{block}");
        }
        assert_eq!(time(u64::MAX), "never");
    }

    #[test]
    fn a_training_job_tells_its_rounds_and_losses() {
        let losses = vec![ObjectiveLoss { objective: "reconstruct".into(), loss: 3.125, targets: 9 }];
        let train = TrainStatus {
            rounds: 12,
            rounds_committed: 3,
            steps: 240,
            steps_done: 60,
            losses,
            targets: 4000,
            positions: 9000,
            busy_us: 2_500_000,
            ..Default::default()
        };
        let status = JobStatus { kind: JobKind::Train.into(), train: Some(train), ..Default::default() };
        assert!(
            status_text(&status).contains(", round 3/12, step 60/240, reconstruct 3.125"),
            "{}",
            status_text(&status)
        );
        let block = status_block(&status);
        assert!(
            block.ends_with("reconstruct 3.125; 4,000 target tokens of 9,000 positions in 2.5 s of all members"),
            "{block}"
        );
        assert_eq!(status_json(&status)["train"]["losses"]["reconstruct"]["targets"], 9);
        let train = status.train.map(|train| TrainStatus { steps_open: 7, ..train });
        let open = status_text(&JobStatus { train, ..Default::default() });
        assert!(open.contains("step 67/240"), "{open}");
    }
}
