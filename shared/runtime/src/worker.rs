//! The worker side of the coordinator's one RPC for workers: pull tasks, renew leases, hand in results.
//!
//! A [`WorkerLoop`] asks for as many tasks as it has free slots. The coordinator holds such a report for up to about
//! a second until a task is ready, so an idle worker starts without delay. Results are sent as soon as they exist
//! and again with every report until they are acknowledged, so a lost answer or a restarted coordinator loses
//! nothing. On shutdown it asks for nothing more, hands back what it has not begun, finishes the rest within the
//! drain time, and ends when the coordinator has acknowledged it.

use std::sync::Arc;
use std::time::Duration;

use crate::Channel;
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::{
    ReportStatusRequest, ReportStatusResponse, RowError, RowResult, ShareProgress, Stage, Task, TaskRef,
};
use e2llm_api::{ErrorCode, row_error};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{Instrument, debug, error, info, info_span, warn};

use crate::failpoint::reach_with;
use crate::retry::cause_of;
use crate::trace;
use crate::{RetryPolicy, Shutdown, code_of};

mod bench;

use bench::{Bench, Outcome};

/// Does the work of one stage.
#[crate::async_trait]
pub trait TaskHandler: Send + Sync + 'static {
    /// Returns one result per row of `task`, in the same order.
    ///
    /// A row that cannot be processed is a [`RowResult`] with its error; an `Err` fails the task as a whole: with a
    /// retriable code the coordinator tries it again, otherwise it isolates the row at fault by splitting the task.
    /// `cancel` fires when the coordinator no longer wants the task or the process stops; return soon then.
    async fn run(&self, task: Task, cancel: CancellationToken) -> Result<Vec<RowResult>, RowError>;

    /// How far a task in progress is, where that can be told in parts.
    fn progress(&self, _task: &TaskRef) -> Option<ShareProgress> {
        None
    }
}

/// Times of a worker.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// How often leases are renewed while nothing else happens. The coordinator's answer overrides it. Default: 3 s.
    pub heartbeat: Duration,
    /// How long one report may take, the coordinator's waiting for a task included. Default: 10 s.
    pub report_deadline: Duration,
    /// How long running tasks may go on after shutdown was requested. Default: 20 s.
    pub drain: Duration,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(3),
            report_deadline: Duration::from_secs(10),
            drain: Duration::from_secs(20),
        }
    }
}

/// One worker: a client of the coordinator and the handler that does its tasks.
pub struct WorkerLoop<H> {
    client: CoordinatorClient<Channel>,
    worker_id: String,
    stage: Stage,
    slots: usize,
    fingerprint: String,
    handler: Arc<H>,
    options: WorkerOptions,
}

/// A report under way: when it was sent, and the answer.
type Report = BoxFuture<'static, (Instant, Result<ReportStatusResponse, Status>)>;

impl<H: TaskHandler> WorkerLoop<H> {
    /// A worker that does up to `slots` tasks of `stage` at a time. `worker_id` must be unique among workers that live.
    pub fn new(
        client: CoordinatorClient<Channel>,
        worker_id: impl Into<String>,
        stage: Stage,
        slots: usize,
        handler: H,
    ) -> Self {
        let slots = slots.max(1);
        let options = WorkerOptions::default();
        let fingerprint = String::new();
        Self { client, worker_id: worker_id.into(), stage, slots, fingerprint, handler: Arc::new(handler), options }
    }

    /// The same worker with a bundle: it gets no tasks of jobs that name another.
    pub fn with_fingerprint(mut self, fingerprint: &str) -> Self {
        fingerprint.clone_into(&mut self.fingerprint);
        self
    }

    /// The same worker with other times.
    pub fn with_options(mut self, options: WorkerOptions) -> Self {
        self.options = options;
        self
    }

    /// Works until `shutdown` is requested and everything is finished or handed back.
    ///
    /// It never gives up on a coordinator that cannot be reached.
    pub async fn run(self, shutdown: Shutdown) {
        Run::new(self).until(shutdown).await;
    }

    /// The name of a fail point of its role.
    fn edge(&self, edge: &str) -> String {
        let role = match self.stage {
            Stage::Encode => "encoder",
            Stage::Train => "trainer",
            Stage::Decode | Stage::Unspecified => "decoder",
        };
        format!("{role}.{edge}")
    }

    fn report(&self, request: ReportStatusRequest) -> Report {
        let mut client = self.client.clone();
        let deadline = self.options.report_deadline;
        let sent_at = Instant::now();
        Box::pin(async move {
            let answer = match timeout(deadline, client.report_status(request)).await {
                Ok(answer) => answer.map(tonic::Response::into_inner),
                Err(_) => Err(Status::deadline_exceeded(format!("no answer within {deadline:?}"))),
            };
            (sent_at, answer)
        })
    }
}

/// At most this many reports are under way: one waiting for tasks, one handing in results.
const REPORTS: usize = 2;
/// Pause before asking again when the coordinator answered "nothing" without having waited.
const PAUSE: Duration = Duration::from_millis(100);
/// An answer within this time was not waited for.
const AT_ONCE: Duration = Duration::from_millis(50);
/// After the drain time, how long the last results may take to be acknowledged.
const LAST_WORDS: Duration = Duration::from_secs(5);

struct Run<H> {
    worker: WorkerLoop<H>,
    bench: Bench,
    running: JoinSet<Outcome>,
    reports: FuturesUnordered<Report>,
    heartbeat: Duration,
    next_report: Instant,
    not_before: Instant,
    failures: u32,
    drain_until: Option<Instant>,
}

impl<H: TaskHandler> Run<H> {
    fn new(worker: WorkerLoop<H>) -> Self {
        let now = Instant::now();
        Self {
            bench: Bench::new(worker.slots),
            heartbeat: worker.options.heartbeat,
            worker,
            running: JoinSet::new(),
            reports: FuturesUnordered::new(),
            next_report: now,
            not_before: now,
            failures: 0,
            drain_until: None,
        }
    }

    async fn until(mut self, shutdown: Shutdown) {
        debug!(worker_id = self.worker.worker_id, stage = ?self.worker.stage, "worker started");
        while !self.is_over() {
            self.send_if_due();
            let wake_at = self.wake_at();
            tokio::select! {
                Some(ended) = self.running.join_next_with_id() => self.ended(ended),
                Some((sent_at, answer)) = self.reports.next() => self.answered(sent_at, answer),
                () = sleep_until(wake_at) => self.past_drain_limit(),
                () = shutdown.requested(), if self.drain_until.is_none() => self.start_draining(),
            }
        }
        debug!(worker_id = self.worker.worker_id, "worker stopped");
    }

    fn is_over(&self) -> bool {
        let Some(limit) = self.drain_until else { return false };
        let idle = self.bench.is_empty() && self.reports.is_empty();
        if !idle && Instant::now() > limit + LAST_WORDS {
            warn!(worker_id = self.worker.worker_id, "stopping without the coordinator's acknowledgement");
            return true;
        }
        idle
    }

    fn wake_at(&self) -> Instant {
        let now = Instant::now();
        let report = match self.reports.is_empty() {
            _ if now < self.not_before => self.not_before,
            true => self.next_report,
            false => now + self.heartbeat,
        };
        match self.drain_until {
            None => report,
            Some(limit) if limit > now => report.min(limit),
            Some(limit) => report.min(limit + LAST_WORDS).max(now + AT_ONCE),
        }
    }

    fn send_if_due(&mut self) {
        let now = Instant::now();
        let news = self.bench.has_news() && self.reports.len() < REPORTS;
        let due = now >= self.next_report && self.reports.is_empty();
        if now < self.not_before || !(news || due) {
            return;
        }
        let wanted = if self.drain_until.is_some() { 0 } else { self.bench.free_slots() };
        let report = self.bench.report();
        let request = ReportStatusRequest {
            worker_id: self.worker.worker_id.clone(),
            stage: self.worker.stage.into(),
            slots: u32::try_from(wanted).unwrap_or(u32::MAX),
            fingerprint: self.worker.fingerprint.clone(),
            progress: report.in_progress.iter().filter_map(|task| self.worker.handler.progress(task)).collect(),
            ..report
        };
        // A result that was sent before and waits for its acknowledgement is past this edge.
        if let Some(finished) = self.bench.finished().filter(|_| news) {
            reach_with(&self.worker.edge("before_report"), finished);
        }
        self.next_report = now + self.heartbeat;
        self.reports.push(self.worker.report(request));
    }

    fn ended(&mut self, ended: Result<(tokio::task::Id, Outcome), tokio::task::JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, outcome),
            Err(aborted) if aborted.is_cancelled() => (aborted.id(), Outcome::HandedBack),
            Err(failed) => {
                error!(worker_id = self.worker.worker_id, cause = %failed, "task handler panicked");
                let message = "the task handler panicked; its worker's log says where";
                (failed.id(), Outcome::Failed(row_error(ErrorCode::Internal, message)))
            }
        };
        self.bench.finish(id, outcome);
    }

    fn answered(&mut self, sent_at: Instant, answer: Result<ReportStatusResponse, Status>) {
        let now = Instant::now();
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => return self.unanswered(&status, now),
        };
        if self.failures > 0 {
            info!(worker_id = self.worker.worker_id, failures = self.failures, "coordinator reached again");
            self.failures = 0;
        }
        if answer.heartbeat_ms > 0 {
            self.heartbeat = Duration::from_millis(answer.heartbeat_ms.into());
        }
        let waited = now.duration_since(sent_at) >= AT_ONCE;
        let empty = answer.tasks.is_empty() && answer.acknowledged.is_empty();
        self.bench.acknowledge(&answer.acknowledged);
        self.bench.revoke(&answer.revoked);
        for task in answer.tasks {
            self.start(task);
        }
        if self.bench.free_slots() > 0 && self.drain_until.is_none() {
            self.next_report = if empty && !waited { now + PAUSE } else { now };
        }
    }

    fn unanswered(&mut self, status: &Status, now: Instant) {
        self.failures += 1;
        let delay = RetryPolicy { max_delay: self.heartbeat, ..Default::default() }.delay(self.failures);
        self.not_before = now + delay;
        self.next_report = self.not_before;
        self.bench.resend();
        let (failures, cause) = (self.failures, cause_of(status));
        let worker_id = &self.worker.worker_id;
        if code_of(status).is_retriable() {
            warn!(worker_id, failures, ?delay, cause, "report failed; trying again");
        } else {
            error!(worker_id, failures, ?delay, cause, "report refused; trying again");
        }
    }

    fn start(&mut self, task: Task) {
        let key = task_ref(&task);
        if self.drain_until.is_some() {
            self.bench.hand_back(key);
            return;
        }
        let Some(place) = self.bench.place(&key) else { return };
        let handler = Arc::clone(&self.worker.handler);
        let (received, task_id) = (self.worker.edge("task_received"), task.task_id.clone());
        let span = info_span!("task", task_id = task.task_id, worker_id = self.worker.worker_id);
        let span = trace::of_job(span, &task.job_id);
        let work = async move {
            let Some(_slot) = place.slot().await else { return Outcome::HandedBack };
            let started = Instant::now();
            reach_with(&received, task_id);
            match handler.run(task, place.cancel.clone()).await {
                Ok(rows) => Outcome::Done(rows, started.elapsed()),
                Err(error) => Outcome::Failed(error),
            }
        };
        let handle = self.running.spawn(work.instrument(span));
        self.bench.started(handle.id(), key);
    }

    fn start_draining(&mut self) {
        info!(worker_id = self.worker.worker_id, running = self.bench.len(), "worker is draining");
        self.drain_until = Some(Instant::now() + self.worker.options.drain);
        self.bench.close();
    }

    fn past_drain_limit(&mut self) {
        if self.drain_until.is_some_and(|limit| Instant::now() >= limit) && !self.running.is_empty() {
            warn!(
                worker_id = self.worker.worker_id,
                tasks = self.bench.len(),
                "drain time is over; handing tasks back"
            );
            self.bench.hand_back_all();
            self.running.abort_all();
        }
    }
}

/// Names the attempt a task message stands for.
pub fn task_ref(task: &Task) -> TaskRef {
    TaskRef { job_id: task.job_id.clone(), task_id: task.task_id.clone(), attempt: task.attempt }
}
