use std::time::Instant;

use tracing::info;

use crate::CoordinatorError;
use crate::ids::JobId;
use crate::job::Job;
use crate::journal::Journal;

/// Rebuilds a job from its records; `None` if there is none of this name.
///
/// No task is handed out before `not_before`, so that workers that hold one can say so first.
pub(crate) async fn load(journal: &Journal, id: &JobId, not_before: Instant) -> Result<Option<Job>, CoordinatorError> {
    let started = Instant::now();
    let Some(spec) = journal.spec(id).await? else { return Ok(None) };
    let mut job = Job::new(id.clone(), spec);
    for page in journal.pages(id).await? {
        job.add_page(page, not_before)?;
    }
    let mut splits = journal.splits(id).await?;
    splits.retain(|task| !job.split(*task, not_before));
    for (task, done) in journal.done(id).await? {
        job.commit(task, done, not_before)?;
        splits.retain(|task| !job.split(*task, not_before));
    }
    if journal.is_cancelled(id).await? && !job.is_finished() {
        job.cancel();
    }
    let (status, elapsed) = (job.status(), started.elapsed());
    info!(job_id = %id, state = status.state, rows = status.rows, rows_done = status.rows_done, ?elapsed, "job loaded");
    Ok(Some(job))
}
