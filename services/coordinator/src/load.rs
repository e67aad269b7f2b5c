use std::pin::pin;
use std::time::Instant;

use futures::TryStreamExt;
use tracing::info;

use crate::ids::JobId;
use crate::job::{Job, Times};
use crate::journal::Journal;
use crate::{CoordinatorError, CoordinatorOptions};

/// Rebuilds a job from its records; `None` if there is none of this name.
pub(crate) async fn load(
    journal: &Journal,
    id: &JobId,
    now: Instant,
    options: &CoordinatorOptions,
) -> Result<Option<Job>, CoordinatorError> {
    let started = Instant::now();
    let Some((spec, created)) = journal.spec(id).await? else { return Ok(None) };
    let retention = options.retention_ms(&spec);
    let mut job = Job::new(id.clone(), spec, Times { created, ended: 0, retention });
    let mut pages = pin!(journal.pages(id).await?);
    while let Some(page) = pages.try_next().await? {
        job.add_page(page, now)?;
    }
    restore_rounds(journal, &mut job, now).await?;
    let mut splits = journal.splits(id).await?;
    splits.retain(|task| !job.split(*task, 0, now));
    let mut commits = pin!(journal.done(id).await?);
    while let Some((task, done)) = commits.try_next().await? {
        job.commit(task, done, now)?;
        splits.retain(|task| !job.split(*task, 0, now));
    }
    job.restore_failures(&journal.failed_attempts(id).await?);
    restore_end(journal, &mut job).await?;
    let (status, elapsed) = (job.status(), started.elapsed());
    info!(job_id = %id, state = status.state, rows = status.rows, rows_done = status.rows_done, ?elapsed, "job loaded");
    Ok(Some(job))
}

/// Opens the rounds that were open before: results of their shares may follow.
async fn restore_rounds(journal: &Journal, job: &mut Job, now: Instant) -> Result<(), CoordinatorError> {
    if job.training.is_none() {
        return Ok(());
    }
    let id = job.id.clone();
    let mut rounds = pin!(journal.rounds(&id).await?);
    while let Some(record) = rounds.try_next().await? {
        job.round_committed(record, now)?;
    }
    Ok(())
}

async fn restore_end(journal: &Journal, job: &mut Job) -> Result<(), CoordinatorError> {
    if job.is_finished() {
        if let Some(result) = journal.result(&job.id).await? {
            job.set_ended(result.ended_unix_ms);
        }
    } else if let Some(at) = journal.cancelled_at(&job.id).await? {
        job.cancel();
        job.set_ended(at);
    }
    Ok(())
}
