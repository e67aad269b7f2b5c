//! An open view with the vectors beside it.

use std::sync::Arc;

use e2llm_api::v1::DocRecord;
use e2llm_store::manifest::{Manifest, Position};
use parking_lot::RwLock;
use tracing::warn;

use crate::IndexError;
use crate::dir::IndexDir;
use crate::doc_index::{DocIndex, Effects};
use crate::sled_index::SledIndex;
use crate::vectors::{Nearest, VectorTable};

/// What requests are answered from. Calls block.
#[derive(Debug)]
pub(crate) struct Live {
    index: SledIndex,
    vectors: RwLock<VectorTable>,
    /// The shards that the documents were handed over to, if they were.
    handed_over: RwLock<Option<u32>>,
    /// Held until sled has let go of its files.
    _dir: Arc<IndexDir>,
}

impl Live {
    pub(crate) fn new(index: SledIndex, vectors: VectorTable, dir: Arc<IndexDir>) -> Self {
        Self { index, vectors: RwLock::new(vectors), handed_over: RwLock::default(), _dir: dir }
    }

    /// For reading. Changes go through the methods here, which keep the vectors in step.
    pub(crate) fn index(&self) -> &dyn DocIndex {
        &self.index
    }

    pub(crate) fn position(&self) -> Position {
        self.index.position()
    }

    /// Applies a manifest to records and vectors; durable after [`flush`](Self::flush).
    pub(crate) fn apply(&self, manifest: &Manifest) -> Result<Effects, IndexError> {
        let effects = self.index.apply(manifest)?;
        self.vectors.write().apply(manifest, &effects);
        self.ends_with(manifest);
        Ok(effects)
    }

    /// Notes what the last manifest says about who has the documents.
    pub(crate) fn ends_with(&self, manifest: &Manifest) {
        let now = manifest.hand_over();
        let before = std::mem::replace(&mut *self.handed_over.write(), now);
        if let Some(shards) = now.filter(|_| before != now) {
            warn!(manifest = manifest.position.number, "{}", IndexError::HandedOver { shards });
        }
    }

    /// Fails while the log is being written from other shards': some documents are not there yet.
    pub(crate) fn check_complete(&self) -> Result<(), IndexError> {
        match *self.handed_over.read() {
            Some(0) => Err(IndexError::HandedOver { shards: 0 }),
            _ => Ok(()),
        }
    }

    /// Fails if the documents belong to other shards.
    pub(crate) fn check_owns(&self) -> Result<(), IndexError> {
        self.handed_over.read().map_or(Ok(()), |shards| Err(IndexError::HandedOver { shards }))
    }

    pub(crate) fn flush(&self) -> Result<(), IndexError> {
        self.index.flush()
    }

    /// Lets go of the files. What could not be flushed comes back from the log.
    pub(crate) fn close(self) -> Result<(), IndexError> {
        if let Err(error) = self.index.flush() {
            warn!(%error, "index view not flushed on closing");
        }
        self.index.close();
        Ok(())
    }

    pub(crate) fn load(&self, records: Vec<DocRecord>) -> Result<(), IndexError> {
        let mut vectors = self.vectors.write();
        records.iter().for_each(|record| vectors.put(record));
        self.index.load(records)
    }

    pub(crate) fn finish_load(&self, position: Position) -> Result<(), IndexError> {
        self.index.finish_load(position)
    }

    pub(crate) fn vector_length(&self, collection: &str, fingerprint: &str) -> Option<usize> {
        self.vectors.read().length(collection, fingerprint)
    }

    pub(crate) fn nearest(&self, collection: &str, fingerprint: &str, query: &[f32], limit: usize) -> Vec<Nearest> {
        self.vectors.read().nearest(collection, fingerprint, query, limit)
    }
}

/// Runs blocking work off the async threads. A panic in it counts as a failure of the view.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, IndexError> + Send + 'static,
) -> Result<T, IndexError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(IndexError::View(format!("a worker thread failed: {error}"))),
    }
}
