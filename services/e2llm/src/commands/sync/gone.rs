//! Which stored documents a corpus does not hold any more.

use std::collections::HashSet;

use anyhow::Result;
use e2llm_api::v1::{DeleteRequest, DocRecord};
use e2llm_runtime::{RetryPolicy, retry};

use super::super::stored::Pages;
use crate::failure::of_call;
use crate::input::{Key, Report, key};
use crate::local::Services;

/// Documents that were stored before, 16 bytes for each and 16 for each of their records.
#[derive(Debug, Default)]
pub(super) struct Stored(HashSet<Key>);

impl Stored {
    /// Those of a collection.
    pub(super) async fn list(services: &Services, collection: &str) -> Result<Self> {
        let mut stored = Self::default();
        let mut pages = Pages::new(services, collection, Vec::new());
        while let Some(records) = pages.next().await? {
            records.iter().for_each(|record| stored.add(record));
        }
        Ok(stored)
    }

    fn add(&mut self, record: &DocRecord) {
        self.0.insert(key(&record.doc_id));
        self.0.insert(record_key(record));
    }

    fn holds(&self, id: &str) -> bool {
        self.0.contains(&key(id))
    }

    /// Whether the document had a record of the same bundle.
    pub(super) fn holds_record(&self, record: &DocRecord) -> bool {
        self.0.contains(&record_key(record))
    }
}

/// No id holds a slash, so none is taken for a record.
fn record_key(record: &DocRecord) -> Key {
    key(&format!("{}/{}", record.fingerprint, record.doc_id))
}

/// Stored documents that are gone from the corpus, page by page.
pub(super) struct Gone {
    services: Services,
    collection: String,
    pages: Pages,
    /// The last id that was looked at: records of one document follow each other.
    last: String,
}

impl Gone {
    /// Of ids that begin with `prefix`.
    pub(super) fn new(services: &Services, collection: &str, prefix: &str) -> Self {
        Self {
            services: services.clone(),
            collection: collection.to_owned(),
            pages: Pages::new(services, collection, Vec::new()).with_prefix(prefix),
            last: String::new(),
        }
    }

    /// Those of the next page; `None` after the last. What was stored since belongs to somebody else.
    pub(super) async fn next(&mut self, report: &Report, before: &Stored) -> Result<Option<Vec<String>>> {
        let Some(records) = self.pages.next().await? else { return Ok(None) };
        let mut gone = Vec::new();
        for record in records {
            if record.doc_id == self.last {
                continue;
            }
            self.last.clone_from(&record.doc_id);
            if before.holds(&record.doc_id) && !report.names(&record.doc_id) {
                gone.push(record.doc_id);
            }
        }
        Ok(Some(gone))
    }

    /// Deletes documents; returns those that were there.
    pub(super) async fn delete(&self, doc_ids: Vec<String>) -> Result<Vec<String>> {
        if doc_ids.is_empty() {
            return Ok(doc_ids);
        }
        let request = DeleteRequest { collection: self.collection.clone(), doc_ids };
        let call = async || self.services.index().delete(request.clone()).await;
        let answer = retry(&RetryPolicy::default(), "Index.Delete", self.services.address(), call).await;
        let answer = answer.map_err(of_call)?.into_inner();
        // A try whose answer was lost has deleted them too.
        Ok([answer.deleted, answer.unknown].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_of_another_bundle_is_stored_but_has_no_record_of_this_one() {
        let record = |fingerprint: &str, doc_id: &str| DocRecord {
            fingerprint: fingerprint.into(),
            doc_id: doc_id.into(),
            ..Default::default()
        };
        let mut stored = Stored::default();
        stored.add(&record("old", "a"));
        assert!(stored.holds("a") && stored.holds_record(&record("old", "a")));
        assert!(!stored.holds_record(&record("new", "a")) && !stored.holds("b"));
    }
}
