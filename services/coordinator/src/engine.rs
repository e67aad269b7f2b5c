use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use e2llm_api::v1::{JobSpec, JobStatus, RowResult, Stage};
use e2llm_runtime::failpoint::{reach, reach_with};
use e2llm_runtime::{Clock, Shutdown};
use futures::stream::{self, StreamExt};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tracing::{Instrument, info, info_span, warn};

use e2llm_runtime::trace;

use crate::board::{Board, Outcome, Results, Settlement};
use crate::ids::JobId;
use crate::job::Job;
use crate::journal::{Control, Journal, unix_ms};
use crate::load::load;
use crate::measure;
use crate::page::decode_tasks;
use crate::planning::Planning;
use crate::records::{DoneRecord, PlanPage, TaskCut};
use crate::{CoordinatorError, CoordinatorOptions};

type Result<T> = std::result::Result<T, CoordinatorError>;

/// Jobs whose records are looked up at the same time.
const PARALLEL_JOBS: usize = 16;

/// The board and the journal together: what the board decides is written first and counts afterwards.
pub(crate) struct Engine {
    pub(crate) journal: Journal,
    pub(crate) options: CoordinatorOptions,
    pub(crate) shutdown: Shutdown,
    clock: Arc<dyn Clock>,
    board: Mutex<Board>,
    /// Held while a job is loaded, so that none is loaded twice.
    loading: tokio::sync::Mutex<()>,
    encode_ready: Notify,
    decode_ready: Notify,
    train_ready: Notify,
}

/// What became of a request to submit rows.
pub(crate) enum Submitted {
    /// The job is cancelled: no row is needed.
    Before {
        /// Its rows.
        rows: u64,
    },
    /// All rows are planned: those that come are only compared.
    Planned {
        /// The job's rows.
        rows: u64,
        /// What to do with them.
        spec: Box<JobSpec>,
    },
    /// Rows may come.
    Open {
        /// Rows planned by an earlier submission.
        planned: u64,
        /// What to do with them.
        spec: Box<JobSpec>,
    },
}

impl Engine {
    pub(crate) fn new(
        journal: Journal,
        options: CoordinatorOptions,
        clock: Arc<dyn Clock>,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            journal,
            options,
            shutdown,
            clock,
            board: Mutex::default(),
            loading: tokio::sync::Mutex::default(),
            encode_ready: Notify::new(),
            decode_ready: Notify::new(),
            train_ready: Notify::new(),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// The board. Never held while waiting.
    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Loads every job that is not finished. A damaged one is left out and logged.
    pub(crate) async fn load_unfinished(&self) -> Result<()> {
        let jobs = self.journal.jobs().await?;
        let ends = stream::iter(jobs).map(|job| async move { (self.journal.ended_at(&job).await, job) });
        let mut ends = ends.buffered(PARALLEL_JOBS);
        while let Some((ended, job)) = ends.next().await {
            let opened = match ended {
                Ok(Some(_)) => Ok(()),
                Ok(None) => self.open(&job).await,
                Err(error) => Err(error),
            };
            match opened {
                // A folder without a spec is what deletion has left of a job.
                Ok(()) | Err(CoordinatorError::NoSuchJob(_)) => {}
                Err(error @ CoordinatorError::Corrupt { .. }) => warn!(job_id = %job, %error, "job not loaded"),
                Err(error) => return Err(error),
            }
        }
        // Workers can say what they hold only from now on, however long loading took.
        let until = self.now() + self.options.adopt_grace;
        self.board().jobs.values_mut().for_each(|job| job.wait_until(until));
        Ok(())
    }

    /// Makes sure that the job is in memory. Its tasks wait for workers that may hold them already.
    pub(crate) async fn open(&self, id: &JobId) -> Result<()> {
        if self.board().jobs.contains_key(id) {
            return Ok(());
        }
        let _loading = self.loading.lock().await;
        if self.board().jobs.contains_key(id) {
            return Ok(());
        }
        let loaded = load(&self.journal, id, self.now(), &self.options).await?;
        let mut job = loaded.ok_or_else(|| CoordinatorError::NoSuchJob(id.to_string()))?;
        job.wait_until(self.now() + self.options.adopt_grace);
        self.board().jobs.insert(id.clone(), job);
        self.wake_all();
        self.finish_if_complete(id).await;
        Ok(())
    }

    /// Runs `act` on a job in memory.
    pub(crate) fn with_job<T>(&self, id: &JobId, act: impl FnOnce(&mut Job) -> T) -> Result<T> {
        let mut board = self.board();
        let job = board.jobs.get_mut(id).ok_or_else(|| CoordinatorError::NoSuchJob(id.to_string()))?;
        Ok(act(job))
    }

    /// Runs `act` on what planning knows of a job that is being submitted.
    pub(crate) fn with_planning<T>(&self, id: &JobId, act: impl FnOnce(&mut Planning) -> T) -> Result<T> {
        let ended = || CoordinatorError::Cancelled(id.to_string());
        self.with_job(id, |job| if job.has_ended() { None } else { job.planning_mut().map(act) })?.ok_or_else(ended)
    }

    /// The job's counts, from memory or from its result.
    pub(crate) async fn status(&self, id: &JobId) -> Result<JobStatus> {
        if let Some(job) = self.board().jobs.get(id) {
            return Ok(job.status());
        }
        if let Some(status) = self.journal.result(id).await? {
            return Ok(status);
        }
        self.open(id).await?;
        self.with_job(id, |job| job.status())
    }

    /// The counts of all jobs whose ids begin with `prefix`, or of those `unacknowledged` alone. A damaged one is left
    /// out and logged.
    pub(crate) async fn list(&self, prefix: &str, unacknowledged: bool) -> Result<Vec<JobStatus>> {
        let mut all = self.journal.jobs().await?;
        all.retain(|job| job.as_str().starts_with(prefix));
        let mut jobs = Vec::with_capacity(all.len());
        let statuses = stream::iter(all).map(|job| async move { (self.listed(&job, unacknowledged).await, job) });
        let mut statuses = statuses.buffered(PARALLEL_JOBS);
        while let Some((status, job)) = statuses.next().await {
            match status {
                Ok(status) => jobs.extend(status),
                Err(CoordinatorError::NoSuchJob(_)) => {}
                Err(error @ CoordinatorError::Corrupt { .. }) => warn!(job_id = %job, %error, "job not listed"),
                Err(error) => return Err(error),
            }
        }
        Ok(jobs)
    }

    async fn listed(&self, id: &JobId, unacknowledged: bool) -> Result<Option<JobStatus>> {
        if unacknowledged && self.journal.is_acknowledged(id).await? {
            return Ok(None);
        }
        self.status(id).await.map(Some)
    }

    /// Notes that whoever wanted the job's results has them.
    pub(crate) async fn acknowledge(&self, id: &JobId) -> Result<()> {
        // A record of no job would look like one that is half deleted.
        if self.journal.spec(id).await?.is_none() {
            return Err(CoordinatorError::NoSuchJob(id.to_string()));
        }
        self.journal.acknowledge(id).await
    }

    /// Creates the job, or finds it and compares the spec.
    pub(crate) async fn begin_submission(&self, id: &JobId, spec: JobSpec) -> Result<Submitted> {
        let kept = self.journal.create_spec(id, &spec).await?;
        if kept != spec {
            let what = if kept.kind == spec.kind { "spec" } else { "kind" };
            return Err(CoordinatorError::OtherJob { job: id.to_string(), what: what.to_owned() });
        }
        self.open(id).await?;
        reach("coordinator.job_created");
        self.with_job(id, |job| {
            let (rows, is_cancelled) = (job.row_count(), job.has_ended() && !job.is_finished());
            match job.planning_mut() {
                _ if is_cancelled => Ok(Submitted::Before { rows }),
                None => Ok(Submitted::Planned { rows, spec: Box::new(spec) }),
                Some(planning) if planning.is_submitting => Err(CoordinatorError::BeingSubmitted(id.to_string())),
                Some(planning) => {
                    planning.is_submitting = true;
                    Ok(Submitted::Open { planned: rows, spec: Box::new(spec) })
                }
            }
        })?
    }

    pub(crate) fn end_submission(&self, id: &JobId) {
        let ended = self.with_job(id, |job| job.planning_mut().map(Planning::end_submission));
        if let Err(error) = ended {
            warn!(job_id = %id, %error, "submission ended");
        }
    }

    /// Writes a plan page; its tasks are ready when this returns.
    pub(crate) async fn add_page(&self, id: &JobId, page: PlanPage) -> Result<()> {
        let number = self.with_planning(id, |planning| planning.pages)?;
        let page = self.journal.append_page(id, number, page).await?;
        reach("coordinator.page_written");
        let now = self.now();
        self.with_job(id, |job| job.add_page(page, now))??;
        self.wake_all();
        self.finish_if_complete(id).await;
        Ok(())
    }

    /// Cancels the job unless it has ended.
    pub(crate) async fn cancel(&self, id: &JobId) -> Result<JobStatus> {
        let status = self.status(id).await?;
        if matches!(status.state.as_str(), "succeeded" | "cancelled") {
            return Ok(status);
        }
        self.open(id).await?;
        self.journal.control(id, Control::Cancel).await?;
        info!(job_id = %id, "job cancelled");
        let status = self.with_job(id, |job| {
            job.cancel();
            job.set_ended(unix_ms());
            job.status()
        })?;
        self.board().retire(id, self.options.finished_jobs);
        Ok(status)
    }

    /// Takes a cancellation back; a job that was not cancelled stays as it is.
    pub(crate) async fn resume(&self, id: &JobId) -> Result<JobStatus> {
        let status = self.status(id).await?;
        if status.state != "cancelled" {
            return Ok(status);
        }
        self.journal.control(id, Control::Resume).await?;
        info!(job_id = %id, "job resumed");
        self.board().forget(id);
        self.open(id).await?;
        self.with_job(id, |job| job.status())
    }

    /// Writes an outcome. It is written to its end even if the caller goes away; says whether it counts now.
    pub(crate) async fn settle(self: &Arc<Self>, settlement: Settlement) -> bool {
        let engine = Arc::clone(self);
        let (job, stage) = (settlement.job.clone(), settlement.task.stage);
        let span = trace::of_job(info_span!("settle", task_id = %settlement.task), job.as_str());
        let written =
            tokio::spawn(async move { engine.write(settlement).await }.instrument(span)).await.unwrap_or(false);
        if stage == Stage::Train {
            self.advance_apart(job);
        }
        written
    }

    /// Commits the open round of a training job if it is due, without anyone waiting for it.
    pub(crate) fn advance_apart(self: &Arc<Self>, job: JobId) {
        let engine = Arc::clone(self);
        tokio::spawn(async move { engine.advance_training(&job).await });
    }

    async fn write(&self, settlement: Settlement) -> bool {
        let Settlement { job, task, outcome } = &settlement;
        let written = match outcome {
            Outcome::Split { failures } => self.split(&settlement, *failures).await,
            Outcome::Retry { failures, not_before } => self.retry(&settlement, *failures, *not_before).await,
            Outcome::Results(results) => self.commit(&settlement, results).await,
        };
        if let Err(error) = &written {
            warn!(job_id = %job, task_id = %task, %error, "outcome could not be written; it will be reported again");
            self.board().unsettle(&settlement, self.now(), &self.options);
        } else {
            measure::settled(&settlement);
        }
        self.wake_all();
        self.finish_if_complete(job).await;
        written.is_ok()
    }

    async fn split(&self, settlement: &Settlement, failures: u32) -> Result<()> {
        let Settlement { job, task, .. } = settlement;
        self.journal.split(job, *task).await?;
        reach_with("coordinator.split_written", task);
        let now = self.now();
        self.with_job(job, |job| job.split(*task, failures, now))?;
        Ok(())
    }

    async fn retry(&self, settlement: &Settlement, failures: u32, not_before: Instant) -> Result<()> {
        let Settlement { job, task, .. } = settlement;
        self.journal.failed_attempt(job, *task, failures).await?;
        reach_with("coordinator.retry_written", task);
        self.board().retry(job, *task, not_before);
        Ok(())
    }

    async fn commit(&self, settlement: &Settlement, results: &Results) -> Result<()> {
        let Settlement { job, task, .. } = settlement;
        let Results { attempt, retries, worker, rows, busy_us } = results;
        let mut record = DoneRecord::counting(rows);
        record.next = self.next_tasks(job, task.stage, &record)?;
        (record.attempt, record.retries, record.busy_us) = (*attempt, *retries, *busy_us);
        record.worker_id.clone_from(worker);
        let attempts = |row: &RowResult| RowResult { attempts: retries + 1, ..row.clone() };
        let rows = rows.iter().map(attempts).collect();
        record.part = self.journal.write_part(job, *task, *attempt, rows).await?;
        reach_with("coordinator.part_written", task);
        let record = self.journal.commit_done(job, *task, record).await?;
        reach_with("coordinator.task_done", task);
        let now = self.now();
        self.with_job(job, |job| job.commit(*task, record, now))?
    }

    /// Rows of a finished task are ready for the next stage at once.
    fn next_tasks(&self, job: &JobId, stage: Stage, record: &DoneRecord) -> Result<Vec<TaskCut>> {
        let last_stage = self.with_job(job, |job| job.last_stage())?;
        Ok(if stage == last_stage { Vec::new() } else { decode_tasks(&record.succeeded, &self.options) })
    }

    pub(crate) async fn finish_if_complete(&self, id: &JobId) {
        let ended = |job: &mut Job| {
            job.is_finished().then(|| {
                job.set_ended(unix_ms());
                job.status()
            })
        };
        let Ok(Some(status)) = self.with_job(id, ended) else { return };
        reach("coordinator.before_result");
        self.remove_lost_parts(id).await;
        info!(job_id = %id, rows = status.rows, rows_failed = status.rows_failed, "job finished");
        if let Err(error) = self.journal.finish(id, status).await {
            // Counts come from the commits; without its result the job only takes longer to load.
            warn!(job_id = %id, %error, "result could not be written");
        }
        reach("coordinator.result_written");
        self.board().retire(id, self.options.finished_jobs);
    }

    /// What attempts wrote that did not count. Nobody writes more once the job has finished.
    async fn remove_lost_parts(&self, id: &JobId) {
        let kept = self.with_job(id, |job| job.parts().map(str::to_owned).collect());
        let Ok(kept) = kept else { return };
        match self.journal.remove_parts(id, kept).await {
            Ok((0, _)) => {}
            Ok((parts, bytes)) => info!(job_id = %id, parts, bytes, "parts that do not count deleted"),
            Err(error) => warn!(job_id = %id, %error, "parts that do not count are kept until the job expires"),
        }
    }

    fn ready(&self, stage: Stage) -> &Notify {
        match stage {
            Stage::Encode => &self.encode_ready,
            Stage::Decode | Stage::Unspecified => &self.decode_ready,
            Stage::Train => &self.train_ready,
        }
    }

    /// Wakes reports that wait for a task of `stage`.
    pub(crate) fn wake(&self, stage: Stage) {
        self.ready(stage).notify_waiters();
    }

    fn wake_all(&self) {
        self.wake(Stage::Encode);
        self.wake(Stage::Decode);
        self.wake(Stage::Train);
    }

    /// Completes at the next [`Engine::wake`] after this call.
    pub(crate) fn woken(&self, stage: Stage) -> Notified<'_> {
        self.ready(stage).notified()
    }
}
