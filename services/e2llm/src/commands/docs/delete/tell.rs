//! What `docs delete` tells of each document.

use std::collections::{HashMap, HashSet};

use e2llm_api::v1::object_outcome::Outcome;
use e2llm_api::v1::{JobStatus, ObjectOutcome};
use serde_json::{Value, json};

use super::Doomed;
use crate::commands::gc::date;
use crate::render::{bytes, clean, count};

/// What became of the objects of some documents, and who holds what was made of them.
#[derive(Debug, Default)]
pub(super) struct Aftermath {
    pub(super) objects: HashMap<String, ObjectOutcome>,
    /// Why objects could not be deleted.
    pub(super) failure: Option<String>,
    /// By document.
    pub(super) jobs: HashMap<String, Vec<JobStatus>>,
    /// Objects that were counted for a document.
    pub(super) counted: HashSet<String>,
}

/// Whether the job can be deleted.
pub(super) fn has_ended(status: &JobStatus) -> bool {
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
    pub(super) fn lines(&self, aftermath: &mut Aftermath) -> Vec<String> {
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

    pub(super) fn json(&self, aftermath: &mut Aftermath) -> Value {
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
}
