use std::collections::{BTreeSet, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use e2llm_api::v1::{HeldTextsResponse, JobKind, JobOf};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tonic::Status;
use tracing::{info, warn};

use crate::CoordinatorError;
use crate::engine::Engine;
use crate::ids::JobId;
use crate::journal::unix_ms;

/// Jobs whose records are looked up at the same time.
const PARALLEL_JOBS: usize = 16;

/// What was, or would be, deleted of jobs whose retention is over.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Expired {
    pub(crate) jobs: Vec<JobId>,
    pub(crate) objects: u64,
    pub(crate) bytes: u64,
}

/// Deletes expired jobs now and then until shutdown.
pub(crate) async fn run(engine: Arc<Engine>) {
    let every = engine.options.expire_every.max(Duration::from_secs(1));
    loop {
        if let Err(error) = expire(&engine, false).await {
            warn!(%error, "expired jobs could not be deleted; trying again later");
        }
        tokio::select! {
            () = sleep(every) => {}
            () = engine.shutdown.requested() => return,
        }
    }
}

/// Deletes jobs whose retention is over, with their results; a dry run only counts them.
pub(crate) async fn expire(engine: &Engine, dry_run: bool) -> Result<Expired, CoordinatorError> {
    let jobs = engine.journal.jobs().await?;
    let judged = stream::iter(jobs).map(|job| async move { (is_expired(engine, &job).await, job) });
    let mut judged = judged.buffered(PARALLEL_JOBS);
    let mut expired = Expired::default();
    while let Some((verdict, job)) = judged.next().await {
        match verdict {
            Ok(false) => continue,
            Ok(true) => {}
            Err(error @ CoordinatorError::Corrupt { .. }) => {
                warn!(job_id = %job, %error, "damaged job is kept");
                continue;
            }
            Err(error) => return Err(error),
        }
        let (objects, bytes) = if dry_run { engine.journal.size(&job).await? } else { remove(engine, &job).await? };
        if objects == 0 {
            // a folder without objects, as a local disk may keep it
            continue;
        }
        expired.objects += objects;
        expired.bytes += bytes;
        expired.jobs.push(job);
    }
    Ok(expired)
}

/// Deletes a job that has ended, or that is damaged so that it cannot go on; returns objects and bytes.
pub(crate) async fn delete(engine: &Engine, job: &JobId) -> Result<(u64, u64), CoordinatorError> {
    match engine.status(job).await {
        Ok(status) if matches!(status.state.as_str(), "succeeded" | "cancelled") => {}
        Ok(status) => return Err(CoordinatorError::NotEnded { job: job.to_string(), state: status.state }),
        Err(error @ CoordinatorError::Corrupt { .. }) => warn!(job_id = %job, %error, "damaged job is deleted"),
        Err(error) => return Err(error),
    }
    remove(engine, job).await
}

async fn remove(engine: &Engine, job: &JobId) -> Result<(u64, u64), CoordinatorError> {
    let removed = engine.journal.remove(job).await?;
    engine.board().forget(job);
    info!(job_id = %job, objects = removed.0, bytes = removed.1, "job deleted");
    Ok(removed)
}

/// The jobs of a collection whose rows name any of these documents, each with those it names. Reads all their plans.
pub(crate) async fn jobs_of(
    engine: &Engine,
    collection: &str,
    documents: &HashSet<String>,
) -> Result<Vec<JobOf>, CoordinatorError> {
    let mut jobs = Vec::new();
    for job in engine.journal.jobs().await? {
        match named_by(engine, &job, collection, documents).await {
            Ok(named) if named.is_empty() => {}
            Ok(named) => {
                let status = Some(engine.status(&job).await?);
                jobs.push(JobOf { status, doc_ids: named.into_iter().collect() });
            }
            Err(error @ CoordinatorError::Corrupt { .. }) => {
                warn!(job_id = %job, %error, "damaged job passed over");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(jobs)
}

async fn named_by(
    engine: &Engine,
    job: &JobId,
    collection: &str,
    documents: &HashSet<String>,
) -> Result<BTreeSet<String>, CoordinatorError> {
    let mut named = BTreeSet::new();
    let spec = engine.journal.spec(job).await?.filter(|(spec, _)| spec.collection == collection);
    let Some((spec, _)) = spec else { return Ok(named) };
    // rows of questions have ids of their own
    let rows_are_questions = spec.kind() == JobKind::Ask && spec.question.is_empty();
    let mut pages = pin!(engine.journal.pages(job).await?);
    while let Some(page) = pages.try_next().await? {
        for row in page.rows {
            let own = (!rows_are_questions).then_some(row.id);
            named.extend(own.into_iter().chain(row.doc_ids).filter(|id| documents.contains(id)));
        }
    }
    Ok(named)
}

/// A folder without a spec is what an interrupted deletion has left.
async fn is_expired(engine: &Engine, job: &JobId) -> Result<bool, CoordinatorError> {
    let Some((spec, _)) = engine.journal.spec(job).await? else { return Ok(true) };
    let Some(ended) = engine.journal.ended_at(job).await? else { return Ok(false) };
    Ok(unix_ms() >= ended.saturating_add(engine.options.retention_ms(&spec)))
}

pub(crate) type HeldTexts = mpsc::Sender<Result<HeldTextsResponse, Status>>;

/// Sends the texts that jobs without a result refer to: cancelled ones may be resumed.
pub(crate) async fn send_held_texts(engine: Arc<Engine>, texts: HeldTexts) {
    if let Err(error) = try_send_held_texts(&engine, &texts).await {
        // A listener that has gone needs no reason.
        let _ = texts.send(Err(error.into())).await;
    }
}

async fn try_send_held_texts(engine: &Engine, texts: &HeldTexts) -> Result<(), CoordinatorError> {
    // Before plans are read: what is submitted later finds garbage collection announced, and waits.
    let submitting = engine.board().is_submitting();
    if texts.send(Ok(HeldTextsResponse { text_hashes: Vec::new(), submitting })).await.is_err() {
        return Ok(());
    }
    for job in engine.journal.jobs().await? {
        if engine.journal.result(&job).await?.is_some() {
            continue;
        }
        let spec = engine.journal.spec(&job).await?;
        let data = spec.and_then(|(spec, _)| spec.train).map_or(vec![], |train| train.data);
        let text_hashes = data.into_iter().map(|text| text.hash).collect();
        if texts.send(Ok(HeldTextsResponse { text_hashes, submitting: false })).await.is_err() {
            return Ok(());
        }
        let mut pages = pin!(engine.journal.pages(&job).await?);
        while let Some(page) = pages.try_next().await? {
            let text_hashes = page.rows.into_iter().map(|row| row.text_hash).filter(|hash| !hash.is_empty()).collect();
            if texts.send(Ok(HeldTextsResponse { text_hashes, submitting: false })).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
