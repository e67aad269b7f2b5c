use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use e2llm_api::v1::{
    ReportStatusRequest, ReportStatusResponse, ShareProgress, Stage, Task, TaskFailure, TaskRef, TaskSuccess,
};
use futures::future::join_all;
use tokio::time::{Instant, sleep_until};

use crate::board::{Asker, Settlement, Verdict};
use crate::engine::Engine;
use crate::{CoordinatorError, measure};

/// Counts the reports of each worker, so that one that waits for a task gives way to a later one.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<String, u64>>);

impl Turns {
    fn begin(&self, worker: &str) -> u64 {
        let mut turns = self.lock();
        let turn = turns.entry(worker.to_owned()).or_default();
        *turn += 1;
        *turn
    }

    fn is_current(&self, worker: &str, turn: u64) -> bool {
        self.lock().get(worker) == Some(&turn)
    }

    /// Forgets a worker that leaves.
    fn forget(&self, worker: &str) {
        self.lock().remove(worker);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Answers one report: takes results, renews leases, brings tasks.
pub(crate) async fn report(
    engine: &Arc<Engine>,
    turns: &Turns,
    request: ReportStatusRequest,
) -> Result<ReportStatusResponse, CoordinatorError> {
    let stage = request.stage();
    let ReportStatusRequest {
        worker_id: worker, slots, in_progress, successes, failures, fingerprint, progress, ..
    } = request;
    if worker.is_empty() {
        return Err(CoordinatorError::BadReport("it has no worker_id; give every worker its own"));
    }
    if stage == Stage::Unspecified {
        return Err(CoordinatorError::BadReport("it names no stage; say encode, decode or train"));
    }
    let turn = turns.begin(&worker);
    let (revoked, judged) = judge(engine, &worker, &in_progress, progress, successes, failures);
    let acknowledged = settle_all(engine, judged).await;
    // Released tasks may suit another worker, and an earlier report of this one must not wait any longer.
    engine.wake(stage);
    let has_news = !acknowledged.is_empty() || !revoked.is_empty();
    let asker = Asker { worker: &worker, stage, slots, fingerprint: &fingerprint };
    let tasks = match slots {
        0 => Vec::new(),
        _ if has_news => assign(engine, &asker),
        _ => wait_for_tasks(engine, turns, turn, &asker).await,
    };
    if slots == 0 && in_progress.is_empty() {
        turns.forget(&worker);
    }
    let heartbeat_ms = u32::try_from(engine.options.heartbeat.as_millis()).unwrap_or(u32::MAX);
    Ok(ReportStatusResponse { tasks, acknowledged, revoked, heartbeat_ms })
}

type Judged = Vec<(Option<TaskRef>, Verdict)>;

/// Expires leases first: what a worker says after its lease does not count.
fn judge(
    engine: &Arc<Engine>,
    worker: &str,
    in_progress: &[TaskRef],
    progress: Vec<ShareProgress>,
    successes: Vec<TaskSuccess>,
    failures: Vec<TaskFailure>,
) -> (Vec<TaskRef>, Judged) {
    let (now, options) = (engine.now(), &engine.options);
    let mut board = engine.board();
    let mut expired = board.expire(now, options);
    expired.extend(board.leave_out(now));
    let training = board.in_training();
    let revoked = board.renew(worker, in_progress, now, options);
    board.note_progress(worker, progress);
    let mut judged = Judged::new();
    for success in successes {
        judged.push((success.task.clone(), board.succeeded(worker, success, options)));
    }
    for failure in failures {
        judged.push((failure.task.clone(), board.failed(worker, failure, now, options)));
    }
    measure::tasks(&mut board, now);
    drop(board);
    settle_apart(engine, expired);
    // A round that could not be committed earlier, or was due when the coordinator started.
    training.into_iter().for_each(|job| engine.advance_apart(job));
    (revoked, judged)
}

/// Writes what is to be written; returns what the worker may forget.
async fn settle_all(engine: &Arc<Engine>, judged: Judged) -> Vec<TaskRef> {
    let settled = judged.into_iter().map(|(task, verdict)| async move {
        let is_settled = match verdict {
            Verdict::Acknowledge => true,
            Verdict::Wait => false,
            Verdict::Settle(settlement) => engine.settle(settlement).await,
        };
        task.filter(|_| is_settled)
    });
    join_all(settled).await.into_iter().flatten().collect()
}

fn settle_apart(engine: &Arc<Engine>, settlements: Vec<Settlement>) {
    for settlement in settlements {
        let engine = Arc::clone(engine);
        tokio::spawn(async move { engine.settle(settlement).await });
    }
}

fn assign(engine: &Arc<Engine>, asker: &Asker<'_>) -> Vec<Task> {
    let (now, options) = (engine.now(), &engine.options);
    let mut board = engine.board();
    let expired = board.expire(now, options);
    let tasks = board.assign(asker, now, options);
    drop(board);
    settle_apart(engine, expired);
    tasks
}

/// Holds the report until a task is ready, so that idle workers start at once, or until it has waited long enough.
async fn wait_for_tasks(engine: &Arc<Engine>, turns: &Turns, turn: u64, asker: &Asker<'_>) -> Vec<Task> {
    let until = Instant::now() + engine.options.long_poll;
    loop {
        let woken = engine.woken(asker.stage);
        tokio::pin!(woken);
        woken.as_mut().enable();
        if !turns.is_current(asker.worker, turn) {
            return Vec::new();
        }
        let tasks = assign(engine, asker);
        if !tasks.is_empty() {
            return tasks;
        }
        tokio::select! {
            () = woken => {}
            () = sleep_until(until) => return Vec::new(),
            () = engine.shutdown.requested() => return Vec::new(),
        }
    }
}
