//! What the coordinator tells of its work, as metrics: counts by stage, never names.

use std::time::{Duration, Instant};

use e2llm_api::v1::Stage;
use metrics::{counter, gauge, histogram};

use crate::board::{Board, Outcome, Settlement};

/// The least time between two counts of tasks.
const EVERY: Duration = Duration::from_secs(2);
/// Stages that have metrics, with their names.
const STAGES: [(Stage, &str); 3] = [(Stage::Encode, "encode"), (Stage::Decode, "decode"), (Stage::Train, "train")];

fn name(stage: Stage) -> &'static str {
    STAGES.iter().find(|(known, _)| *known == stage).map_or("unknown", |(_, name)| name)
}

/// Counters at zero, so that the first event is seen as a change.
pub(crate) fn begin() {
    for (_, stage) in STAGES {
        for state in ["queued", "running"] {
            gauge!("e2llm_tasks", "stage" => stage, "state" => state).set(0.0);
        }
        counter!("e2llm_leases_expired_total", "stage" => stage).increment(0);
        counter!("e2llm_task_retries_total", "stage" => stage).increment(0);
        counter!("e2llm_rows_total", "stage" => stage).increment(0);
        counter!("e2llm_rows_dead_total", "stage" => stage).increment(0);
    }
}

/// Tasks that wait and that run now. All of them are counted, so not at every report.
pub(crate) fn tasks(board: &mut Board, now: Instant) {
    if board.counted.is_some_and(|counted| now.saturating_duration_since(counted) < EVERY) {
        return;
    }
    board.counted = Some(now);
    for (stage, name) in STAGES {
        let (open, leased) = board.open_tasks(stage);
        gauge!("e2llm_tasks", "stage" => name, "state" => "queued").set((open - leased) as f64);
        gauge!("e2llm_tasks", "stage" => name, "state" => "running").set(leased as f64);
    }
}

/// A task that was taken back from a silent worker.
pub(crate) fn lease_expired(stage: Stage) {
    counter!("e2llm_leases_expired_total", "stage" => name(stage)).increment(1);
}

/// What became of a task, once that is written.
pub(crate) fn settled(settlement: &Settlement) {
    let stage = name(settlement.task.stage);
    match &settlement.outcome {
        Outcome::Results(results) => {
            if results.busy_us > 0 {
                histogram!("e2llm_task_seconds", "stage" => stage).record(results.busy_us as f64 / 1e6);
            }
            let failed = results.rows.iter().filter(|row| row.error.is_some()).count();
            counter!("e2llm_rows_total", "stage" => stage).increment(results.rows.len() as u64);
            counter!("e2llm_rows_dead_total", "stage" => stage).increment(failed as u64);
        }
        Outcome::Retry { .. } | Outcome::Split { .. } => {
            counter!("e2llm_task_retries_total", "stage" => stage).increment(1);
        }
    }
}
