//! What must hold after a run, whatever happened during it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2llm_api::v1::{BatchGetRequest, DeleteRequest, DocKey, DocRecord, JobKind, RowResult};
use e2llm_runtime::{RetryPolicy, retry};

use crate::corpus;
use crate::fleet::Fleet;
use crate::inject::Fired;
use crate::job::{Job, Outcome, Progress};
use crate::plan::{Plan, Role};

/// How long the coordinator may take to write a job's result after its last row.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// What undisturbed runs gave.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    /// Summaries and answers, by kind of job and document.
    texts: BTreeMap<(i32, String), String>,
    /// Names of the soft prompts, by document.
    prompts: BTreeMap<String, Vec<String>>,
}

/// A row that must have failed, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpectedError {
    pub(crate) id: String,
    pub(crate) code: &'static str,
    pub(crate) message: &'static str,
    pub(crate) attempts: u32,
}

impl Reference {
    /// Runs one job of each kind without a fault.
    pub(crate) async fn of(fleet: &Fleet) -> Result<Self> {
        let mut reference = Self::default();
        for kind in [JobKind::Encode, JobKind::Summarize, JobKind::Ask] {
            fleet.clean().await?;
            let id = format!("reference-{}", kind as i32);
            let job = Job { id, kind, documents: corpus::documents(), max_attempts: 0 };
            let outcome = job.run(&fleet.endpoint(Role::Coordinator)?, &Progress::default()).await?;
            ensure!(outcome.status.rows_failed == 0, "the undisturbed job has failed rows: {:?}", outcome.rows);
            let prompts = stored_prompts(fleet, &job).await?;
            ensure!(prompts.len() == job.documents.len(), "an undisturbed job lost soft prompts: {prompts:?}");
            let same = reference.prompts.is_empty() || reference.prompts == prompts;
            ensure!(same, "two undisturbed runs encoded differently");
            reference.prompts = prompts;
            let texts = outcome.rows.into_iter().map(|row| ((kind as i32, row.id), row.text));
            reference.texts.extend(texts);
            forget(fleet, &job).await?;
        }
        let answers = reference.texts.iter().filter(|((kind, _), _)| *kind != JobKind::Encode as i32);
        let empty: Vec<_> = answers.filter(|(_, text)| text.is_empty()).collect();
        ensure!(empty.is_empty(), "an undisturbed job gave empty texts: {empty:?}");
        Ok(reference)
    }
}

/// Deletes a job's documents from the index, so that its snapshots stay small.
pub(crate) async fn forget(fleet: &Fleet, job: &Job) -> Result<()> {
    let request = DeleteRequest {
        collection: job.collection().to_owned(),
        doc_ids: job.documents.iter().map(|document| document.id.clone()).collect(),
    };
    let endpoint = fleet.endpoint(Role::Index)?;
    retry(&patient(), "Index.Delete", "the index", || {
        let (mut index, request) = (endpoint.index(), request.clone());
        async move { index.delete(request).await }
    })
    .await?;
    Ok(())
}

/// Everything that does not hold.
pub(crate) async fn violations(
    fleet: &Fleet,
    plan: &Plan,
    job: &Job,
    outcome: &Outcome,
    fired: &Fired,
) -> Result<Vec<String>> {
    let mut wrong = rows(fleet, job, outcome, fired.error.as_ref());
    wrong.extend(counts(job, outcome, fired));
    wrong.extend(prompts(fleet, job, fired.error.as_ref()).await?);
    wrong.extend(parts(fleet, job).await?);
    if fired.error.is_none() {
        wrong.extend(repeated(fleet, plan, job, fired).await?);
    }
    Ok(wrong)
}

/// One result per row, in order, and each as in the undisturbed run.
fn rows(fleet: &Fleet, job: &Job, outcome: &Outcome, error: Option<&ExpectedError>) -> Vec<String> {
    let numbers: Vec<(u64, &str)> = outcome.rows.iter().map(|row| (row.number, row.id.as_str())).collect();
    let expected: Vec<(u64, &str)> = (0..).zip(job.documents.iter().map(|document| document.id.as_str())).collect();
    if numbers != expected {
        return vec![format!("rows {numbers:?} instead of {expected:?}")];
    }
    let failed = |row: &&RowResult| error.is_some_and(|error| error.id == row.id);
    let (poisoned, sound): (Vec<_>, Vec<_>) = outcome.rows.iter().partition(failed);
    let mut wrong: Vec<String> = sound.into_iter().filter_map(|row| deviation(fleet, job, row)).collect();
    if let (Some(error), [row]) = (error, poisoned.as_slice()) {
        wrong.extend(error.deviation(row));
    }
    wrong
}

impl ExpectedError {
    fn deviation(&self, row: &RowResult) -> Option<String> {
        let Some(error) = &row.error else { return Some(format!("row {} has no error", row.id)) };
        let as_expected =
            error.code == self.code && error.message.contains(self.message) && row.attempts == self.attempts;
        (!as_expected).then(|| format!("row {} failed with {error:?} after {} attempts", row.id, row.attempts))
    }
}

fn deviation(fleet: &Fleet, job: &Job, row: &RowResult) -> Option<String> {
    if let Some(error) = &row.error {
        return Some(format!("row {} failed: {error:?}", row.id));
    }
    let expected = &fleet.reference.texts[&(job.kind as i32, row.id.clone())];
    if row.text != *expected {
        return Some(format!("row {} is {:?} instead of {expected:?}", row.id, row.text));
    }
    let prompts = row.record.as_ref().map(names);
    let is_other = prompts.as_ref().is_some_and(|prompts| *prompts != fleet.reference.prompts[&row.id]);
    is_other.then(|| format!("row {} names the soft prompts {prompts:?}", row.id))
}

fn counts(job: &Job, outcome: &Outcome, fired: &Fired) -> Option<String> {
    let status = &outcome.status;
    let all = job.documents.len() as u64;
    let failed = outcome.rows.iter().filter(|row| row.error.is_some()).count() as u64;
    let encoded = all - u64::from(fired.error.is_some() && fired.fails_encoding);
    let counted = (status.rows, status.rows_done, status.rows_failed, status.rows_encoded);
    (counted != (all, all, failed, encoded))
        .then(|| format!("counts {counted:?} instead of {:?}", (all, all, failed, encoded)))
}

/// The index names the soft prompts of the undisturbed run.
async fn prompts(fleet: &Fleet, job: &Job, error: Option<&ExpectedError>) -> Result<Vec<String>> {
    let stored = stored_prompts(fleet, job).await?;
    let expected = fleet.reference.prompts.iter().filter(|(id, _)| error.is_none_or(|error| error.id != **id));
    Ok(expected
        .filter(|(id, prompts)| stored.get(*id) != Some(*prompts))
        .map(|(id, prompts)| format!("{id} has the soft prompts {:?} instead of {prompts:?}", stored.get(id)))
        .collect())
}

async fn stored_prompts(fleet: &Fleet, job: &Job) -> Result<BTreeMap<String, Vec<String>>> {
    let found = records(fleet, job).await?;
    Ok(found.iter().map(|record| (record.doc_id.clone(), names(record))).collect())
}

/// What the index has of the job's documents.
pub(crate) async fn records(fleet: &Fleet, job: &Job) -> Result<Vec<DocRecord>> {
    let key =
        |id: &String| DocKey { collection: job.collection().to_owned(), doc_id: id.clone(), ..Default::default() };
    let keys = BatchGetRequest { keys: job.documents.iter().map(|document| key(&document.id)).collect() };
    let endpoint = fleet.endpoint(Role::Index)?;
    let policy = patient();
    let found = retry(&policy, "Index.BatchGet", "the index", || {
        let (mut index, keys) = (endpoint.index(), keys.clone());
        async move { index.batch_get(keys).await }
    });
    Ok(found.await?.into_inner().results.into_iter().filter_map(|found| found.record).collect())
}

fn names(record: &DocRecord) -> Vec<String> {
    record.segments.iter().map(|segment| format!("{}/{}", segment.input_key, segment.content_hash)).collect()
}

/// Each finished task has the one part that its record names, and there are no others.
async fn parts(fleet: &Fleet, job: &Job) -> Result<Option<String>> {
    let deadline = Instant::now() + LAST_WORDS;
    while !has_result(fleet, &job.id).await? {
        ensure!(Instant::now() < deadline, "job {} has no result record {LAST_WORDS:?} after its end", job.id);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let task = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
    let of_part = |path: &String| task(path).rsplit_once('-').map_or_else(String::new, |(task, _)| task.to_owned());
    let mut parts: Vec<String> =
        fleet.store.list(&format!("jobs/{}/parts", job.id)).await?.iter().map(of_part).collect();
    let mut done: Vec<String> = fleet.store.list(&format!("jobs/{}/done", job.id)).await?.iter().map(task).collect();
    parts.sort_unstable();
    done.sort_unstable();
    Ok((parts != done).then(|| format!("parts of {parts:?}, but {done:?} are done")))
}

/// Whether a job's final counts are written: until then, work is unfinished.
pub(crate) async fn has_result(fleet: &Fleet, job: &str) -> Result<bool> {
    Ok(fleet.store.exists(&format!("jobs/{job}/result")).await?)
}

/// Failed or lost attempts on record, by task.
pub(crate) async fn failed_attempts(fleet: &Fleet, job: &Job) -> Result<BTreeMap<String, u64>> {
    let mut attempts = BTreeMap::new();
    for path in fleet.store.list(&format!("jobs/{}/attempts", job.id)).await? {
        let name = path.rsplit('/').next().unwrap_or_default();
        let (task, _) = name.rsplit_once('-').context("an attempt's name")?;
        *attempts.entry(task.to_owned()).or_default() += 1;
    }
    Ok(attempts)
}

/// Beside the victims, each task is begun once, and once more for each attempt that failed without one of them.
async fn repeated(fleet: &Fleet, plan: &Plan, job: &Job, fired: &Fired) -> Result<Vec<String>> {
    let failures = failed_attempts(fleet, job).await?;
    let (mut of_victims, mut of_others) = (BTreeMap::<String, u64>::new(), BTreeMap::<String, u64>::new());
    for (process, task) in begun(fleet) {
        let counts = if fired.victims.contains(&process) { &mut of_victims } else { &mut of_others };
        *counts.entry(task).or_default() += 1;
    }
    let count = |counts: &BTreeMap<String, u64>, task: &str| counts.get(task).copied().unwrap_or(0);
    let mut wrong = Vec::new();
    for (task, begun) in &of_others {
        let lost = count(&of_victims, task);
        let failed = count(&failures, task);
        if *begun > 1 + failed.saturating_sub(lost) {
            wrong.push(format!(
                "{task} was begun {begun} times by others, {lost} times by victims, and failed {failed} times"
            ));
        }
    }
    if plan.fault.loses_nothing_of_others() {
        let lost: BTreeSet<&str> = of_victims.keys().map(String::as_str).collect();
        let strange = failures.keys().filter(|task| !lost.contains(task.as_str()));
        wrong.extend(strange.map(|task| format!("an attempt of {task} failed, which the victim did not hold")));
    }
    Ok(wrong)
}

/// Tasks that workers began, with the process.
fn begun(fleet: &Fleet) -> impl Iterator<Item = (u32, String)> {
    let trace = fleet.members.iter().flat_map(|member| member.points.trace());
    trace.filter(|reached| reached.point.ends_with(".task_received")).map(|reached| (reached.process, reached.about))
}

fn patient() -> RetryPolicy {
    RetryPolicy { tries: 20, ..RetryPolicy::default() }
}
