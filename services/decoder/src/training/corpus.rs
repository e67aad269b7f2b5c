use std::sync::Arc;

use e2llm_api::v1::TextRef;
use e2llm_store::{Store, StoreError};
use e2llm_train::Corpus;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::sync::Mutex;

/// Blocks fetched at the same time.
const PARALLEL: usize = 8;

/// The training data of the job in work, in memory: all of it, since every sample may come from any document.
#[derive(Default)]
pub(super) struct Corpora {
    last: Mutex<Option<(Vec<String>, Arc<Corpus>)>>,
}

impl Corpora {
    /// The documents of these blocks; those of the last call are kept.
    pub(super) async fn get(&self, store: &Store, data: &[TextRef]) -> Result<Arc<Corpus>, CorpusError> {
        let hashes: Vec<String> = data.iter().map(|text| text.hash.clone()).collect();
        let mut last = self.last.lock().await;
        if let Some((_, corpus)) = last.as_ref().filter(|(known, _)| *known == hashes) {
            return Ok(corpus.clone());
        }
        // The old one goes before the new one comes: they may be large.
        *last = None;
        let blocks = stream::iter(hashes.clone()).map(|hash| {
            let store = store.clone();
            async move { store.get_text(&hash).await }
        });
        let mut blocks = blocks.buffered(PARALLEL);
        let mut corpus = Corpus::default();
        while let Some(block) = blocks.try_next().await? {
            corpus.append_lines("training data", block.as_bytes()).map_err(CorpusError::Lines)?;
        }
        corpus.refuse_test().map_err(CorpusError::Lines)?;
        let corpus = Arc::new(corpus);
        *last = Some((hashes, corpus.clone()));
        Ok(corpus)
    }
}

/// Why there are no documents to train on.
#[derive(Debug, thiserror::Error)]
pub(super) enum CorpusError {
    /// A block could not be fetched.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A block holds something else.
    #[error(transparent)]
    Lines(e2llm_train::TrainError),
}
