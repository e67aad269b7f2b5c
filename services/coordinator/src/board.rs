use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use e2llm_api::v1::{Row, RowError, RowResult, Stage, Task, TaskFailure, TaskRef, TaskSuccess};
use e2llm_api::{ErrorCode, row_error};
use tracing::{info, warn};

use crate::ids::{JobId, TaskId};
use crate::job::Job;
use crate::task::{Claim, TaskState};
use crate::{CoordinatorOptions, measure};

/// All jobs in memory: leases their tasks and judges what workers report. Decides, writes nothing.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub(crate) jobs: BTreeMap<JobId, Job>,
    /// The job that was served last, so that the next one has its turn.
    last_served: Option<JobId>,
    /// Jobs that have ended, oldest first.
    ended: VecDeque<JobId>,
    /// When tasks were last counted for the metrics.
    pub(crate) counted: Option<Instant>,
}

/// An outcome that has to be written before it counts.
#[derive(Debug, PartialEq)]
pub(crate) struct Settlement {
    pub(crate) job: JobId,
    pub(crate) task: TaskId,
    pub(crate) outcome: Outcome,
}

/// What an attempt gave.
#[derive(Debug, PartialEq)]
pub(crate) struct Results {
    /// Its number.
    pub(crate) attempt: u32,
    /// Attempts before it that failed or were lost.
    pub(crate) retries: u32,
    /// Who did it.
    pub(crate) worker: String,
    /// In the order of the task's rows.
    pub(crate) rows: Vec<RowResult>,
    /// The worker's time.
    pub(crate) busy_us: u64,
}

/// What to write.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// One result per row.
    Results(Results),
    /// The attempt failed or was lost: written down, so that no restart forgets it.
    Retry {
        /// Failures so far.
        failures: u32,
        /// When it may be tried again.
        not_before: Instant,
    },
    /// The task is given up as a whole; its rows are tried one by one.
    Split {
        /// Failures that each row begins with.
        failures: u32,
    },
}

/// A worker that asks for tasks.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asker<'a> {
    pub(crate) worker: &'a str,
    pub(crate) stage: Stage,
    pub(crate) slots: u32,
    /// Of its bundle; empty where it does not say.
    pub(crate) fingerprint: &'a str,
}

impl Asker<'_> {
    fn suits(&self, job: &Job) -> bool {
        self.fingerprint.is_empty() || self.fingerprint.starts_with(&job.spec.fingerprint)
    }
}

/// What a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hands {
    Free,
    /// Tasks that nothing speaks against.
    Busy,
    /// One that runs alone.
    Suspect,
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

    /// The task that a worker names, if it holds it.
    pub(crate) fn held_by(&self, worker: &str, reference: &TaskRef) -> Option<(JobId, TaskId)> {
        match self.claim(worker, reference)? {
            (job, task, Claim::Holds) => Some((job, task)),
            _ => None,
        }
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
        let expected = open.rows.unpack();
        if !success.rows.iter().map(|row| row.number).eq(expected.iter().map(|row| row.number)) {
            let error = row_error(ErrorCode::Internal, "the worker returned other rows than the task has");
            return self.give_up(&job, task, worker, &error, options);
        }
        let TaskSuccess { rows, busy_us, .. } = success;
        let results =
            Results { attempt: reference.attempt, retries: open.failures, worker: worker.to_owned(), rows, busy_us };
        self.settle(&job, task, Outcome::Results(results))
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
            if let Some(open) = self.jobs.get_mut(&job).and_then(|job| job.task_mut(task)) {
                open.is_suspect = true;
            }
            measure::lease_expired(task.stage);
            if let Verdict::Settle(settlement) = self.try_again(&job, task, "", &error, now, options) {
                settlements.push(settlement);
            }
        }
        settlements
    }

    /// Leases ready tasks to a worker: jobs of the highest priority first, those of the same priority in turn.
    ///
    /// A task that may have cost a worker its life runs alone, so that no other task is blamed for it again. Until
    /// the worker's hands are free for it, the worker gets nothing else.
    pub(crate) fn assign(&mut self, asker: &Asker<'_>, now: Instant, options: &CoordinatorOptions) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mut hands = self.hands_of(asker.worker);
        while tasks.len() < asker.slots as usize && hands != Hands::Suspect {
            let Some((job, task)) = self.next_in_turn(asker, now) else { break };
            let Some(entry) = self.jobs.get_mut(&job) else { break };
            let spec = entry.spec.clone();
            let Some(open) = entry.task_mut(task) else { break };
            let is_suspect = open.is_suspect;
            if is_suspect && hands != Hands::Free {
                break;
            }
            hands = if is_suspect { Hands::Suspect } else { Hands::Busy };
            self.last_served = Some(job.clone());
            open.lease(asker.worker, now, options.lease);
            tasks.push(Task {
                job_id: job.to_string(),
                task_id: task.to_string(),
                attempt: open.attempt,
                stage: asker.stage.into(),
                spec: Some(spec),
                rows: open.rows.unpack(),
                train: None,
            });
            entry.mark_leased(task);
            if let Some(handed_out) = tasks.last_mut() {
                handed_out.train = entry.train_task(task);
            }
        }
        tasks
    }

    /// Makes a task whose outcome could not be written available again.
    pub(crate) fn unsettle(&mut self, settlement: &Settlement, now: Instant, options: &CoordinatorOptions) {
        match &settlement.outcome {
            Outcome::Results(Results { attempt, worker, .. }) if !worker.is_empty() => {
                self.hold(&settlement.job, settlement.task, worker, *attempt, now, options);
            }
            // The failure counts all the same, until a restart forgets it.
            Outcome::Retry { not_before, .. } => self.release(&settlement.job, settlement.task, *not_before),
            _ => self.release(&settlement.job, settlement.task, now + options.retry_delay),
        }
    }

    /// Tasks of a stage that are not done, and of these those that workers hold.
    pub(crate) fn open_tasks(&self, stage: Stage) -> (usize, usize) {
        let jobs = self.jobs.values().filter(|job| !job.has_ended());
        jobs.map(|job| job.tasks_of(stage)).fold((0, 0), |(open, leased), (o, l)| (open + o, leased + l))
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

    fn hands_of(&self, worker: &str) -> Hands {
        let held = self.jobs.values().flat_map(|job| job.leased_to(worker));
        held.fold(Hands::Free, |hands, open| match hands {
            Hands::Free | Hands::Busy if !open.is_suspect => Hands::Busy,
            _ => Hands::Suspect,
        })
    }

    fn next_in_turn(&self, asker: &Asker<'_>, now: Instant) -> Option<(JobId, TaskId)> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let (after, until) = match &self.last_served {
            Some(last) => (Excluded(last.clone()), Included(last.clone())),
            None => (Unbounded, Unbounded),
        };
        // Without a last one, the second range would repeat the first.
        let again = self.last_served.is_some().then(|| self.jobs.range((Unbounded, until)));
        let in_turn = self.jobs.range((after, Unbounded)).chain(again.into_iter().flatten());
        let mut best: Option<(&JobId, &Job, TaskId)> = None;
        for (id, job) in in_turn.filter(|(_, job)| job.has_room() && asker.suits(job)) {
            let is_better = best.is_none_or(|(_, other, _)| job.spec.priority > other.spec.priority);
            if is_better && let Some(task) = job.next_ready(asker.stage, now) {
                best = Some((id, job, task));
            }
        }
        best.map(|(id, _, task)| (id.clone(), task))
    }

    /// Makes a task available again after a failure that was written down.
    pub(crate) fn retry(&mut self, job: &JobId, task: TaskId, not_before: Instant) {
        self.release(job, task, not_before);
    }

    /// Whether rows are being submitted to any job.
    pub(crate) fn is_submitting(&self) -> bool {
        self.jobs.values().any(Job::is_submitting)
    }

    /// Forgets a job, so that it is loaded anew.
    pub(crate) fn forget(&mut self, job: &JobId) {
        self.jobs.remove(job);
        self.ended.retain(|ended| ended != job);
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
        let Some(entry) = self.jobs.get_mut(job) else { return Verdict::Acknowledge };
        let spec = entry.spec.clone();
        let Some(open) = entry.task_mut(task) else { return Verdict::Acknowledge };
        open.failures += 1;
        let failures = open.failures;
        if failures >= options.attempts(&spec, open.rows.len()) {
            return self.give_up(job, task, worker, error, options);
        }
        info!(job_id = %job, task_id = %task, failures, code = error.code, cause = error.message, "task will be tried again");
        let not_before = now + options.backoff(failures);
        self.settle(job, task, Outcome::Retry { failures, not_before })
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
        let Some(entry) = self.jobs.get_mut(job) else { return Verdict::Acknowledge };
        let attempts = options.attempts(&entry.spec, 1);
        let Some(open) = entry.task_mut(task) else { return Verdict::Acknowledge };
        warn!(job_id = %job, task_id = %task, worker_id = worker, code = error.code, cause = error.message, "task failed");
        if open.rows.len() > 1 {
            // No row is at fault when a disk is full: each gets one more chance, not a whole round.
            let is_full = ErrorCode::parse(&error.code) == Some(ErrorCode::ResourceExhausted);
            let failures = if is_full { attempts.saturating_sub(1) } else { 0 };
            return self.settle(job, task, Outcome::Split { failures });
        }
        let tries = match open.failures {
            failures if failures > 1 && failures >= attempts => format!(" (tried {failures} times)"),
            _ => String::new(),
        };
        let (attempt, retries) = (open.attempt, open.failures.saturating_sub(1));
        let error = RowError { code: error.code.clone(), message: format!("{}{tries}", error.message) };
        let result = |row: Row| RowResult { number: row.number, id: row.id, error: Some(error), ..Default::default() };
        let rows = open.rows.unpack().into_iter().next().map(result).into_iter().collect();
        let results = Results { attempt, retries, worker: worker.to_owned(), rows, busy_us: 0 };
        self.settle(job, task, Outcome::Results(results))
    }

    fn settle(&mut self, job: &JobId, task: TaskId, outcome: Outcome) -> Verdict {
        if let Some(entry) = self.jobs.get_mut(job) {
            let has_results = matches!(outcome, Outcome::Results(_));
            entry.set_state(task, if has_results { TaskState::Settling } else { TaskState::Failing });
        }
        Verdict::Settle(Settlement { job: job.clone(), task, outcome })
    }
}

fn dismiss(worker: &str, reference: &TaskRef) -> Verdict {
    let TaskRef { job_id, task_id, attempt } = reference;
    info!(worker_id = worker, job_id, task_id, attempt, "result of an attempt that no longer counts; dropped");
    Verdict::Acknowledge
}
