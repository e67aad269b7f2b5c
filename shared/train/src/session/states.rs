//! What a frozen encoder says of chunks, kept in memory.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use e2llm_model::{Adapter, ContentRows, TextEncoder};

use super::Tokenized;
use crate::error::Result;

/// Features `[pieces, 2·d_enc]` of chunks by the hash of their text, up to a limit of bytes.
///
/// What came first stays: with samples drawn at random from a corpus that does not fit, nothing kept is more likely to come
/// again than anything else, and an order of eviction would only cost. Every chunk is encoded alone, kept or not, so that
/// results are the same bits with any limit.
#[derive(Default)]
pub(crate) struct StateCache {
    limit: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    bytes: usize,
    features: HashMap<blake3::Hash, Tensor>,
}

impl StateCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, kept: Mutex::default() }
    }

    /// Features of the chunks, one after the other: `[Σ pieces, 2·d_enc]`, f32.
    pub(crate) fn features(&self, encoder: &TextEncoder, chunks: &[&str], tokens: &Tokenized) -> Result<Tensor> {
        let all = chunks.iter().zip(&tokens.sequences).map(|(chunk, ids)| self.of_chunk(encoder, chunk, ids));
        Ok(Tensor::cat(&all.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn of_chunk(&self, encoder: &TextEncoder, chunk: &str, ids: &[u32]) -> Result<Tensor> {
        let encode = || {
            let states = encoder.states(&[ids.to_vec()])?;
            Ok(Adapter::features(&states, &ContentRows::inside_specials(&states.lengths))?)
        };
        if self.limit == 0 {
            return encode();
        }
        let key = blake3::hash(chunk.as_bytes());
        // A thread that panicked cannot have left a half-inserted tensor behind.
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(features) = lock().features.get(&key) {
            return Ok(features.clone());
        }
        let features = encode()?;
        let bytes = features.elem_count() * size_of::<f32>();
        let mut kept = lock();
        if kept.bytes + bytes <= self.limit && kept.features.insert(key, features.clone()).is_none() {
            kept.bytes += bytes;
        }
        Ok(features)
    }
}
