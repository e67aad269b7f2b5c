//! The text encoder: BERT-family models from safetensors, batches packed without padding.
//!
//! All chunks of a batch lie one after the other in `[tokens, d_enc]`; attention stays inside each chunk, so the
//! cost of a batch is the sum of its tokens whatever their lengths are.

mod lora;

use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use crate::decoder::{Linear, Weight};
use crate::error::{ModelError, Result};
use crate::ops::{Attention, Span, gelu, layer_norm};
use crate::safetensors::TensorFile;

/// Shape of a BERT encoder, from its `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct EncoderConfig {
    model_type: String,
    /// Width of a token state, d_enc.
    pub hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    /// Longest sequence, special tokens included.
    pub max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    layer_norm_eps: f64,
    #[serde(default = "default_activation")]
    hidden_act: String,
}

fn default_eps() -> f64 {
    1e-12
}

fn default_activation() -> String {
    "gelu".to_owned()
}

/// Activations of the inner layer that are computed.
const ACTIVATIONS: [&str; 3] = ["gelu", "gelu_new", "relu"];

/// A BERT encoder with its weights; a clone shares them.
#[derive(Debug, Clone)]
pub struct TextEncoder {
    config: EncoderConfig,
    words: Tensor,
    /// Position embeddings with the type-0 embedding added.
    positions: Tensor,
    norm: Norm,
    pub(crate) layers: Vec<Layer>,
    device: Device,
}

#[derive(Debug, Clone)]
pub(crate) struct Norm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) eps: f32,
}

impl Norm {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        Ok(layer_norm(x, &self.weight, &self.bias, self.eps)?)
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) qkv: Linear,
    pub(crate) output: Linear,
    pub(crate) attention_norm: Norm,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
    pub(crate) ffn_norm: Norm,
}

/// Token states of a packed batch.
#[derive(Debug, Clone)]
pub struct TokenStates {
    /// Output of the embedding layer `[tokens, d_enc]`, f32: who the word is.
    pub first: Tensor,
    /// Output of the last layer `[tokens, d_enc]`, f32: what it means here.
    pub last: Tensor,
    /// Tokens of each sequence, special tokens included.
    pub lengths: Vec<usize>,
}

impl TextEncoder {
    /// Reads `config` (text of `config.json`) and the tensors of `weights`.
    pub fn load(weights: &Path, config: &str, device: &Device) -> Result<Self> {
        let bad = |problem: String| ModelError::Config { problem };
        let config: EncoderConfig =
            serde_json::from_str(config).map_err(|e| bad(format!("encoder config.json: {e}")))?;
        if config.model_type != "bert" {
            return Err(bad(format!(
                "encoder model_type {:?} is not \"bert\"; use a BERT-family encoder",
                config.model_type
            )));
        }
        if !ACTIVATIONS.contains(&config.hidden_act.as_str()) {
            return Err(bad(format!("encoder activation {:?} is not one of {ACTIVATIONS:?}", config.hidden_act)));
        }
        if config.num_attention_heads == 0 || !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(bad(format!(
                "encoder width {} cannot be split into {} heads",
                config.hidden_size, config.num_attention_heads
            )));
        }
        let file = TensorFile::open(weights, device)?;
        Loader { file: &file, prefix: if file.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" } }
            .encoder(config, device)
    }

    /// Width of a token state, d_enc.
    pub fn width(&self) -> usize {
        self.config.hidden_size
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Longest sequence, special tokens included.
    pub fn max_tokens(&self) -> usize {
        self.config.max_position_embeddings
    }

    /// Attention heads of a layer.
    pub(crate) fn heads(&self) -> usize {
        self.config.num_attention_heads
    }

    /// Name of the inner layers' activation.
    pub(crate) fn activation(&self) -> &str {
        &self.config.hidden_act
    }

    /// States of every token of every sequence. Each sequence carries its special tokens already.
    pub fn states(&self, sequences: &[Vec<u32>]) -> Result<TokenStates> {
        let first = self.embed(sequences)?;
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let attention = self.attention(&lengths);
        let mut x = first.clone();
        for layer in &self.layers {
            x = layer.forward(&x, &attention, &self.config.hidden_act)?;
        }
        Ok(TokenStates { first, last: x, lengths })
    }

    /// Output of the embedding layer `[tokens, d_enc]`.
    pub(crate) fn embed(&self, sequences: &[Vec<u32>]) -> Result<Tensor> {
        if let Some(long) = sequences.iter().map(Vec::len).find(|l| *l > self.config.max_position_embeddings) {
            return Err(ModelError::WindowExceeded { positions: long, window: self.config.max_position_embeddings });
        }
        let ids: Vec<u32> = sequences.iter().flatten().copied().collect();
        let positions: Vec<u32> = sequences.iter().flat_map(|s| 0..s.len() as u32).collect();
        let words = self.words.index_select(&Tensor::new(ids, &self.device)?, 0)?;
        let places = self.positions.index_select(&Tensor::new(positions, &self.device)?, 0)?;
        self.norm.apply(&(words + places)?)
    }

    fn attention(&self, lengths: &[usize]) -> Attention {
        let mut start = 0;
        let spans = lengths.iter().map(|length| {
            let rows = start..start + length;
            start += length;
            Span { queries: rows.clone(), keys: rows }
        });
        Attention {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_attention_heads,
            head_dim: self.config.hidden_size / self.config.num_attention_heads,
            causal: false,
            window: None,
            spans: Arc::new(spans.collect()),
        }
    }
}

impl Layer {
    fn forward(&self, x: &Tensor, attention: &Attention, activation: &str) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?;
        let width = x.dim(1)?;
        let part = |i: usize| -> Result<Tensor> { Ok(qkv.narrow(1, i * width, width)?.contiguous()?) };
        let mixed = attention.apply(&part(0)?, &part(1)?, &part(2)?)?;
        let x = self.attention_norm.apply(&(x + self.output.forward(&mixed)?)?)?;
        let inner = self.up.forward(&x)?;
        let inner = match activation {
            "relu" => inner.relu()?,
            // candle's `gelu` is the tanh form.
            "gelu_new" => inner.gelu()?,
            _ => gelu(&inner)?,
        };
        self.ffn_norm.apply(&(&x + self.down.forward(&inner)?)?)
    }
}

struct Loader<'a> {
    file: &'a TensorFile,
    prefix: &'static str,
}

impl Loader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.file.f32(&format!("{}{name}", self.prefix), shape)
    }

    fn encoder(&self, config: EncoderConfig, device: &Device) -> Result<TextEncoder> {
        let width = config.hidden_size;
        let vocabulary = self.file.rows(&format!("{}embeddings.word_embeddings.weight", self.prefix))?;
        let words = self.tensor("embeddings.word_embeddings.weight", &[vocabulary, width])?;
        let places = self.tensor("embeddings.position_embeddings.weight", &[config.max_position_embeddings, width])?;
        let types = self.file.rows(&format!("{}embeddings.token_type_embeddings.weight", self.prefix))?;
        let types = self.tensor("embeddings.token_type_embeddings.weight", &[types, width])?;
        let eps = config.layer_norm_eps as f32;
        let norm = self.norm("embeddings.LayerNorm", width, eps)?;
        let layers = (0..config.num_hidden_layers).map(|i| self.layer(i, width, eps)).collect::<Result<_>>()?;
        let positions = places.broadcast_add(&types.get(0)?)?;
        Ok(TextEncoder { config, words, positions, norm, layers, device: device.clone() })
    }

    fn norm(&self, name: &str, width: usize, eps: f32) -> Result<Norm> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        let bias = self.tensor(&format!("{name}.bias"), &[width])?;
        Ok(Norm { weight, bias, eps })
    }

    fn linear(&self, name: &str, shape: [usize; 2]) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &shape)?;
        let bias = self.tensor(&format!("{name}.bias"), &shape[..1])?;
        Ok(Linear::new(Weight::Dense(weight), Some(bias)))
    }

    /// Query, key and value projections are read as one matrix `[3·width, width]`: one product instead of three.
    fn layer(&self, index: usize, width: usize, eps: f32) -> Result<Layer> {
        let at = |name: &str| format!("encoder.layer.{index}.{name}");
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for name in ["query", "key", "value"] {
            weights.push(self.tensor(&at(&format!("attention.self.{name}.weight")), &[width, width])?);
            biases.push(self.tensor(&at(&format!("attention.self.{name}.bias")), &[width])?);
        }
        let qkv =
            Linear::new(Weight::Dense(Tensor::cat(&weights, 0)?), Some(Tensor::cat(&biases, 0)?.to_dtype(DType::F32)?));
        let inner = self.file.rows(&format!("{}{}", self.prefix, at("intermediate.dense.weight")))?;
        Ok(Layer {
            qkv,
            output: self.linear(&at("attention.output.dense"), [width, width])?,
            attention_norm: self.norm(&at("attention.output.LayerNorm"), width, eps)?,
            up: self.linear(&at("intermediate.dense"), [inner, width])?,
            down: self.linear(&at("output.dense"), [width, inner])?,
            ffn_norm: self.norm(&at("output.LayerNorm"), width, eps)?,
        })
    }
}
