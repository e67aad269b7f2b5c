//! The adapter: token states of a chunk in, soft tokens in the decoder's embedding space out.
//!
//! [`AdapterForm::GatedSegments`] pools every `ratio` consecutive word pieces into one soft token with a learned,
//! peaked gate (a plain mean is unreadable to the decoder); [`AdapterForm::OneVector`] is the first form of the paper
//! (arXiv 2409.06679): pooled chunk vector → Linear, GELU, Linear → one soft token per chunk.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::encoder::TokenStates;
use crate::error::{ModelError, Result};
use crate::ops::{gelu, rms_norm};

/// Weight of the last layer's states beside the first layer's in the features.
const LAST_LAYER_SCALE: f64 = 2.5;
const RMS_EPS: f32 = 1e-6;
/// Gate logit of a slot that has no word piece.
const EMPTY_SLOT: f32 = -1e9;

/// How chunks become soft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterForm {
    /// One soft token per `ratio` word pieces.
    GatedSegments,
    /// One soft token per chunk.
    OneVector,
}

/// Shape of an adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// How chunks become soft tokens.
    pub form: AdapterForm,
    /// Word pieces per soft token.
    pub ratio: usize,
    /// Width of the encoder's states.
    pub d_enc: usize,
    /// Width of the decoder's embeddings.
    pub d_model: usize,
    /// Hidden width of the value path.
    pub value_hidden: usize,
    /// Hidden width of the gate.
    pub gate_hidden: usize,
    /// Hidden width of the segment's residual path.
    pub segment_hidden: usize,
    /// Root mean square of the decoder's token embeddings; soft tokens are scaled to it.
    pub embedding_rms: f32,
}

impl AdapterConfig {
    /// Names and shapes of the parameters.
    pub fn parameters(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (features, d) = (2 * self.d_enc, self.d_model);
        let mut list = vec![
            ("value.up.weight", vec![self.value_hidden, features]),
            ("value.up.bias", vec![self.value_hidden]),
            ("value.down.weight", vec![d, self.value_hidden]),
            ("value.skip.weight", vec![d, features]),
            ("value.skip.bias", vec![d]),
            ("scale", vec![1]),
        ];
        if self.form == AdapterForm::GatedSegments {
            list.extend([
                ("gate.up.weight", vec![self.gate_hidden, features]),
                ("gate.up.bias", vec![self.gate_hidden]),
                ("gate.down.weight", vec![1, self.gate_hidden]),
                ("segment.up.weight", vec![self.segment_hidden, self.ratio * d]),
                ("segment.up.bias", vec![self.segment_hidden]),
                ("segment.down.weight", vec![d, self.segment_hidden]),
            ]);
        }
        list
    }

    /// Soft tokens of a chunk of `pieces` word pieces.
    pub fn soft_tokens(&self, pieces: usize) -> usize {
        match self.form {
            AdapterForm::GatedSegments => pieces.div_ceil(self.ratio),
            AdapterForm::OneVector => 1,
        }
    }
}

/// Fixed addition to the word pieces' values and gates: the *table* control, in which token identity bypasses the
/// encoder. Not part of any bundle.
#[derive(Debug, Clone)]
pub struct Bridge {
    /// Decoder embedding of each word piece `[pieces, d_model]`, f32.
    pub values: Tensor,
    /// Addition to each word piece's gate logit `[pieces]`, f32.
    pub gates: Tensor,
    /// Whether the encoder's states are replaced by zeros, so that only the table speaks.
    pub without_states: bool,
}

/// An adapter with its parameters, which may be variables under training.
#[derive(Debug, Clone)]
pub struct Adapter {
    config: AdapterConfig,
    parameters: HashMap<String, Tensor>,
    unit: Tensor,
}

/// Word-piece rows of a packed batch that belong to text (special tokens left out), chunk by chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentRows {
    /// Row of every word piece in the packed states.
    pub rows: Vec<u32>,
    /// Word pieces of each chunk.
    pub pieces: Vec<usize>,
}

impl ContentRows {
    /// All rows but the first and the last of each sequence (`[CLS]` and `[SEP]`).
    pub fn inside_specials(lengths: &[usize]) -> Self {
        let mut rows = Vec::new();
        let mut start = 0u32;
        for &length in lengths {
            rows.extend(start + 1..start + length.saturating_sub(1).max(1) as u32);
            start += length as u32;
        }
        Self { rows, pieces: lengths.iter().map(|l| l.saturating_sub(2)).collect() }
    }
}

impl Adapter {
    /// Checks presence and shape of every parameter.
    pub fn new(config: AdapterConfig, parameters: HashMap<String, Tensor>, device: &Device) -> Result<Self> {
        if config.ratio == 0 {
            return Err(ModelError::Config { problem: "adapter ratio is 0; it must be at least 1".to_owned() });
        }
        for (name, shape) in config.parameters() {
            match parameters.get(name) {
                Some(tensor) if tensor.dims() == shape => {}
                Some(tensor) => {
                    let problem = format!(
                        "adapter tensor {name} has shape {:?}, its configuration asks for {shape:?}",
                        tensor.dims()
                    );
                    return Err(ModelError::Config { problem });
                }
                None => return Err(ModelError::Config { problem: format!("adapter tensor {name} is missing") }),
            }
        }
        let unit = Tensor::full(config.embedding_rms, config.d_model, device)?;
        Ok(Self { config, parameters, unit })
    }

    /// The adapter's shape.
    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let out = x.matmul(&self.parameters[&format!("{name}.weight")].t()?)?;
        Ok(match self.parameters.get(&format!("{name}.bias")) {
            Some(bias) => out.broadcast_add(bias)?,
            None => out,
        })
    }

    /// Features `[pieces, 2·d_enc]` of the text's word pieces, f32.
    pub fn features(states: &TokenStates, content: &ContentRows) -> Result<Tensor> {
        let rows = Tensor::new(content.rows.as_slice(), states.first.device())?;
        let first = states.first.index_select(&rows, 0)?;
        let last = (states.last.index_select(&rows, 0)? * LAST_LAYER_SCALE)?;
        Ok(Tensor::cat(&[first, last], 1)?)
    }

    /// Values `[pieces, d_model]`: each word piece in the decoder's embedding space, f32.
    pub fn values(&self, features: &Tensor) -> Result<Tensor> {
        let hidden = gelu(&self.linear(features, "value.up")?)?;
        Ok((self.linear(features, "value.skip")? + self.linear(&hidden, "value.down")?)?)
    }

    /// Soft tokens of all chunks, one after the other: `[Σ soft tokens, d_model]`, f32.
    ///
    /// `features` are those of [`Adapter::features`]; `pieces` counts the word pieces of each chunk.
    pub fn soft_tokens(&self, features: &Tensor, pieces: &[usize]) -> Result<Tensor> {
        self.soft_tokens_bridged(features, pieces, None)
    }

    /// [`Adapter::soft_tokens`] with the word pieces' table beside (or instead of) the encoder's states.
    pub fn soft_tokens_bridged(
        &self,
        features: &Tensor,
        pieces: &[usize],
        bridge: Option<(&Bridge, &[u32])>,
    ) -> Result<Tensor> {
        let features = match bridge {
            Some((bridge, _)) if bridge.without_states => &features.zeros_like()?,
            _ => features,
        };
        let pooled = match self.config.form {
            AdapterForm::OneVector => self.values(&chunk_means(features, pieces)?)?,
            AdapterForm::GatedSegments => self.pool_segments(features, pieces, bridge)?,
        };
        Ok(rms_norm(&pooled, &self.unit, RMS_EPS)?.broadcast_mul(&self.parameters["scale"])?)
    }

    fn pool_segments(&self, features: &Tensor, pieces: &[usize], bridge: Option<(&Bridge, &[u32])>) -> Result<Tensor> {
        let (ratio, d, device) = (self.config.ratio, self.config.d_model, features.device());
        let mut values = self.values(features)?;
        let mut gates = self.linear(&gelu(&self.linear(features, "gate.up")?)?, "gate.down")?;
        if let Some((bridge, ids)) = bridge {
            let ids = Tensor::new(ids, device)?;
            values = (values + bridge.values.index_select(&ids, 0)?)?;
            gates = (gates + bridge.gates.index_select(&ids, 0)?.unsqueeze(1)?)?;
        }
        // Row `total` stands for a slot without word piece at the end of a chunk: zero value, closed gate.
        let total = features.dim(0)?;
        let slots = Tensor::new(segment_slots(pieces, ratio, total as u32), device)?;
        let values = Tensor::cat(&[values, Tensor::zeros((1, d), DType::F32, device)?], 0)?;
        let gates = Tensor::cat(&[gates, Tensor::full(EMPTY_SLOT, (1, 1), device)?], 0)?;
        let segments = slots.elem_count() / ratio;
        let values = values.index_select(&slots, 0)?.reshape((segments, ratio, d))?;
        let gates = gates.index_select(&slots, 0)?.reshape((segments, ratio))?;
        let weights = candle_nn::ops::softmax(&gates, D::Minus1)?;
        let mixed = values.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?;
        let joined = values.reshape((segments, ratio * d))?;
        let residual = self.linear(&gelu(&self.linear(&joined, "segment.up")?)?, "segment.down")?;
        Ok((mixed + residual)?)
    }
}

/// Rows of the word pieces of each segment, `ratio` per segment; `empty` where a chunk's last segment is short.
fn segment_slots(pieces: &[usize], ratio: usize, empty: u32) -> Vec<u32> {
    let mut slots = Vec::new();
    let mut start = 0u32;
    for &count in pieces {
        slots.extend(start..start + count as u32);
        slots.extend(std::iter::repeat_n(empty, count.div_ceil(ratio) * ratio - count));
        start += count as u32;
    }
    slots
}

/// Mean feature of each chunk `[chunks, 2·d_enc]`.
fn chunk_means(features: &Tensor, pieces: &[usize]) -> Result<Tensor> {
    let mut start = 0;
    let mut means = Vec::with_capacity(pieces.len());
    for &count in pieces {
        means.push(features.narrow(0, start, count)?.mean_keepdim(0)?);
        start += count;
    }
    Ok(Tensor::cat(&means, 0)?)
}

/// Unit mean of each sequence's last-layer states, special tokens included: `[sequences][d_enc]`
/// (the pooling all-MiniLM-L6-v2 was trained with).
pub fn chunk_vectors(states: &TokenStates) -> Result<Vec<Vec<f32>>> {
    let mut start = 0;
    states
        .lengths
        .iter()
        .map(|&length| {
            let mean = states.last.narrow(0, start, length)?.mean(0)?.to_vec1::<f32>()?;
            start += length;
            Ok(unit(mean))
        })
        .collect()
}

/// The vector scaled to length 1; the zero vector stays.
pub fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|x| *x /= norm);
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_never_cross_chunks_and_short_ones_are_padded() {
        assert_eq!(segment_slots(&[5, 1], 4, 9), [0, 1, 2, 3, 4, 9, 9, 9, 5, 9, 9, 9]);
        assert_eq!(segment_slots(&[4], 4, 9), [0, 1, 2, 3]);
    }

    #[test]
    fn content_rows_leave_special_tokens_out() {
        let content = ContentRows::inside_specials(&[4, 3]);
        assert_eq!(content, ContentRows { rows: vec![1, 2, 5], pieces: vec![2, 1] });
    }
}
