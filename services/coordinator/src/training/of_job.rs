use std::time::Instant;

use e2llm_api::v1::{MemberRound, ObjectRef, RowResult, ShareProgress, Stage, TrainTask};
use tracing::info;

use super::commit::RoundRecord;
use super::rounds::Due;
use super::schedule::cuts;
use crate::CoordinatorError;
use crate::board::{Board, Outcome, Results, Settlement};
use crate::ids::{JobId, TaskId};
use crate::job::Job;
use crate::task::TaskState;

impl Job {
    /// The open round, if all its rows are final.
    pub(crate) fn take_due_round(&mut self) -> Option<Due> {
        if self.has_ended() {
            return None;
        }
        let (training, rows) = (self.training.as_mut()?, &self.rows);
        training.take_due(|row| rows.is_final(row))
    }

    /// The due round could not be committed.
    pub(crate) fn round_put_back(&mut self) {
        if let Some(training) = &mut self.training {
            training.put_back();
        }
    }

    /// Goes on to the round after the one that `record` commits: its shares are ready.
    pub(crate) fn round_committed(&mut self, record: RoundRecord, now: Instant) -> Result<(), CoordinatorError> {
        let Some(training) = &mut self.training else {
            return Err(self.corrupt("a round of a job that trains nothing"));
        };
        training.commit(record);
        if let Some(rows) = training.open_rows() {
            let planned: Vec<_> = rows.clone().map(|number| training.row(number)).collect();
            let first = rows.start;
            let row_at = |number: u64| planned.get(usize::try_from(number - first).ok()?).cloned().flatten();
            self.open_tasks(&cuts(rows), row_at, now)?;
        }
        self.notify();
        Ok(())
    }

    /// What a task of training starts from.
    pub(crate) fn train_task(&self, task: TaskId) -> Option<TrainTask> {
        self.training.as_ref().filter(|_| task.stage == Stage::Train)?.task(task.first_row)
    }

    /// The files of the bundle that training has written.
    pub(crate) fn bundle_files(&self) -> Vec<ObjectRef> {
        self.training.as_ref().map_or(Vec::new(), |training| training.bundle_files().to_vec())
    }

    /// Outer rate and momentum of training.
    pub(crate) fn outer(&self) -> (f64, f64) {
        self.training.as_ref().map_or((1.0, 0.0), |training| training.outer())
    }

    /// Shares of the open round that its quorum does not wait for any longer.
    fn late_shares(&mut self, now: Instant) -> Vec<TaskId> {
        let (Some(training), rows) = (self.training.as_mut(), &self.rows) else { return Vec::new() };
        let late = training.late(now, |row| rows.is_final(row));
        let tasks = late.into_iter().map(|row| TaskId::new(Stage::Train, row));
        let may_end = |task: &TaskId| {
            let state = self.tasks.get(task).map(|open| &open.state);
            matches!(state, Some(TaskState::Ready { .. } | TaskState::Leased { .. }))
        };
        tasks.filter(may_end).collect()
    }
}

impl Board {
    /// Takes down how far shares are that their worker still holds.
    pub(crate) fn note_progress(&mut self, worker: &str, progress: Vec<ShareProgress>) {
        for ShareProgress { task, steps, so_far } in progress {
            let Some((job, task)) = task.and_then(|reference| self.held_by(worker, &reference)) else { continue };
            if let Some(job) = self.jobs.get_mut(&job)
                && let Some(training) = &mut job.training
            {
                training.note(task.first_row, steps, so_far.unwrap_or_default());
                job.notify();
            }
        }
    }

    /// Training jobs that have a round to commit.
    pub(crate) fn in_training(&self) -> Vec<JobId> {
        let has_due =
            |job: &&Job| job.training.as_ref().is_some_and(|training| training.is_due(|row| job.rows.is_final(row)));
        self.jobs.values().filter(has_due).map(|job| job.id.clone()).collect()
    }

    /// Ends shares that come too late for their round: the others have gone on without them.
    pub(crate) fn leave_out(&mut self, now: Instant) -> Vec<Settlement> {
        let mut settlements = Vec::new();
        for job in self.jobs.values_mut().filter(|job| job.training.is_some() && !job.has_ended()) {
            for task in job.late_shares(now) {
                let Some(open) = job.open_task(task) else { continue };
                info!(job_id = %job.id, task_id = %task, "share comes too late and is left out of its round");
                let left_out = Some(MemberRound { left_out: true, ..MemberRound::default() });
                let rows = open.rows.unpack().into_iter();
                let rows = rows.map(|row| RowResult {
                    number: row.number,
                    id: row.id,
                    member: left_out.clone(),
                    ..RowResult::default()
                });
                let results = Results {
                    attempt: open.attempt,
                    retries: open.failures,
                    worker: String::new(),
                    rows: rows.collect(),
                    busy_us: 0,
                };
                job.set_state(task, TaskState::Settling);
                settlements.push(Settlement { job: job.id.clone(), task, outcome: Outcome::Results(results) });
            }
        }
        settlements
    }
}
