//! The encoder half of a bundle: text in, soft tokens and chunk vectors out.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;

use crate::adapter::{Adapter, ContentRows, chunk_vectors, unit};
use crate::bundle::Bundle;
use crate::chunk::Chunker;
use crate::cpu::{CpuAdapter, CpuEncoder};
use crate::encoder::{TextEncoder, TokenStates};
use crate::error::{ModelError, Result};
use crate::tokenizer::TextTokenizer;

/// Word pieces encoded together: enough groups of 256 that all threads end at about the same time.
pub const BATCH_TOKENS: usize = 8_192;

/// Chunker, encoder and adapter of a bundle.
#[derive(Debug)]
pub struct DocumentEncoder {
    tokenizer: Arc<TextTokenizer>,
    encoder: Backend,
    d_enc: usize,
    /// The encoder without the bundle's LoRA: what training starts from. Shares what was not changed.
    base: Arc<TextEncoder>,
    adapter: Adapter,
    chunker: Chunker,
}

/// Encoder and adapter in the form that their device computes best.
#[derive(Debug)]
enum Backend {
    /// With the adapter, where that has a form of its own there.
    Cpu(CpuEncoder, Option<Box<CpuAdapter>>),
    Tensors(TextEncoder),
}

impl Backend {
    fn states(&self, sequences: &[Vec<u32>]) -> Result<TokenStates> {
        match self {
            Backend::Cpu(encoder, _) => encoder.states(sequences),
            Backend::Tensors(encoder) => encoder.states(sequences),
        }
    }

    /// Soft tokens of all sequences, one after the other.
    fn soft_tokens(&self, adapter: &Adapter, states: &TokenStates) -> Result<Vec<f32>> {
        if let Backend::Cpu(_, Some(adapter)) = self {
            return adapter.soft_tokens(states);
        }
        let content = ContentRows::inside_specials(&states.lengths);
        let features = Adapter::features(states, &content)?;
        Ok(adapter.soft_tokens(&features, &content.pieces)?.flatten_all()?.to_vec1()?)
    }
}

/// One chunk, encoded.
#[derive(Debug, Clone, PartialEq)]
pub struct EncodedChunk {
    /// Soft tokens `[count, d_model]`, f32, row-major.
    pub soft: Vec<f32>,
    /// Number of soft tokens.
    pub count: usize,
    /// Unit vector `[d_enc]`, f32.
    pub vector: Vec<f32>,
    /// Word pieces of its text, special tokens excluded.
    pub tokens: usize,
}

impl DocumentEncoder {
    /// Loads the encoder's weights, merges the bundle's LoRA into them, and loads the adapter.
    pub fn load(bundle: &Bundle, weights: &Path, config: &str, tokenizer: &Path, device: &Device) -> Result<Self> {
        let mut encoder = TextEncoder::load(weights, config, device)?;
        let base = Arc::new(encoder.clone());
        bundle.adapt_encoder(&mut encoder, device)?;
        let chunk_tokens = bundle.config.chunk_tokens;
        if chunk_tokens + 2 > encoder.max_tokens() {
            return Err(ModelError::WindowExceeded { positions: chunk_tokens + 2, window: encoder.max_tokens() });
        }
        if encoder.width() != bundle.config.adapter.d_enc {
            let problem = format!(
                "the encoder's states have width {}, the bundle was trained on {}",
                encoder.width(),
                bundle.config.adapter.d_enc
            );
            return Err(ModelError::Config { problem });
        }
        let tokenizer = Arc::new(TextTokenizer::from_file(tokenizer)?);
        let chunker = Chunker::new(tokenizer.clone(), chunk_tokens)?;
        let d_enc = encoder.width();
        let adapter = bundle.adapter(device)?;
        let encoder = match device.is_cpu() {
            true => Backend::Cpu(CpuEncoder::new(&encoder)?, CpuAdapter::new(&adapter)?.map(Box::new)),
            false => Backend::Tensors(encoder),
        };
        Ok(Self { tokenizer, encoder, d_enc, base, adapter, chunker })
    }

    /// The text encoder without the bundle's LoRA.
    pub fn base_encoder(&self) -> &Arc<TextEncoder> {
        &self.base
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Arc<TextTokenizer> {
        &self.tokenizer
    }

    /// The bundle's chunker.
    pub fn chunker(&self) -> &Chunker {
        &self.chunker
    }

    /// Word pieces per soft token.
    pub fn ratio(&self) -> usize {
        self.adapter.config().ratio
    }

    /// Width of a soft token.
    pub fn d_model(&self) -> usize {
        self.adapter.config().d_model
    }

    /// Width of a chunk vector.
    pub fn d_enc(&self) -> usize {
        self.d_enc
    }

    /// Encodes chunks in batches of a token budget; the result of a chunk does not depend on its neighbours.
    pub fn encode(&self, chunks: &[&str]) -> Result<Vec<EncodedChunk>> {
        let sequences = chunks.iter().map(|c| self.tokenizer.encode_framed(c)).collect::<Result<Vec<_>>>()?;
        let mut encoded = Vec::with_capacity(chunks.len());
        let mut rest = sequences.as_slice();
        while !rest.is_empty() {
            let (batch, later) = rest.split_at(batch_size(rest));
            rest = later;
            encoded.extend(self.encode_batch(batch)?);
        }
        Ok(encoded)
    }

    fn encode_batch(&self, sequences: &[Vec<u32>]) -> Result<Vec<EncodedChunk>> {
        let states = self.encoder.states(sequences)?;
        let soft = self.encoder.soft_tokens(&self.adapter, &states)?;
        let mut soft = soft.as_slice();
        let vectors = chunk_vectors(&states)?;
        Ok(vectors
            .into_iter()
            .zip(&states.lengths)
            .map(|(vector, length)| {
                let tokens = length.saturating_sub(2);
                let count = self.adapter.config().soft_tokens(tokens);
                let (own, later) = soft.split_at(count * self.d_model());
                soft = later;
                EncodedChunk { soft: own.to_vec(), count, vector, tokens }
            })
            .collect())
    }

    /// Unit vector `[d_enc]` of a text of any length: the mean over its chunks.
    pub fn embed(&self, text: &str) -> Result<Vec<f32>> {
        let mut sequences = Vec::new();
        for chunk in self.chunker.chunks(text) {
            sequences.push(self.tokenizer.encode_framed(chunk?.text(text))?);
        }
        if sequences.is_empty() {
            sequences.push(self.tokenizer.encode_framed(text)?);
        }
        let mut sum = vec![0.0; self.d_enc()];
        for batch in sequences.chunks(BATCH_TOKENS / self.chunker.max_tokens().max(1)) {
            for vector in chunk_vectors(&self.encoder.states(batch)?)? {
                sum.iter_mut().zip(vector).for_each(|(s, v)| *s += v);
            }
        }
        Ok(unit(sum))
    }
}

/// How many sequences fit the token budget; at least one.
fn batch_size(sequences: &[Vec<u32>]) -> usize {
    let mut tokens = 0;
    let fits = sequences.iter().take_while(|s| {
        tokens += s.len();
        tokens <= BATCH_TOKENS
    });
    fits.count().max(1)
}
