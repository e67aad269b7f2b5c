//! `e2llm docs delete`: deletes documents with all that is stored of them alone, and tells what is left.
//!
//! The record goes first; from then on nothing is answered from the document. Then the index deletes the soft prompts
//! and texts that no other document and no job needs, with the same care as garbage collection but without its grace
//! period. What was made of the document stays with the jobs that made it until they expire or are deleted.

use std::collections::{BTreeSet, HashMap, HashSet};

use anyhow::{Result, bail};
use e2llm_api::v1::object_outcome::Outcome;
use e2llm_api::v1::{
    DeleteJobRequest, DeleteRequest, DocRecord, GarbageOptions, JobStatus, JobsOfRequest, ListRequest, ObjectOutcome,
};
use e2llm_runtime::retry;
use serde_json::{Value, json};

use super::super::gc::{collect, date};
use super::{Docs, PAGE};
use crate::cli::DeleteArgs;
use crate::failure::{of_call, warn_line};
use crate::output::print_line;
use crate::render::{bytes, clean, count};

/// Documents in one call.
const BATCH: usize = 500;
/// Objects in one call: for each such call the index reads all its records.
const OBJECTS: usize = 10_000;
/// Records looked at for those of one document.
const OF_ONE: u32 = 20;

/// A document to delete, with what its records refer to.
#[derive(Debug, Default)]
struct Doomed {
    id: String,
    objects: BTreeSet<String>,
}

/// What became of the objects of some documents, and who holds what was made of them.
#[derive(Debug, Default)]
struct Aftermath {
    objects: HashMap<String, ObjectOutcome>,
    /// Why objects could not be deleted.
    failure: Option<String>,
    /// By document.
    jobs: HashMap<String, Vec<JobStatus>>,
    /// Objects that were counted for a document.
    counted: HashSet<String>,
}

/// Deletes; returns for how many documents it failed.
pub(super) async fn run(docs: &Docs<'_>, args: &DeleteArgs) -> Result<usize> {
    let doomed = if args.ids.is_empty() { docs.selected(args).await? } else { docs.named(args).await? };
    if doomed.is_empty() {
        docs.note(&format!("no documents like that in collection {}", docs.app.settings.collection));
    }
    let mut failures = 0;
    let mut rest = doomed.as_slice();
    while !rest.is_empty() {
        let (group, later) = rest.split_at(group_size(rest));
        failures += docs.delete_group(group, args.outputs).await?;
        rest = later;
    }
    if failures < doomed.len() && !docs.app.settings.json {
        docs.note("the index's log still names deleted documents, with their metadata and kept summaries");
    }
    Ok(failures)
}

/// How many of the documents go into one call, by their objects.
fn group_size(documents: &[Doomed]) -> usize {
    let mut objects = 0;
    let fits = |doomed: &&Doomed| {
        objects += doomed.objects.len();
        objects <= OBJECTS
    };
    documents.iter().take_while(fits).count().max(1)
}

impl Docs<'_> {
    /// The documents of these ids, whether or not they exist.
    async fn named(&self, args: &DeleteArgs) -> Result<Vec<Doomed>> {
        let mut seen = HashSet::new();
        let mut doomed = Vec::new();
        for id in args.ids.iter().filter(|id| seen.insert(id.as_str())) {
            // all records of one document, of whatever bundle, come first among those whose ids begin so
            let request = ListRequest { id_prefix: id.to_string(), page_size: OF_ONE, ..self.all() };
            let mut found = self.gather(request, |record| record.doc_id == id.as_str()).await?;
            doomed.push(found.pop().unwrap_or_else(|| Doomed { id: id.to_string(), ..Doomed::default() }));
        }
        Ok(doomed)
    }

    /// The documents that prefix and conditions select.
    async fn selected(&self, args: &DeleteArgs) -> Result<Vec<Doomed>> {
        let id_prefix = args.prefix.clone().unwrap_or_default();
        let request = ListRequest { id_prefix, r#where: args.conditions.clone(), page_size: PAGE, ..self.all() };
        let mut doomed = self.gather(request, |_| true).await?;
        if !args.yes && !doomed.is_empty() {
            let number = count(doomed.len() as u64);
            bail!("{number} documents would be deleted, and cannot come back; add --yes to delete them");
        }
        if !args.conditions.is_empty() {
            // a record of another bundle may have other metadata, and goes too
            let ids: Vec<String> = doomed.iter().map(|doomed| doomed.id.clone()).collect();
            doomed.clear();
            for id in ids {
                let request = ListRequest { id_prefix: id.clone(), page_size: OF_ONE, ..self.all() };
                doomed.extend(self.gather(request, |record| record.doc_id == id).await?);
            }
        }
        Ok(doomed)
    }

    fn all(&self) -> ListRequest {
        ListRequest { collection: self.collection(), ..Default::default() }
    }

    /// The documents of the list, as long as `wanted`.
    async fn gather(&self, mut request: ListRequest, wanted: impl Fn(&DocRecord) -> bool) -> Result<Vec<Doomed>> {
        let mut doomed: Vec<Doomed> = Vec::new();
        loop {
            let call = async || self.services.index().list(request.clone()).await;
            let page = retry(&self.policy, "Index.List", self.services.address(), call).await.map_err(of_call)?;
            let page = page.into_inner();
            for record in &page.records {
                if !wanted(record) {
                    return Ok(doomed);
                }
                if doomed.last().is_none_or(|last| last.id != record.doc_id) {
                    doomed.push(Doomed { id: record.doc_id.clone(), ..Doomed::default() });
                }
                if let Some(last) = doomed.last_mut() {
                    last.objects.extend(objects_of(record));
                }
            }
            if page.next_page_token.is_empty() {
                return Ok(doomed);
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn delete_group(&self, group: &[Doomed], outputs: bool) -> Result<usize> {
        let mut deleted = HashSet::new();
        for batch in group.chunks(BATCH) {
            let doc_ids = batch.iter().map(|doomed| doomed.id.clone()).collect();
            let request = DeleteRequest { collection: self.collection(), doc_ids };
            let call = async || self.services.index().delete(request.clone()).await;
            let done = retry(&self.policy, "Index.Delete", self.services.address(), call).await.map_err(of_call)?;
            deleted.extend(done.into_inner().deleted);
        }
        let gone: Vec<&Doomed> = group.iter().filter(|doomed| deleted.contains(&doomed.id)).collect();
        let mut aftermath = self.sweep(&gone).await;
        self.find_outputs(&gone, outputs, &mut aftermath).await?;
        let mut failures = 0;
        for doomed in group {
            if deleted.contains(&doomed.id) {
                failures += usize::from(aftermath.failure.is_some());
                self.tell(doomed, &mut aftermath)?;
            } else {
                failures += 1;
                self.fail(&doomed.id)?;
            }
        }
        Ok(failures)
    }

    /// The records are gone already: a failure here is told with them.
    async fn sweep(&self, gone: &[&Doomed]) -> Aftermath {
        let only: BTreeSet<String> = gone.iter().flat_map(|doomed| doomed.objects.iter().cloned()).collect();
        if only.is_empty() {
            return Aftermath::default();
        }
        let options = GarbageOptions { dry_run: false, grace_s: 0, only: only.into_iter().collect() };
        match collect(self.services, options, |_| {}).await {
            Ok(report) => Aftermath {
                objects: report.objects.into_iter().map(|told| (told.name.clone(), told)).collect(),
                ..Aftermath::default()
            },
            Err(error) => Aftermath { failure: Some(format!("{error:#}")), ..Aftermath::default() },
        }
    }

    async fn find_outputs(&self, gone: &[&Doomed], delete: bool, aftermath: &mut Aftermath) -> Result<()> {
        let mut removed = HashSet::new();
        for batch in gone.chunks(BATCH) {
            let doc_ids = batch.iter().map(|doomed| doomed.id.clone()).collect();
            let request = JobsOfRequest { collection: self.collection(), doc_ids };
            let call = async || self.services.coordinator().jobs_of(request.clone()).await;
            let jobs = retry(&self.policy, "Coordinator.JobsOf", self.services.address(), call).await;
            for job in jobs.map_err(of_call)?.into_inner().jobs {
                let Some(status) = job.status else { continue };
                if delete && has_ended(&status) {
                    self.delete_job(&status.job_id).await?;
                    removed.insert(status.job_id);
                    continue;
                }
                for id in job.doc_ids {
                    aftermath.jobs.entry(id).or_default().push(status.clone());
                }
            }
        }
        for job in removed {
            self.note(&format!("deleted job {} with its results", clean(&job)));
        }
        Ok(())
    }

    async fn delete_job(&self, job: &str) -> Result<()> {
        let request = DeleteJobRequest { job_id: job.to_owned() };
        let call = async || self.services.coordinator().delete_job(request.clone()).await;
        retry(&self.policy, "Coordinator.DeleteJob", self.services.address(), call).await.map_err(of_call)?;
        Ok(())
    }

    fn tell(&self, doomed: &Doomed, aftermath: &mut Aftermath) -> Result<()> {
        if self.app.settings.json {
            return print_line(&doomed.json(aftermath).to_string());
        }
        if let Some(failure) = &aftermath.failure {
            warn_line(&format!("error: soft prompts and texts are still there: {failure}; `e2llm gc` deletes them"));
        }
        doomed.lines(aftermath).iter().try_for_each(|line| print_line(line))
    }
}

fn objects_of(record: &DocRecord) -> impl Iterator<Item = String> + '_ {
    let blobs = record.segments.iter().map(|segment| format!("{}/{}", segment.input_key, segment.content_hash));
    blobs.chain(record.text_stored.then(|| record.text_hash.clone()))
}

fn has_ended(status: &JobStatus) -> bool {
    matches!(status.state.as_str(), "succeeded" | "cancelled")
}

/// What an object is to its document.
fn noun(name: &str) -> &'static str {
    if name.contains('/') { "soft prompt" } else { "text" }
}

impl Aftermath {
    /// The bytes of those that are gone, each counted for the first document that had it.
    fn gone(&mut self, doomed: &Doomed) -> (u64, u64) {
        let (mut objects, mut size) = (0, 0);
        for name in &doomed.objects {
            let Some(told) = self.objects.get(name) else { continue };
            if told.outcome() == Outcome::Swept && self.counted.insert(name.clone()) {
                objects += 1;
                size += told.bytes;
            }
        }
        (objects, size)
    }

    /// Those that are still there, each with the reason.
    fn kept<'a>(&'a self, doomed: &'a Doomed) -> impl Iterator<Item = (&'a ObjectOutcome, String)> {
        doomed.objects.iter().filter_map(|name| self.objects.get(name)).filter_map(|told| Some((told, reason(told)?)))
    }

    fn jobs_of(&self, doomed: &Doomed) -> &[JobStatus] {
        self.jobs.get(&doomed.id).map_or(&[], Vec::as_slice)
    }
}

/// Why an object is still there, if it is.
fn reason(told: &ObjectOutcome) -> Option<String> {
    match told.outcome() {
        Outcome::InUse => Some(match &told.user {
            Some(user) => {
                format!("document {} of collection {} needs it", clean(&user.doc_id), clean(&user.collection))
            }
            None => "a document that was committed meanwhile needs it".to_owned(),
        }),
        Outcome::Held => Some("a job without a result needs it; `e2llm gc` deletes it after that has ended".to_owned()),
        Outcome::Submitting => Some("documents are being submitted; `e2llm gc` deletes it later".to_owned()),
        Outcome::Young => Some("it was stored again meanwhile; `e2llm gc` deletes it later".to_owned()),
        Outcome::Swept | Outcome::Absent | Outcome::Unspecified => None,
    }
}

impl Doomed {
    fn lines(&self, aftermath: &mut Aftermath) -> Vec<String> {
        let (objects, size) = aftermath.gone(self);
        let mut lines = vec![format!(
            "deleted {}: its record, and {} of soft prompts and text in {} objects",
            clean(&self.id),
            bytes(size),
            count(objects)
        )];
        for (told, reason) in aftermath.kept(self) {
            lines.push(format!("  {} kept ({}): {reason}", noun(&told.name), bytes(told.bytes)));
        }
        for job in aftermath.jobs_of(self) {
            let id = clean(&job.job_id);
            lines.push(if has_ended(job) {
                let until = date(job.expires_unix_ms);
                format!("  outputs kept by job {id} until {until}; `e2llm jobs delete {id}` deletes them now")
            } else {
                format!("  job {id} works on it ({}); `e2llm jobs cancel {id}` ends that", clean(&job.state))
            });
        }
        lines
    }

    fn json(&self, aftermath: &mut Aftermath) -> Value {
        let (objects, size) = aftermath.gone(self);
        let kept = aftermath.kept(self).map(|(told, reason)| {
            let user = told.user.as_ref().map(|user| json!({"collection": user.collection, "id": user.doc_id}));
            json!({"kind": noun(&told.name), "name": told.name, "bytes": told.bytes, "reason": reason, "user": user})
        });
        let kept: Vec<Value> = kept.collect();
        let jobs = aftermath
            .jobs_of(self)
            .iter()
            .map(|job| json!({"job_id": job.job_id, "state": job.state, "expires_unix_ms": job.expires_unix_ms}));
        let mut object = json!({
            "id": self.id, "deleted": true, "objects_gone": objects, "bytes_gone": size, "kept": kept,
            "outputs_in_jobs": jobs.collect::<Vec<Value>>(),
        });
        if let Some(failure) = &aftermath.failure {
            object["error"] =
                json!({"code": "UNAVAILABLE", "message": format!("{failure}; `e2llm gc` deletes the rest")});
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use e2llm_api::v1::DocKey;

    use super::*;

    fn doomed(id: &str, objects: &[&str]) -> Doomed {
        Doomed { id: id.into(), objects: objects.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn aftermath(outcomes: &[(&str, Outcome)]) -> Aftermath {
        let told = |(name, outcome): &(&str, Outcome)| {
            let told = ObjectOutcome { name: (*name).into(), bytes: 1500, ..Default::default() };
            ((*name).to_owned(), ObjectOutcome { outcome: (*outcome).into(), ..told })
        };
        Aftermath { objects: outcomes.iter().map(told).collect(), ..Default::default() }
    }

    #[test]
    fn an_object_of_two_documents_is_counted_once() {
        let mut after = aftermath(&[("a/b", Outcome::Swept), ("c", Outcome::Swept)]);
        let (first, second) = (doomed("x", &["a/b", "c"]), doomed("y", &["a/b"]));
        assert_eq!((after.gone(&first), after.gone(&second)), ((2, 3000), (0, 0)));
    }

    #[test]
    fn what_is_left_is_told_with_reason_and_end() {
        let mut after = aftermath(&[("a/b", Outcome::InUse), ("c", Outcome::Held)]);
        let user = DocKey { collection: "c".into(), doc_id: "other".into(), ..Default::default() };
        after.objects.get_mut("a/b").unwrap().user = Some(user);
        let ended = JobStatus {
            job_id: "j1".into(),
            state: "succeeded".into(),
            expires_unix_ms: 1_764_094_513_000,
            ..Default::default()
        };
        let running = JobStatus { job_id: "j2".into(), state: "running".into(), ..Default::default() };
        after.jobs.insert("x".into(), vec![ended, running]);
        let lines = doomed("x", &["a/b", "c"]).lines(&mut after);
        assert_eq!(lines[0], "deleted x: its record, and 0 B of soft prompts and text in 0 objects");
        assert_eq!(lines[1], "  soft prompt kept (1.50 kB): document other of collection c needs it");
        assert!(lines[2].starts_with("  text kept (1.50 kB): a job without a result needs it"), "{lines:?}");
        assert!(lines[3].contains("until 2025-11-25T18:15:13Z; `e2llm jobs delete j1`"), "{lines:?}");
        assert!(lines[4].contains("`e2llm jobs cancel j2`"), "{lines:?}");
        let json = doomed("x", &["a/b", "c"]).json(&mut after);
        assert_eq!(
            (&json["kept"][0]["user"]["id"], &json["outputs_in_jobs"][1]["state"]),
            (&json!("other"), &json!("running"))
        );
    }

    #[test]
    fn a_call_never_asks_for_more_objects_than_the_index_takes() {
        let names: Vec<String> = (0..6000).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let documents = [doomed("a", &names), doomed("b", &names), doomed("c", &[])];
        assert_eq!(group_size(&documents), 1);
        assert_eq!(group_size(&documents[1..]), 2);
    }
}
