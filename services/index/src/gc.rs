//! Garbage collection of blobs and texts: mark, wait, sweep.
//!
//! The index collects because it owns the manifests and sees every commit. A run has two steps:
//!
//! ```text
//! find_garbage   records ─► what is used       marks ─► what was unused before       listing ─► what there is
//!                    unused, old, not marked ─► marked now          marked a grace period ago ─► due
//! sweep          (the caller asks the coordinator for the texts that jobs hold, and comes back)
//!                    due, not held, not committed meanwhile ─► deleted, in batches, by the committer
//!                    the rest of the marks is written anew, marks that are done with are removed
//! ```
//!
//! A mark is an object in the store (`gc/marks/…`), so a restart forgets none and a run needs no other state. With a
//! grace period of zero what is unused is due at once and no mark is written.
//!
//! # Why no accepted record ever dangles
//!
//! Commits and deletions are turns of one task, the committer, and never overlap. What remains are orders:
//!
//! * **A commit after the records were read, before the deletion.** From the moment before records are read until the end
//!   of the run the committer notes what every manifest it writes or applies refers to; a batch leaves those out. So a mark is
//!   lifted by a commit. (A mark that was lifted and is unused again before the next run keeps its date: its second grace
//!   period is shorter, nothing more.)
//! * **A commit after the deletion**, by an encoder that found the blob there (`put_blob`, `find_blob`) just before. From
//!   the first deletion in a store on (`gc/swept` is there, written before it) every commit looks whether all it refers
//!   to exists, and is refused with `OBJECT_GONE` if not. The encoder then begins again: the lookup finds nothing, so it
//!   uploads. No set of deleted names has to be remembered, and it does not matter how long an encoder was stopped.
//! * **The index is restarted between mark and sweep.** The run after it reads all records again; marks say when, never
//!   what may be deleted.
//! * **The view is opened again during a run.** Then manifests may have been applied that the run did not see: its next
//!   batch is refused and the run ends with a retriable error.
//!
//! # Why no job loses a text
//!
//! A text belongs to a job from the plan page that names it on, and the coordinator tells those of jobs without a result.
//! Two windows are left, both of a text that was there before:
//!
//! * **Found by a submission, its page not yet written.** The announcement `gc/sweeping` is written *before* the caller is
//!   told to ask the coordinator. A submission first registers, then waits until there is no announcement, then looks
//!   for texts. So either it registered before the coordinator was asked: the answer says that rows are being submitted,
//!   and no text is deleted in this run. Or it registered after that: it sees the announcement and waits.
//! * **A job that finished while the run went on.** It is not held any more, but its records were committed during the
//!   run, and commits are noted.
//!
//! Texts that reach an encoder directly (`Encoder.Encode`) belong to no job. A text that is put again although it is there
//! is written again when it is older than an hour, and the committer looks at the age of each text right before it
//! deletes it: a grace period of more than an hour protects it. With a shorter one it may go before its commit, which
//! is then refused, and the client sends the document again.
//!
//! # Assumptions
//!
//! One index process and one coordinator per store while garbage is collected, as everywhere (the lock of a local
//! store, the lock of the view's directory). Records of another writer are seen up to the start of the run.

mod marks;
mod plan;
mod serve;
mod used;

use std::collections::HashSet;
use std::time::Duration;

use e2llm_api::v1::{self, GarbageProgress, GarbageReport, object_outcome::Outcome};
use e2llm_store::garbage::{ObjectKey, ObjectName};
use tokio::sync::OwnedMutexGuard;
use tracing::{info, warn};

use crate::committer::{Admin, SweepBatch, Swept};
use crate::{IndexError, IndexService};
pub(crate) use marks::Marks;
use plan::{Found, Plan};
pub(crate) use serve::serve;

/// Objects deleted in one turn of the committer: one request to S3, and a fraction of a second for commits to wait.
const BATCH: usize = 1000;

/// Most names in [`GarbageOptions::only`].
const MAX_ONLY: usize = 10_000;

/// Told how far a run is.
type OnProgress = Box<dyn Fn(GarbageProgress) + Send + Sync>;

/// What to collect.
#[derive(Debug, Clone, Default)]
pub struct GarbageOptions {
    /// Only tell what would be done.
    pub dry_run: bool,
    /// Objects younger than this are left alone; others are deleted this long after they were marked.
    pub grace: Duration,
    /// These alone, without marks; empty: all there are.
    pub only: Vec<ObjectName>,
}

impl GarbageOptions {
    fn grace_ms(&self) -> u64 {
        u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Texts that must stay although no record refers to them.
#[derive(Debug, Clone, Default)]
pub struct HeldTexts {
    /// Those of jobs.
    pub texts: HashSet<ObjectKey>,
    /// Rows are being submitted to some job, which may rely on any text.
    pub submitting: bool,
}

/// A run that has found what there is to do. To be ended by [`sweep`](Self::sweep) or [`abandon`](Self::abandon).
#[must_use = "submissions wait until the run is ended"]
pub struct GarbageRun {
    index: IndexService,
    options: GarbageOptions,
    now: u64,
    plan: Plan,
    /// Submissions wait.
    announced: bool,
    progress: OnProgress,
    _turn: OwnedMutexGuard<()>,
}

impl IndexService {
    /// Finds out what nothing refers to. From its return on, what jobs hold may be asked for.
    ///
    /// # Errors
    /// [`IndexError::Down`] while another run goes on; what the view or the store refuses.
    pub async fn find_garbage(&self, options: GarbageOptions) -> Result<GarbageRun, IndexError> {
        self.find_garbage_with(options, Box::new(|_| {})).await
    }

    pub(crate) async fn find_garbage_with(
        &self,
        options: GarbageOptions,
        progress: OnProgress,
    ) -> Result<GarbageRun, IndexError> {
        self.check_writes()?;
        self.check_collects()?;
        if options.only.len() > MAX_ONLY {
            let count = options.only.len();
            return Err(IndexError::invalid(format!("{count} names in only; send at most {MAX_ONLY}")));
        }
        let turn = self.collecting.clone().try_lock_owned();
        let turn = turn.map_err(|_| IndexError::Down("collecting garbage already"))?;
        self.refresh().await?;
        self.shared.live()?.check_owns()?;
        self.administer(Admin::TrackCommits).await?;
        let now = self.clock.now();
        let found = Plan::make(self, &options, now, &progress).await;
        let mut run = GarbageRun {
            index: self.clone(),
            options,
            now,
            plan: Plan::default(),
            announced: false,
            progress,
            _turn: turn,
        };
        let ready = match found {
            Ok(plan) => {
                run.plan = plan;
                run.announce().await
            }
            Err(error) => Err(error),
        };
        match ready {
            Ok(()) => Ok(run),
            Err(error) => {
                run.abandon().await;
                Err(error)
            }
        }
    }
}

impl GarbageRun {
    async fn announce(&mut self) -> Result<(), IndexError> {
        let sweeps_texts = !self.options.dry_run && self.plan.due.iter().any(|found| found.name.is_text());
        if sweeps_texts {
            self.announced = true;
            self.index.log.store().begin_text_sweep(self.now).await?;
        }
        Ok(())
    }

    async fn let_submissions_go_on(&mut self) -> Result<(), IndexError> {
        if self.announced {
            self.index.log.store().end_text_sweep().await?;
            self.announced = false;
        }
        Ok(())
    }

    /// Deletes what is due and not held, marks what is unused now, and tells.
    ///
    /// # Errors
    /// What the store refuses; [`IndexError::Down`] if the view was opened again meanwhile. What was deleted until then
    /// was garbage, the rest is found by the next run.
    pub async fn sweep(mut self, held: HeldTexts) -> Result<GarbageReport, IndexError> {
        let outcome = self.try_sweep(&held).await;
        let mut plan = std::mem::take(&mut self.plan);
        self.end().await;
        outcome?;
        plan.clear_quarantine(self.index.log.store(), &self.options, self.now, &held).await?;
        plan.mark(&held);
        if !self.options.dry_run {
            plan.write_marks(self.index.log.store(), self.now).await?;
        }
        let report = plan.report(self.now, self.options.grace_ms());
        if let (Some(blobs), Some(texts)) = (&report.blobs, &report.texts) {
            info!(dry_run = self.options.dry_run, ?blobs.swept, ?texts.swept, ?blobs.marked, ?texts.marked, "garbage collected");
        }
        Ok(report)
    }

    /// Ends the run without deleting anything.
    pub async fn abandon(mut self) {
        self.end().await;
    }

    async fn try_sweep(&mut self, held: &HeldTexts) -> Result<(), IndexError> {
        let mut due = std::mem::take(&mut self.plan.due);
        due.retain(|found| !self.plan.spare(found, held));
        if self.options.dry_run {
            due.iter().for_each(|found| self.plan.settle(found, Outcome::Swept));
            return Ok(());
        }
        // texts first: submissions wait for them
        due.sort_by_key(|found| !found.name.is_text());
        let (texts, blobs) = due.split_at(due.partition_point(|found| found.name.is_text()));
        let to_sweep = due.len() as u64;
        self.sweep_all(texts, to_sweep).await?;
        self.let_submissions_go_on().await?;
        self.sweep_all(blobs, to_sweep).await
    }

    async fn sweep_all(&mut self, objects: &[Found], to_sweep: u64) -> Result<(), IndexError> {
        let min_age = self.options.grace_ms();
        for batch in objects.chunks(BATCH) {
            let names = batch.iter().map(|found| found.name).collect();
            let request = SweepBatch { names, now: self.now, min_age };
            let outcomes = self.index.administer(|reply| Admin::Sweep(request, reply)).await?;
            for (found, swept) in batch.iter().zip(outcomes) {
                let outcome = match swept {
                    Swept::Deleted => Outcome::Swept,
                    Swept::Committed => Outcome::InUse,
                    Swept::Young => Outcome::Young,
                };
                self.plan.settle(found, outcome);
            }
            (self.progress)(GarbageProgress { looked_at: self.plan.looked_at, swept: self.plan.swept(), to_sweep });
        }
        Ok(())
    }

    async fn end(&mut self) {
        if let Err(error) = self.let_submissions_go_on().await {
            warn!(%error, "submissions wait until the index is started again or collects garbage again");
        }
        if let Err(error) = self.index.administer(Admin::ForgetCommits).await {
            warn!(%error, "garbage collection ended while the index was closed");
        }
    }
}

impl std::fmt::Debug for GarbageRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GarbageRun").field("options", &self.options).finish_non_exhaustive()
    }
}

/// The names of all that a record refers to.
pub(crate) fn names_of(record: &v1::DocRecord) -> impl Iterator<Item = ObjectName> + '_ {
    let blobs = record.segments.iter().map(|segment| format!("{}/{}", segment.input_key, segment.content_hash));
    let text = record.text_stored.then(|| record.text_hash.clone());
    // records were checked when they were committed
    blobs.chain(text).filter_map(|name| ObjectName::parse(&name).ok())
}
