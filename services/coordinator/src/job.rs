use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use e2llm_api::v1::{JobKind, JobSpec, JobStatus, Row, Stage};
use tokio::sync::watch;
use tracing::warn;

use crate::CoordinatorError;
use crate::ids::{JobId, TaskId};
use crate::planning::Planning;
use crate::records::{DoneRecord, PlanPage, TaskCut};
use crate::task::{OpenTask, TaskState};
use crate::training::Training;

/// Source number of a row that has no final result yet.
const PENDING: u32 = u32::MAX;

/// One job in memory. Everything but leases follows from its records: [`Job::add_page`], [`Job::split`] and
/// [`Job::commit`] are called with the same records while it runs and while it is loaded.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) spec: JobSpec,
    kind: JobKind,
    times: Times,
    pub(crate) rows: FinalRows,
    sources: Vec<Source>,
    pub(crate) tasks: BTreeMap<TaskId, OpenTask>,
    leased: BTreeSet<TaskId>,
    /// Present until the last page is planned.
    planning: Option<Planning>,
    pub(crate) training: Option<Training>,
    is_cancelled: bool,
    counts: Counts,
    changed: watch::Sender<()>,
}

/// For each row, where its final result is: an index into a job's sources.
#[derive(Debug, Default)]
pub(crate) struct FinalRows(Vec<u32>);

impl FinalRows {
    /// Whether the row has its final result.
    pub(crate) fn is_final(&self, number: u64) -> bool {
        usize::try_from(number).ok().and_then(|index| self.0.get(index)).is_some_and(|source| *source != PENDING)
    }
}

/// The object that holds a row's final result.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// A plan page: the row came with an error.
    Page(u32),
    /// A part, by its name among the job's parts.
    Part(Box<str>),
}

/// When what happened, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Times {
    pub(crate) created: u64,
    /// 0 while the job goes on.
    pub(crate) ended: u64,
    /// How long the job is kept after its end.
    pub(crate) retention: u64,
}

#[derive(Debug, Default)]
struct Counts {
    encoded: u64,
    done: u64,
    failed: u64,
    source_tokens: u64,
    generated_tokens: u64,
    retries: u64,
    encode_busy_us: u64,
    decode_busy_us: u64,
}

impl Job {
    pub(crate) fn new(id: JobId, spec: JobSpec, times: Times) -> Self {
        Self {
            kind: spec.kind(),
            training: spec.train.clone().map(Training::new),
            id,
            spec,
            times,
            rows: FinalRows::default(),
            sources: Vec::new(),
            tasks: BTreeMap::new(),
            leased: BTreeSet::new(),
            planning: Some(Planning::default()),
            is_cancelled: false,
            counts: Counts::default(),
            changed: watch::Sender::new(()),
        }
    }

    /// Adds planned rows and the tasks they are cut into.
    pub(crate) fn add_page(&mut self, page: PlanPage, not_before: Instant) -> Result<(), CoordinatorError> {
        let Some(planning) = &mut self.planning else { return Err(self.corrupt("a page follows the last one")) };
        let source = u32::try_from(self.sources.len()).unwrap_or(PENDING);
        self.sources.push(Source::Page(planning.pages));
        planning.add(&page.rows);
        let first_row = self.row_count();
        for row in &page.rows {
            let failed = row.error.is_some();
            self.rows.0.push(if failed { source } else { PENDING });
            self.counts.done += u64::from(failed);
            self.counts.failed += u64::from(failed);
        }
        if page.last {
            self.planning = None;
        }
        let row_at = |number: u64| page.rows.get(usize::try_from(number.checked_sub(first_row)?).ok()?).cloned();
        self.open_tasks(&page.tasks, row_at, not_before)?;
        self.notify();
        Ok(())
    }

    /// Turns a task into one task per row, each with so many failures; says whether it was open.
    pub(crate) fn split(&mut self, task: TaskId, failures: u32, not_before: Instant) -> bool {
        let Some(open) = self.tasks.remove(&task) else { return false };
        self.leased.remove(&task);
        for row in open.rows.unpack() {
            let single_id = task.split_off(row.number);
            let single = OpenTask { failures, is_suspect: open.is_suspect, ..OpenTask::new(vec![row], not_before) };
            self.tasks.insert(single_id, single);
        }
        self.notify();
        true
    }

    /// Takes over a committed outcome: its rows are final or go to the next stage.
    pub(crate) fn commit(&mut self, task: TaskId, done: DoneRecord, now: Instant) -> Result<(), CoordinatorError> {
        let Some(open) = self.tasks.remove(&task) else {
            warn!(job_id = %self.id, task_id = %task, "commit of a task that is not open; ignored");
            return Ok(());
        };
        self.leased.remove(&task);
        let source = u32::try_from(self.sources.len()).unwrap_or(PENDING);
        self.sources.push(Source::Part(done.part.rsplit('/').next().unwrap_or_default().into()));
        let is_last = task.stage == self.last_stage();
        let succeeded = if is_last { done.succeeded.as_slice() } else { &[] };
        for number in done.failed.iter().chain(succeeded) {
            self.set_final(*number, source)?;
        }
        self.counts.add(task.stage, &done);
        let rows = if done.next.is_empty() { Vec::new() } else { open.rows.unpack() };
        let mut rows: HashMap<u64, Row> = rows.into_iter().map(|row| (row.number, row)).collect();
        self.open_tasks(&done.next, |number| rows.remove(&number), now)?;
        self.notify();
        Ok(())
    }

    fn set_final(&mut self, number: u64, source: u32) -> Result<(), CoordinatorError> {
        let row = usize::try_from(number).ok().and_then(|index| self.rows.0.get_mut(index));
        match row {
            Some(row) if *row == PENDING => {
                *row = source;
                self.counts.done += 1;
                Ok(())
            }
            _ => Err(self.corrupt("a commit names a row that is not open")),
        }
    }

    pub(crate) fn open_tasks(
        &mut self,
        cuts: &[TaskCut],
        mut row_at: impl FnMut(u64) -> Option<Row>,
        not_before: Instant,
    ) -> Result<(), CoordinatorError> {
        for cut in cuts {
            let rows: Option<Vec<Row>> = cut.rows.iter().map(|number| row_at(*number)).collect();
            let (Ok(task), Some(rows)) = (cut.task_id.parse(), rows) else {
                return Err(self.corrupt("a task names a row that does not precede it"));
            };
            self.tasks.insert(task, OpenTask::new(rows, not_before));
        }
        Ok(())
    }

    /// Gives up everything that is not done.
    pub(crate) fn cancel(&mut self) {
        self.is_cancelled = true;
        self.tasks.clear();
        self.leased.clear();
        self.notify();
    }

    pub(crate) fn open_task(&self, task: TaskId) -> Option<&OpenTask> {
        self.tasks.get(&task)
    }

    pub(crate) fn task_mut(&mut self, task: TaskId) -> Option<&mut OpenTask> {
        self.tasks.get_mut(&task)
    }

    /// Moves an open task to another state.
    pub(crate) fn set_state(&mut self, task: TaskId, state: TaskState) {
        let Some(open) = self.tasks.get_mut(&task) else { return };
        match state {
            TaskState::Leased { .. } => self.leased.insert(task),
            _ => self.leased.remove(&task),
        };
        open.state = state;
    }

    /// Hands no waiting task out before `until`, so that workers that hold one can say so first.
    pub(crate) fn wait_until(&mut self, until: Instant) {
        for open in self.tasks.values_mut() {
            if let TaskState::Ready { not_before } = &mut open.state {
                *not_before = until.max(*not_before);
            }
        }
    }

    /// Takes over how often open tasks have failed. Why is not known any more: each may have cost a worker its life.
    pub(crate) fn restore_failures(&mut self, failures: &HashMap<TaskId, u32>) {
        for (task, open) in &mut self.tasks {
            open.failures = failures.get(task).copied().unwrap_or(open.failures);
            open.is_suspect = open.failures > 0 || task.is_split;
        }
    }

    /// Tasks that a worker holds.
    pub(crate) fn tasks_of(&self, stage: Stage) -> (usize, usize) {
        let open = self.tasks.keys().filter(|task| task.stage == stage).count();
        (open, self.leased.iter().filter(|task| task.stage == stage).count())
    }

    pub(crate) fn leased_to(&self, worker: &str) -> impl Iterator<Item = &OpenTask> {
        let leased = self.leased.iter().filter_map(|task| self.tasks.get(task));
        leased.filter(move |open| matches!(&open.state, TaskState::Leased { worker: holder, .. } if holder == worker))
    }

    /// Tasks whose worker has been silent too long.
    pub(crate) fn expired(&self, now: Instant) -> Vec<TaskId> {
        let is_expired = |task: &&TaskId| self.tasks.get(task).is_some_and(|open| open.is_expired(now));
        self.leased.iter().filter(is_expired).copied().collect()
    }

    /// The first task of `stage` that may be handed out.
    pub(crate) fn next_ready(&self, stage: Stage, now: Instant) -> Option<TaskId> {
        let of_stage = TaskId::new(stage, 0)..;
        let is_ready = |open: &OpenTask| matches!(open.state, TaskState::Ready { not_before } if not_before <= now);
        self.tasks
            .range(of_stage)
            .take_while(|(task, _)| task.stage == stage)
            .find(|(_, open)| is_ready(open))
            .map(|(task, _)| *task)
    }

    pub(crate) fn mark_leased(&mut self, task: TaskId) {
        self.leased.insert(task);
    }

    /// Final results from row `first` on, without a gap: at most `limit`.
    pub(crate) fn final_rows(&self, first: u64, limit: usize) -> Vec<(u64, Source)> {
        let first = usize::try_from(first).unwrap_or(usize::MAX);
        let rows = self.rows.0.iter().enumerate().skip(first).take(limit);
        let sources = rows.map_while(|(number, source)| Some((number as u64, self.sources.get(*source as usize)?)));
        sources.map(|(number, source)| (number, source.clone())).collect()
    }

    pub(crate) fn status(&self) -> JobStatus {
        let counts = &self.counts;
        let state = match () {
            () if self.is_finished() => "succeeded",
            () if self.is_cancelled => "cancelled",
            () if self.planning.is_some() => "planning",
            () => "running",
        };
        JobStatus {
            job_id: self.id.to_string(),
            kind: self.kind.into(),
            state: state.to_owned(),
            rows: self.row_count(),
            rows_encoded: counts.encoded,
            rows_done: counts.done,
            rows_failed: counts.failed,
            source_tokens: counts.source_tokens,
            generated_tokens: counts.generated_tokens,
            collection: self.spec.collection.clone(),
            priority: self.spec.priority,
            created_unix_ms: self.times.created,
            ended_unix_ms: self.times.ended,
            expires_unix_ms: self.times.expires(),
            tasks_open: self.tasks.len() as u64,
            tasks_running: self.leased.len() as u64,
            retries: counts.retries,
            encode_busy_us: counts.encode_busy_us,
            decode_busy_us: counts.decode_busy_us,
            fingerprint: self.spec.fingerprint.clone(),
            train: self.training.as_ref().map(|training| training.status(|row| self.rows.is_final(row))),
        }
    }

    /// Every row is planned and has its result, and every round of training is committed.
    pub(crate) fn is_finished(&self) -> bool {
        let is_trained = self.training.as_ref().is_none_or(Training::is_complete);
        self.planning.is_none() && self.counts.done == self.row_count() && is_trained
    }

    /// Nothing will change any more.
    pub(crate) fn has_ended(&self) -> bool {
        self.is_cancelled || self.is_finished()
    }

    pub(crate) fn row_count(&self) -> u64 {
        self.rows.0.len() as u64
    }

    /// The stage whose results are the job's.
    pub(crate) fn last_stage(&self) -> Stage {
        match self.kind {
            JobKind::Encode => Stage::Encode,
            JobKind::Train => Stage::Train,
            _ => Stage::Decode,
        }
    }

    /// Whether someone is submitting rows.
    pub(crate) fn is_submitting(&self) -> bool {
        self.planning.as_ref().is_some_and(|planning| planning.is_submitting)
    }

    pub(crate) fn planning_mut(&mut self) -> Option<&mut Planning> {
        self.planning.as_mut()
    }

    /// Notes when the job ended; the first time counts.
    pub(crate) fn set_ended(&mut self, unix_ms: u64) {
        if self.times.ended == 0 {
            self.times.ended = unix_ms;
        }
    }

    /// Whether one more of its tasks may run.
    pub(crate) fn has_room(&self) -> bool {
        self.spec.parallelism == 0 || self.leased.len() < self.spec.parallelism as usize
    }

    /// Part names that count.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().filter_map(|source| match source {
            Source::Part(name) => Some(&**name),
            Source::Page(_) => None,
        })
    }

    /// A receiver that learns of every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(crate) fn notify(&self) {
        self.changed.send_replace(());
    }

    pub(crate) fn corrupt(&self, reason: &str) -> CoordinatorError {
        CoordinatorError::Corrupt { path: format!("jobs/{}", self.id), reason: reason.to_owned() }
    }
}

impl Counts {
    fn add(&mut self, stage: Stage, done: &DoneRecord) {
        self.failed += done.failed.len() as u64;
        self.source_tokens += done.source_tokens;
        self.generated_tokens += done.generated_tokens;
        self.retries += u64::from(done.retries);
        match stage {
            Stage::Encode => {
                self.encoded += done.succeeded.len() as u64;
                self.encode_busy_us += done.busy_us;
            }
            Stage::Decode => self.decode_busy_us += done.busy_us,
            // A share says itself what it took.
            Stage::Train | Stage::Unspecified => {}
        }
    }
}

impl Times {
    /// 0 while the end is not known.
    fn expires(self) -> u64 {
        if self.ended == 0 { 0 } else { self.ended.saturating_add(self.retention) }
    }
}
