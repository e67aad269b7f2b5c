use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use e2llm_api::v1::{RowError, RowResult, Stage, Task, TaskFailure, TaskRef, TaskSuccess};
use e2llm_api::{ErrorCode, row_error};
use tracing::{info, warn};

use crate::CoordinatorOptions;
use crate::ids::{JobId, TaskId};
use crate::job::Job;
use crate::task::{Claim, TaskState};

/// All jobs in memory: leases their tasks and judges what workers report. Decides, writes nothing.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// The job that was served last, so that the next one has its turn.
    last_served: Option<JobId>,
    /// Jobs that have ended, oldest first.
    ended: VecDeque<JobId>,
}

/// An outcome that has to be written before it counts.
#[derive(Debug, PartialEq)]
pub(crate) struct Settlement {
    pub(crate) job: JobId,
    pub(crate) task: TaskId,
    pub(crate) outcome: Outcome,
}

/// What to write.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// One result per row.
    Results {
        /// The attempt they come from.
        attempt: u32,
        /// Who did it.
        worker: String,
        /// In the order of the task's rows.
        rows: Vec<RowResult>,
    },
    /// The task is given up as a whole; its rows are tried one by one.
    Split,
}

/// What to do about a reported result.
#[derive(Debug, PartialEq)]
pub(crate) enum Verdict {
    /// The worker may forget it.
    Acknowledge,
    /// The worker may forget it once this is written.
    Settle(Settlement),
    /// It is being written; the worker will ask again.
    Wait,
}

impl Board {
    /// Renews the leases a worker names; returns those it does not hold.
    pub(crate) fn renew(
        &mut self,
        worker: &str,
        held: &[TaskRef],
        now: Instant,
        options: &CoordinatorOptions,
    ) -> Vec<TaskRef> {
        let mut revoked = Vec::new();
        for reference in held {
            match self.claim(worker, reference) {
                Some((job, task, Claim::Holds | Claim::Adopts)) => {
                    self.hold(&job, task, worker, reference.attempt, now, options);
                }
                Some((_, _, Claim::Settling)) => {}
                Some((_, _, Claim::Stale)) | None => revoked.push(reference.clone()),
            }
        }
        revoked
    }

    /// Judges results of a finished task.
    pub(crate) fn succeeded(&mut self, worker: &str, success: TaskSuccess, options: &CoordinatorOptions) -> Verdict {
        let Some(reference) = success.task else { return Verdict::Acknowledge };
        let (job, task) = match self.claim(worker, &reference) {
            Some((job, task, Claim::Holds | Claim::Adopts)) => (job, task),
            Some((_, _, Claim::Settling)) => return Verdict::Wait,
            Some((_, _, Claim::Stale)) | None => return dismiss(worker, &reference),
        };
        let Some(open) = self.jobs.get_mut(&job).and_then(|job| job.task_mut(task)) else {
            return Verdict::Acknowledge;
        };
        open.attempt = reference.attempt;
        let expected = open.rows.iter().map(|row| row.number);
        if !success.rows.iter().map(|row| row.number).eq(expected) {
            let error = row_error(ErrorCode::Internal, "the worker returned other rows than the task has");
            return self.give_up(&job, task, worker, &error, options);
        }
        let outcome = Outcome::Results { attempt: reference.attempt, worker: worker.to_owned(), rows: success.rows };
        self.settle(&job, task, outcome)
    }

    /// Judges a task that failed as a whole.
    pub(crate) fn failed(
        &mut self,
        worker: &str,
        failure: TaskFailure,
        now: Instant,
        options: &CoordinatorOptions,
    ) -> Verdict {
        let Some(reference) = failure.task else { return Verdict::Acknowledge };
        let (job, task) = match self.claim(worker, &reference) {
            Some((job, task, Claim::Holds | Claim::Adopts)) => (job, task),
            Some((_, _, Claim::Settling)) => return Verdict::Wait,
            Some((_, _, Claim::Stale)) | None => return dismiss(worker, &reference),
        };
        if let Some(open) = self.jobs.get_mut(&job).and_then(|job| job.task_mut(task)) {
            open.attempt = reference.attempt;
        }
        let error = failure.error.unwrap_or_else(|| row_error(ErrorCode::Internal, "the worker gave no reason"));
        if ErrorCode::parse(&error.code) == Some(ErrorCode::Cancelled) {
            self.release(&job, task, now);
            return Verdict::Acknowledge;
        }
        if failure.retriable {
            return self.try_again(&job, task, worker, &error, now, options);
        }
        self.give_up(&job, task, worker, &error, options)
    }

    /// Takes tasks back from workers that have been silent too long.
    pub(crate) fn expire(&mut self, now: Instant, options: &CoordinatorOptions) -> Vec<Settlement> {
        let expired: Vec<(JobId, TaskId)> = self
            .jobs
            .values()
            .flat_map(|job| job.expired(now).into_iter().map(|task| (job.id.clone(), task)))
            .collect();
        let error = row_error(ErrorCode::Unavailable, "its worker stopped reporting");
        let mut settlements = Vec::new();
        for (job, task) in expired {
            if let Verdict::Settle(settlement) = self.try_again(&job, task, "", &error, now, options) {
                settlements.push(settlement);
            }
        }
        settlements
    }

    /// Leases up to `slots` ready tasks to a worker, jobs taking turns.
    pub(crate) fn assign(
        &mut self,
        worker: &str,
        stage: Stage,
        slots: u32,
        now: Instant,
        options: &CoordinatorOptions,
    ) -> Vec<Task> {
        let mut tasks = Vec::new();
        while tasks.len() < slots as usize {
            let Some((job, task)) = self.next_in_turn(stage, now) else { break };
            self.last_served = Some(job.clone());
            let Some(entry) = self.jobs.get_mut(&job) else { break };
            let spec = entry.spec.clone();
            let Some(open) = entry.task_mut(task) else { break };
            open.lease(worker, now, options.lease);
            tasks.push(Task {
                job_id: job.to_string(),
                task_id: task.to_string(),
                attempt: open.attempt,
                stage: stage.into(),
                spec: Some(spec),
                rows: open.rows.clone(),
            });
            entry.mark_leased(task);
        }
        tasks
    }

    /// Makes a task whose outcome could not be written available again.
    pub(crate) fn unsettle(&mut self, settlement: &Settlement, now: Instant, options: &CoordinatorOptions) {
        match &settlement.outcome {
            Outcome::Results { attempt, worker, .. } if !worker.is_empty() => {
                self.hold(&settlement.job, settlement.task, worker, *attempt, now, options);
            }
            _ => self.release(&settlement.job, settlement.task, now + options.retry_delay),
        }
    }

    /// Notes that a job has ended; of those only the last `keep` stay in memory.
    pub(crate) fn retire(&mut self, job: &JobId, keep: usize) {
        if self.ended.contains(job) {
            return;
        }
        self.ended.push_back(job.clone());
        while self.ended.len() > keep.max(1) {
            if let Some(oldest) = self.ended.pop_front() {
                self.jobs.remove(&oldest);
            }
        }
    }

    fn next_in_turn(&self, stage: Stage, now: Instant) -> Option<(JobId, TaskId)> {
        use std::ops::Bound::{Excluded, Unbounded};
        let after = self.last_served.clone().map_or(Unbounded, Excluded);
        let in_turn = self.jobs.range((after, Unbounded)).chain(self.jobs.iter());
        in_turn.filter_map(|(id, job)| Some((id.clone(), job.next_ready(stage, now)?))).next()
    }

    fn claim(&self, worker: &str, reference: &TaskRef) -> Option<(JobId, TaskId, Claim)> {
        let (id, job) = self.jobs.get_key_value(&JobId::new(&reference.job_id).ok()?)?;
        let task = reference.task_id.parse().ok()?;
        let claim = job.open_task(task)?.claim(worker, reference.attempt);
        Some((id.clone(), task, claim))
    }

    fn hold(
        &mut self,
        job: &JobId,
        task: TaskId,
        worker: &str,
        attempt: u32,
        now: Instant,
        options: &CoordinatorOptions,
    ) {
        let Some(entry) = self.jobs.get_mut(job) else { return };
        if let Some(open) = entry.task_mut(task) {
            open.attempt = attempt;
        }
        entry.set_state(task, TaskState::Leased { worker: worker.to_owned(), until: now + options.lease });
    }

    fn release(&mut self, job: &JobId, task: TaskId, not_before: Instant) {
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.set_state(task, TaskState::Ready { not_before });
        }
    }

    /// Counts a failure that may not repeat itself.
    fn try_again(
        &mut self,
        job: &JobId,
        task: TaskId,
        worker: &str,
        error: &RowError,
        now: Instant,
        options: &CoordinatorOptions,
    ) -> Verdict {
        let Some(open) = self.jobs.get_mut(job).and_then(|entry| entry.task_mut(task)) else {
            return Verdict::Acknowledge;
        };
        open.failures += 1;
        let failures = open.failures;
        if failures >= options.max_attempts {
            return self.give_up(job, task, worker, error, options);
        }
        info!(job_id = %job, task_id = %task, failures, code = error.code, cause = error.message, "task will be tried again");
        self.release(job, task, now + options.backoff(failures));
        Verdict::Acknowledge
    }

    /// Isolates the row at fault, or ends it with its error.
    fn give_up(
        &mut self,
        job: &JobId,
        task: TaskId,
        worker: &str,
        error: &RowError,
        options: &CoordinatorOptions,
    ) -> Verdict {
        let Some(open) = self.jobs.get_mut(job).and_then(|entry| entry.task_mut(task)) else {
            return Verdict::Acknowledge;
        };
        warn!(job_id = %job, task_id = %task, worker_id = worker, code = error.code, cause = error.message, "task failed");
        if open.rows.len() > 1 {
            return self.settle(job, task, Outcome::Split);
        }
        let tries = match open.failures {
            failures if failures >= options.max_attempts => format!(" (tried {failures} times)"),
            _ => String::new(),
        };
        let attempt = open.attempt;
        let error = RowError { code: error.code.clone(), message: format!("{}{tries}", error.message) };
        let result =
            |number, id: &String| RowResult { number, id: id.clone(), error: Some(error), ..Default::default() };
        let rows = open.rows.first().map(|row| result(row.number, &row.id)).into_iter().collect();
        self.settle(job, task, Outcome::Results { attempt, worker: worker.to_owned(), rows })
    }

    fn settle(&mut self, job: &JobId, task: TaskId, outcome: Outcome) -> Verdict {
        if let Some(entry) = self.jobs.get_mut(job) {
            entry.set_state(task, TaskState::Settling);
        }
        Verdict::Settle(Settlement { job: job.clone(), task, outcome })
    }
}

fn dismiss(worker: &str, reference: &TaskRef) -> Verdict {
    let TaskRef { job_id, task_id, attempt } = reference;
    info!(worker_id = worker, job_id, task_id, attempt, "result of an attempt that no longer counts; dropped");
    Verdict::Acknowledge
}
