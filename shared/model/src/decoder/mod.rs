//! Our Llama-family decoder: takes a mixed sequence of token embeddings and soft tokens, can be trained through,
//! and carries LoRA. Llama, Mistral, Qwen2 and Qwen3 blocks, from GGUF (kept quantised) or safetensors.
//!
//! candle-transformers' models take token ids only, use fused ops without backward and know no LoRA.

mod adapt;
mod cache;
mod config;
mod linear;
mod load;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub(crate) use adapt::check_lora;
pub use adapt::{LORA_TARGETS, Target};
pub use cache::KvCache;
pub use config::{ARCHITECTURES, DecoderConfig};
pub use linear::{Linear, Lora, Weight};

use crate::error::{ModelError, Result};
use crate::ops::{Attention, Rope, RopeTable, Span, rms_norm, swiglu};

/// A decoder with its weights; a clone shares them.
#[derive(Debug, Clone)]
pub struct Decoder {
    config: DecoderConfig,
    pub(crate) embeddings: Weight,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: Tensor,
    /// None: tied to the embeddings.
    pub(crate) head: Option<Weight>,
    pub(crate) rope: Arc<RopeTable>,
    device: Device,
    /// In which blocks compute.
    dtype: DType,
}

#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) attention_norm: Tensor,
    pub(crate) q: Linear,
    pub(crate) k: Linear,
    pub(crate) v: Linear,
    pub(crate) o: Linear,
    pub(crate) q_norm: Option<Tensor>,
    pub(crate) k_norm: Option<Tensor>,
    pub(crate) ffn_norm: Tensor,
    pub(crate) gate: Linear,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// Where the rows of a packed input belong: several sequences one after the other, each from position 0.
#[derive(Debug, Clone)]
pub struct Packing {
    positions: Arc<Vec<u32>>,
    spans: Arc<Vec<Span>>,
}

impl Packing {
    /// Whole sequences of these lengths, each attending to itself only.
    pub fn sequences(lengths: &[usize]) -> Self {
        let mut positions = Vec::with_capacity(lengths.iter().sum());
        let mut spans = Vec::with_capacity(lengths.len());
        for &length in lengths {
            let rows = positions.len()..positions.len() + length;
            positions.extend(0..length as u32);
            spans.push(Span { queries: rows.clone(), keys: rows });
        }
        Self { positions: Arc::new(positions), spans: Arc::new(spans) }
    }

    /// `rows` more positions of one sequence that has read `past` already.
    pub fn continuation(past: usize, rows: usize) -> Self {
        let positions = (past as u32..(past + rows) as u32).collect();
        Self { positions: Arc::new(positions), spans: Arc::new(vec![Span { queries: 0..rows, keys: 0..past + rows }]) }
    }

    /// Rows in total.
    pub fn rows(&self) -> usize {
        self.positions.len()
    }
}

impl Decoder {
    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// In which its blocks compute: f32, or what [`Decoder::into_dense`] was asked for.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of token ids.
    pub fn vocabulary(&self) -> Result<usize> {
        Ok(self.embeddings.dims()?.0)
    }

    /// Input embeddings of token ids: `[ids, d_model]`, f32.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        let vocabulary = self.vocabulary()?;
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(ModelError::Config {
                problem: format!("token id {id} is outside the vocabulary of {vocabulary}"),
            });
        }
        Ok(self.embeddings.rows(&Tensor::new(ids, &self.device)?)?.to_dtype(DType::F32)?)
    }

    /// Final hidden states (normed) of packed sequences without a cache: the form training uses.
    ///
    /// input `[rows, d_model]`, f32 → `[rows, d_model]`, of the blocks' dtype. Differentiable in the input and the LoRA parameters.
    pub fn hidden(&self, input: &Tensor, packing: &Packing) -> Result<Tensor> {
        self.run(input, packing, None)
    }

    /// Reads `input` after what the cache holds and appends to it. input `[rows, d_model]` → `[rows, d_model]`.
    pub fn extend(&self, input: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let rows = input.dim(0)?;
        let packing = Packing::continuation(cache.len(), rows);
        let hidden = self.run(input, &packing, Some(cache))?;
        cache.advance(rows);
        Ok(hidden)
    }

    /// Next-token logits `[rows, vocabulary]` of hidden states `[rows, d_model]`, f32.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head.as_ref().unwrap_or(&self.embeddings).forward(hidden)?.to_dtype(DType::F32)?)
    }

    fn run(&self, input: &Tensor, packing: &Packing, mut cache: Option<&mut KvCache>) -> Result<Tensor> {
        let rope = Rope { table: self.rope.clone(), positions: packing.positions.clone() };
        let attention = Attention {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads,
            head_dim: self.config.head_dim,
            causal: true,
            window: self.config.sliding_window,
            spans: packing.spans.clone(),
        };
        let mut x = input.to_dtype(self.dtype)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let normed = rms_norm(&x, &block.attention_norm, self.config.rms_eps)?;
            let mixed = self.attend(block, &normed, &rope, &attention, cache.as_deref_mut().map(|c| (c, index)))?;
            x = (x + mixed)?;
            let normed = rms_norm(&x, &block.ffn_norm, self.config.rms_eps)?;
            let inner = swiglu(&block.gate.forward(&normed)?, &block.up.forward(&normed)?)?;
            x = (x + block.down.forward(&inner)?)?;
        }
        Ok(rms_norm(&x, &self.final_norm, self.config.rms_eps)?)
    }

    fn attend(
        &self,
        block: &Block,
        x: &Tensor,
        rope: &Rope,
        attention: &Attention,
        cache: Option<(&mut KvCache, usize)>,
    ) -> Result<Tensor> {
        let q = self.head_norm(&block.q.forward(x)?, block.q_norm.as_ref())?;
        let k = self.head_norm(&block.k.forward(x)?, block.k_norm.as_ref())?;
        let v = block.v.forward(x)?;
        let (q, k) = (rope.apply(&q)?, rope.apply(&k)?);
        let (k, v) = match cache {
            Some((cache, layer)) => cache.append(layer, &k, &v)?,
            None => (k, v),
        };
        block.o.forward(&attention.apply(&q, &k, &v)?)
    }

    /// Qwen3 norms every head before the rotation.
    fn head_norm(&self, x: &Tensor, weight: Option<&Tensor>) -> Result<Tensor> {
        let Some(weight) = weight else { return Ok(x.clone()) };
        let (rows, width) = x.dims2()?;
        let heads = x.reshape((rows * width / self.config.head_dim, self.config.head_dim))?;
        Ok(rms_norm(&heads, weight, self.config.rms_eps)?.reshape((rows, width))?)
    }
}
