//! The reading thread's side of the queue.

use std::collections::HashSet;

use e2llm_api::v1::{Row, RowError};
use e2llm_api::{DocId, ErrorCode, row_error};
use tokio::sync::mpsc;

use super::Part;

/// Nobody reads the parts any more: the job failed or was cancelled.
#[derive(Debug)]
pub(crate) struct Stopped;

/// Sends parts, and sees to it that no id passes twice.
pub(crate) struct Emitter {
    sender: mpsc::Sender<Part>,
    report: Report,
}

/// What an input held, once it was read to its end.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// [`key`]s of the documents' ids.
    seen: HashSet<Key>,
    /// Of rows that failed, where they have an id.
    failed: HashSet<Key>,
    /// The first failure that hides which documents there are.
    pub(crate) unread: Option<String>,
}

impl Report {
    /// Whether it held no document that could be named.
    pub(crate) fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }

    /// Whether the input names this document, even if its row failed.
    pub(crate) fn names(&self, id: &str) -> bool {
        let key = key(id);
        self.seen.contains(&key) || self.failed.contains(&key)
    }
}

/// The first 16 bytes of the blake3 of an id: a collision needs about 2^64 documents.
pub(crate) type Key = [u8; 16];

/// Stands for an id in sets of many.
pub(crate) fn key(id: &str) -> Key {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
    key
}

impl Emitter {
    pub(super) fn new(sender: mpsc::Sender<Part>) -> Self {
        Self { sender, report: Report::default() }
    }

    /// Checks an id that came from `origin` and remembers it.
    pub(super) fn admit(&mut self, id: &str, origin: &str) -> Result<String, RowError> {
        let checked = DocId::new(id);
        let checked = checked.map_err(|error| row_error(ErrorCode::InvalidId, format!("{origin}: {error}")))?;
        if self.report.seen.insert(key(id)) {
            return Ok(checked.into());
        }
        let message =
            format!("{origin}: id {id:?} stands twice in this input; only its first document is used, rename this one");
        Err(row_error(ErrorCode::DuplicateId, message))
    }

    /// Sends text of the document that follows.
    pub(super) fn piece(&mut self, bytes: Vec<u8>) -> Result<(), Stopped> {
        self.send(Part::Piece(bytes))
    }

    /// Ends a document. `metadata` is the text of a JSON object, or empty.
    pub(super) fn document(&mut self, id: String, bytes: u64, metadata: String) -> Result<(), Stopped> {
        self.send(Part::Document { id, bytes, metadata })
    }

    /// Sends a question.
    pub(super) fn question(&mut self, id: String, doc_ids: Vec<String>, question: String) -> Result<(), Stopped> {
        self.send(Part::Question(Box::new(Row { id, doc_ids, question, ..Row::default() })))
    }

    /// Sends a row that failed; `id` is the document's.
    pub(super) fn fail(&mut self, id: &str, error: RowError) -> Result<(), Stopped> {
        self.report.failed.insert(key(id));
        self.send(Part::Failed { id: id.to_owned(), error })
    }

    /// Sends a failure that hides which documents there are: a source that cannot be read, a row without an id.
    pub(super) fn lose(&mut self, place: &str, error: RowError) -> Result<(), Stopped> {
        self.report.unread.get_or_insert_with(|| error.message.clone());
        self.send(Part::Failed { id: place.to_owned(), error })
    }

    /// What was read.
    pub(super) fn into_report(self) -> Report {
        self.report
    }

    fn send(&mut self, part: Part) -> Result<(), Stopped> {
        self.sender.blocking_send(part).map_err(|_| Stopped)
    }
}
