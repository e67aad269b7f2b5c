//! `e2llm docs delete`: deletes documents with all that is stored of them alone, and tells what is left.
//!
//! The record goes first; from then on nothing is answered from the document. Then the index deletes the soft prompts
//! and texts that no other document and no job needs, with the same care as garbage collection but without its grace
//! period. What was made of the document stays with the jobs that made it until they expire or are deleted.

mod tell;

use std::collections::{BTreeSet, HashSet};

use anyhow::{Result, bail};
use e2llm_api::v1::{DeleteJobRequest, DeleteRequest, DocRecord, GarbageOptions, JobsOfRequest, ListRequest};
use e2llm_runtime::retry;

use super::super::gc::collect;
use super::{Docs, PAGE};
use crate::cli::DeleteArgs;
use crate::failure::{of_call, warn_line};
use crate::output::print_line;
use crate::render::{clean, count};
use tell::{Aftermath, has_ended};

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

#[cfg(test)]
mod tests {
    use super::*;

    fn doomed(id: &str, objects: &[&str]) -> Doomed {
        Doomed { id: id.into(), objects: objects.iter().map(|name| (*name).to_owned()).collect() }
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
