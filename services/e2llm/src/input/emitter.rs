//! The reading thread's side of the queue.

use std::collections::HashSet;

use e2llm_api::v1::RowError;
use e2llm_api::{DocId, ErrorCode, row_error};
use tokio::sync::mpsc;

use super::Part;

/// Nobody reads the parts any more: the job failed or was cancelled.
#[derive(Debug)]
pub(crate) struct Stopped;

/// Sends parts, and sees to it that no id passes twice.
pub(crate) struct Emitter {
    sender: mpsc::Sender<Part>,
    /// The first 16 bytes of the blake3 of each id: a collision needs about 2^64 documents.
    seen: HashSet<[u8; 16]>,
}

impl Emitter {
    pub(super) fn new(sender: mpsc::Sender<Part>) -> Self {
        Self { sender, seen: HashSet::new() }
    }

    /// Checks an id that came from `origin` and remembers it.
    pub(super) fn admit(&mut self, id: &str, origin: &str) -> Result<String, RowError> {
        let checked = DocId::new(id);
        let checked = checked.map_err(|error| row_error(ErrorCode::InvalidId, format!("{origin}: {error}")))?;
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(id.as_bytes()).as_bytes()[..16]);
        if self.seen.insert(key) {
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

    /// Ends a document.
    pub(super) fn document(&mut self, id: String, bytes: u64) -> Result<(), Stopped> {
        self.send(Part::Document { id, bytes })
    }

    /// Sends a question.
    pub(super) fn question(&mut self, id: String, doc_ids: Vec<String>, question: String) -> Result<(), Stopped> {
        self.send(Part::Question { id, doc_ids, question })
    }

    /// Sends a row that failed.
    pub(super) fn fail(&mut self, id: &str, error: RowError) -> Result<(), Stopped> {
        self.send(Part::Failed { id: id.to_owned(), error })
    }

    fn send(&mut self, part: Part) -> Result<(), Stopped> {
        self.sender.blocking_send(part).map_err(|_| Stopped)
    }
}
