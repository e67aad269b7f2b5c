//! A job's events, each row once and in order, across broken connections.

use std::time::Duration;

use anyhow::Result;
use e2llm_api::ErrorCode;
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::{JobEvent, WatchJobRequest, job_event::Event};
use e2llm_runtime::Channel;
use e2llm_runtime::{RetryPolicy, code_of};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

use crate::failure;
use crate::local::Services;

/// How long a job may be unreachable, or not known yet, before the command gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Events that may wait for a slow terminal before the coordinator has to wait too.
const QUEUE: usize = 64;

/// The events of a job. Dropping it ends the watch, not the job.
pub(crate) struct Watch {
    events: mpsc::Receiver<Result<Event>>,
    /// Its one task ends with this.
    _task: JoinSet<()>,
}

/// What is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Status events alone.
    Progress,
    /// The same, of a job that the coordinator may not know yet.
    ProgressOfNewJob,
    /// Rows too.
    Rows,
    /// Rows too, of a job that the coordinator may not know yet.
    RowsOfNewJob,
}

impl Watch {
    /// Watches on a task of its own.
    pub(super) fn start(services: &Services, job_id: &str, wanted: Wanted) -> Self {
        let (sender, events) = mpsc::channel(QUEUE);
        let watcher = Watcher {
            client: services.coordinator(),
            job_id: job_id.to_owned(),
            address: services.address().to_owned(),
            is_new: matches!(wanted, Wanted::RowsOfNewJob | Wanted::ProgressOfNewJob),
            results: matches!(wanted, Wanted::Rows | Wanted::RowsOfNewJob),
            progress: Progress::default(),
            failures: 0,
            last_success: Instant::now(),
        };
        let mut task = JoinSet::new();
        task.spawn(watcher.run(sender));
        Self { events, _task: task }
    }

    /// The next event; `None` once the job has ended. Dropping the future loses no event.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        self.events.recv().await.transpose()
    }
}

struct Watcher {
    client: CoordinatorClient<Channel>,
    job_id: String,
    address: String,
    is_new: bool,
    results: bool,
    progress: Progress,
    failures: u32,
    last_success: Instant,
}

impl Watcher {
    async fn run(mut self, sender: mpsc::Sender<Result<Event>>) {
        loop {
            let Err(status) = self.follow(&sender).await else { return };
            if let Err(error) = self.may_try_again(&status) {
                // Nobody to tell when the receiver is gone.
                let _ = sender.send(Err(error)).await;
                return;
            }
            sleep(RetryPolicy::default().delay(self.failures)).await;
        }
    }

    /// Passes events on until the job has ended or nobody listens.
    async fn follow(&mut self, sender: &mpsc::Sender<Result<Event>>) -> Result<(), Status> {
        let request = WatchJobRequest { job_id: self.job_id.clone(), results: self.results };
        let mut events: Streaming<JobEvent> = self.client.watch_job(request).await?.into_inner();
        while let Some(event) = events.message().await? {
            (self.is_new, self.failures, self.last_success) = (false, 0, Instant::now());
            let Some(event) = self.progress.accept(event) else { continue };
            if sender.send(Ok(event)).await.is_err() {
                return Ok(());
            }
        }
        if self.progress.has_ended { Ok(()) } else { Err(Status::unavailable("the job's events ended before the job")) }
    }

    fn may_try_again(&mut self, status: &Status) -> Result<()> {
        self.failures += 1;
        let code = code_of(status);
        let may_pass = code.is_retriable() || (self.is_new && code == ErrorCode::NotFound);
        if may_pass && self.last_success.elapsed() < PATIENCE {
            return Ok(());
        }
        Err(failure::of_status(status, &self.address))
    }
}

/// What was seen of a job.
#[derive(Debug, Default)]
struct Progress {
    /// The row to come next; lower ones were seen before the connection broke.
    next_row: u64,
    /// Whether the last status was a final one.
    has_ended: bool,
}

impl Progress {
    /// Lets through what is new.
    fn accept(&mut self, event: JobEvent) -> Option<Event> {
        let event = event.event?;
        match &event {
            Event::Status(status) => self.has_ended = matches!(status.state.as_str(), "succeeded" | "cancelled"),
            Event::Row(row) if row.number < self.next_row => return None,
            Event::Row(row) => self.next_row = row.number + 1,
        }
        Some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2llm_api::v1::{JobStatus, RowResult};

    fn row(number: u64) -> JobEvent {
        JobEvent { event: Some(Event::Row(RowResult { number, ..Default::default() })) }
    }

    #[test]
    fn rows_that_come_again_after_a_reconnect_are_dropped() {
        let mut progress = Progress::default();
        let passed: Vec<bool> = [0, 1, 0, 1, 2].map(|number| progress.accept(row(number)).is_some()).to_vec();
        assert_eq!(passed, [true, true, false, false, true]);
    }

    #[test]
    fn only_a_final_state_ends_a_job() {
        let mut progress = Progress::default();
        for (state, ended) in [("planning", false), ("running", false), ("succeeded", true)] {
            let status = JobStatus { state: state.into(), ..Default::default() };
            progress.accept(JobEvent { event: Some(Event::Status(status)) });
            assert_eq!(progress.has_ended, ended, "{state}");
        }
    }
}
