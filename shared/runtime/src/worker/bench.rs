use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use e2llm_api::v1::{ReportStatusRequest, RowError, RowResult, TaskFailure, TaskRef, TaskSuccess};
use e2llm_api::{ErrorCode, row_error};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// What a worker holds: tasks under way and results the coordinator has not acknowledged.
pub(super) struct Bench {
    slots: usize,
    permits: Arc<Semaphore>,
    closing: CancellationToken,
    running: HashMap<TaskRef, CancellationToken>,
    by_id: HashMap<tokio::task::Id, TaskRef>,
    outbox: HashMap<TaskRef, Outcome>,
    news: bool,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// One result per row, and the time they took.
    Done(Vec<RowResult>, Duration),
    /// The task as a whole failed.
    Failed(RowError),
    /// It was not begun, or stopped because the process stops; no fault of its rows.
    HandedBack,
}

/// A place for a task: a slot to wait for and the token that cancels it.
pub(super) struct Place {
    permits: Arc<Semaphore>,
    closing: CancellationToken,
    pub(super) cancel: CancellationToken,
}

impl Place {
    /// A free slot, or nothing when the task is no longer to be begun.
    pub(super) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            biased;
            () = self.closing.cancelled() => None,
            () = self.cancel.cancelled() => None,
            permit = Arc::clone(&self.permits).acquire_owned() => permit.ok(),
        }
    }
}

impl Bench {
    pub(super) fn new(slots: usize) -> Self {
        Self {
            slots,
            permits: Arc::new(Semaphore::new(slots)),
            closing: CancellationToken::new(),
            running: HashMap::new(),
            by_id: HashMap::new(),
            outbox: HashMap::new(),
            news: false,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty() && self.outbox.is_empty()
    }

    pub(super) fn free_slots(&self) -> usize {
        self.slots.saturating_sub(self.running.len())
    }

    /// Whether there is something the coordinator should hear before the next heartbeat.
    pub(super) fn has_news(&self) -> bool {
        self.news
    }

    /// A task whose outcome is to be reported.
    pub(super) fn finished(&self) -> Option<&str> {
        self.outbox.keys().next().map(|key| key.task_id.as_str())
    }

    /// The report's share that depends on what is held. Clears the news.
    pub(super) fn report(&mut self) -> ReportStatusRequest {
        self.news = false;
        let mut report =
            ReportStatusRequest { in_progress: self.running.keys().cloned().collect(), ..Default::default() };
        for (key, outcome) in &self.outbox {
            let task = Some(key.clone());
            let error = match outcome {
                Outcome::Done(rows, busy) => {
                    let busy_us = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX);
                    report.successes.push(TaskSuccess { task, rows: rows.clone(), busy_us });
                    continue;
                }
                Outcome::Failed(error) => error.clone(),
                Outcome::HandedBack => row_error(ErrorCode::Cancelled, "the worker is stopping"),
            };
            let retriable = match ErrorCode::parse(&error.code) {
                Some(code) => code.is_retriable() || code == ErrorCode::Cancelled,
                None => false,
            };
            report.failures.push(TaskFailure { task, error: Some(error), retriable });
        }
        report
    }

    /// Results in a report that failed are news again.
    pub(super) fn resend(&mut self) {
        self.news |= !self.outbox.is_empty();
    }

    pub(super) fn acknowledge(&mut self, keys: &[TaskRef]) {
        for key in keys {
            self.outbox.remove(key);
        }
    }

    /// Cancels tasks that are no longer wanted and forgets them.
    pub(super) fn revoke(&mut self, keys: &[TaskRef]) {
        for key in keys {
            if let Some(cancel) = self.running.remove(key) {
                cancel.cancel();
            }
        }
    }

    /// A place for `key`, unless the task is here already.
    pub(super) fn place(&mut self, key: &TaskRef) -> Option<Place> {
        if self.running.contains_key(key) || self.outbox.contains_key(key) {
            return None;
        }
        let cancel = CancellationToken::new();
        self.running.insert(key.clone(), cancel.clone());
        Some(Place { permits: Arc::clone(&self.permits), closing: self.closing.clone(), cancel })
    }

    pub(super) fn started(&mut self, id: tokio::task::Id, key: TaskRef) {
        self.by_id.insert(id, key);
    }

    /// Moves a task's outcome to the outbox; that of a revoked task is dropped.
    pub(super) fn finish(&mut self, id: tokio::task::Id, outcome: Outcome) {
        let Some(key) = self.by_id.remove(&id) else { return };
        if self.running.remove(&key).is_some() {
            self.put(key, outcome);
        }
    }

    pub(super) fn hand_back(&mut self, key: TaskRef) {
        self.put(key, Outcome::HandedBack);
    }

    /// Begins nothing more; the coordinator is to hear of it.
    pub(super) fn close(&mut self) {
        self.closing.cancel();
        self.news = true;
    }

    /// Cancels and hands back whatever still runs.
    pub(super) fn hand_back_all(&mut self) {
        let running: Vec<_> = self.running.drain().collect();
        for (key, cancel) in running {
            cancel.cancel();
            self.put(key, Outcome::HandedBack);
        }
    }

    fn put(&mut self, key: TaskRef, outcome: Outcome) {
        self.outbox.insert(key, outcome);
        self.news = true;
    }
}
