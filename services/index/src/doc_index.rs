//! What a view of the manifest log can do, whichever way it keeps its records.

use e2llm_api::v1::{self, DocRecord};
use e2llm_store::manifest::{Manifest, Position};

use crate::IndexError;
use crate::filter::Filter;

/// The records as of one manifest. Calls block; one caller at a time changes it, any number read.
///
/// Records are ordered by key: collection, then document id, then fingerprint, each by its bytes.
pub trait DocIndex: Send + Sync {
    /// The last manifest the records include.
    fn position(&self) -> Position;

    /// Applies the manifest that follows [`position`](Self::position), all of it or nothing.
    ///
    /// Put records get the manifest's number as version. They keep the summary of the record they replace if it has the
    /// same text; a summary by itself is kept only if its record is there and has the text that was summarised.
    fn apply(&self, manifest: &Manifest) -> Result<Effects, IndexError>;

    /// Adds records of a snapshot to an empty view. It has no position until [`finish_load`](Self::finish_load).
    fn load(&self, records: Vec<DocRecord>) -> Result<(), IndexError>;

    /// Declares the loaded records complete as of `position`.
    fn finish_load(&self, position: Position) -> Result<(), IndexError>;

    /// The record with this key.
    fn get(&self, key: &RecordKey) -> Result<Option<DocRecord>, IndexError>;

    /// The newest record of a document: greatest version, then latest encoded, then greatest fingerprint.
    fn newest(&self, collection: &str, doc_id: &str) -> Result<Option<DocRecord>, IndexError>;

    /// Records in key order that `query` selects.
    fn list(&self, query: &ListQuery) -> Result<Page, IndexError>;

    /// Returns when everything applied would survive a crash.
    fn flush(&self) -> Result<(), IndexError>;
}

/// What a manifest did to the records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// For each delete of the manifest, in order, the keys of the records it removed.
    pub removed: Vec<Vec<RecordKey>>,
    /// For each summary of the manifest, in order, whether it was kept.
    pub kept: Vec<bool>,
}

/// Names one record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Collection of the document.
    pub collection: String,
    /// The document's id.
    pub doc_id: String,
    /// Bundle fingerprint, ratio included.
    pub fingerprint: String,
}

impl RecordKey {
    /// The key of `record`.
    pub fn of(record: &DocRecord) -> Self {
        Self {
            collection: record.collection.clone(),
            doc_id: record.doc_id.clone(),
            fingerprint: record.fingerprint.clone(),
        }
    }
}

/// Which records to list.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Records of this collection only; `None`: of all.
    pub collection: Option<String>,
    /// Ids that begin so.
    pub id_prefix: String,
    /// Records of this fingerprint only.
    pub fingerprint: Option<String>,
    /// Records after this key only.
    pub after: Option<RecordKey>,
    /// At most so many.
    pub limit: usize,
    /// Stops when the encoded records reach this size in bytes; the first record is always returned.
    pub max_bytes: usize,
    /// Records whose metadata this lets pass only.
    pub filter: Filter,
    /// Stops after looking at so many records, found or not; `None`: looks at all.
    pub look_at: Option<usize>,
    /// Returns records without their summaries.
    pub without_summaries: bool,
}

impl ListQuery {
    /// Whether a page that took `found` records of `bytes` bytes, having looked at `seen`, ends before the next.
    pub(crate) fn is_full(&self, found: usize, bytes: usize, seen: usize) -> bool {
        found >= self.limit || bytes >= self.max_bytes || self.look_at.is_some_and(|most| seen >= most)
    }

    /// The record as the page shows it, if its metadata pass.
    pub(crate) fn shown(&self, mut record: DocRecord) -> Option<DocRecord> {
        if !self.filter.passes(&record.metadata) {
            return None;
        }
        if self.without_summaries {
            record.summary = None;
        }
        Some(record)
    }

    /// Whether filters other than order, size and metadata let `key` pass.
    pub fn selects(&self, key: &RecordKey) -> bool {
        self.collection.as_ref().is_none_or(|collection| *collection == key.collection)
            && key.doc_id.starts_with(&self.id_prefix)
            && self.fingerprint.as_ref().is_none_or(|fingerprint| *fingerprint == key.fingerprint)
            && self.after.as_ref().is_none_or(|after| key > after)
    }
}

/// Some records of a list.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Page {
    /// In key order.
    pub records: Vec<DocRecord>,
    /// Whether there may be more after [`last`](Self::last).
    pub more: bool,
    /// The last record looked at, which the filter may have held back: the next page begins after it.
    pub last: Option<RecordKey>,
}

/// Orders the records of one document by age; see [`DocIndex::newest`].
pub(crate) fn age(record: &DocRecord) -> (u64, u64, &str) {
    (record.version, record.encoded_unix_ms, &record.fingerprint)
}

/// The record that `put` becomes as of manifest `version`, in place of `old`: it keeps a summary of the same text.
pub(crate) fn succeed(old: Option<DocRecord>, put: &DocRecord, version: u64) -> DocRecord {
    let summary = old.filter(|old| old.text_hash == put.text_hash).and_then(|old| old.summary);
    DocRecord { version, summary, ..put.clone() }
}

/// The record with the summary, unless that is of another text.
pub(crate) fn summarised(record: DocRecord, of: &v1::SummaryOf) -> Option<DocRecord> {
    (record.text_hash == of.text_hash).then(|| DocRecord { summary: of.summary.clone(), ..record })
}

/// The record that a summary belongs to.
pub(crate) fn key_of_summary(of: &v1::SummaryOf) -> RecordKey {
    let v1::SummaryOf { collection, doc_id, fingerprint, .. } = of.clone();
    RecordKey { collection, doc_id, fingerprint }
}
