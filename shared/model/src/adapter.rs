//! The adapter: token states of a chunk in, soft tokens in the decoder's embedding space out.
//!
//! [`AdapterForm::GatedSegments`] pools every `ratio` consecutive word pieces into one soft token with a learned,
//! peaked gate (a plain mean is unreadable to the decoder); [`AdapterForm::OneVector`] is the first form of the paper
//! (arXiv 2409.06679): pooled chunk vector → Linear, GELU, Linear → one soft token per chunk;
//! [`AdapterForm::AttentionPooling`] is its second: learned queries attend to the word pieces. All forms read the same
//! features (first and last layer of the encoder) and are brought to the embeddings' scale in the same way.

mod config;
mod pool;

use std::collections::HashMap;

use candle_core::{Device, Tensor};

pub use config::{AdapterConfig, AdapterForm};
use pool::chunk_means;

use crate::encoder::TokenStates;
use crate::error::{ModelError, Result};
use crate::ops::{gelu, rms_norm};

/// Weight of the last layer's states beside the first layer's in the features.
pub(crate) const LAST_LAYER_SCALE: f64 = 2.5;
/// As its norm has it.
pub(crate) const RMS_EPS: f32 = 1e-6;

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
    pub(crate) parameters: HashMap<String, Tensor>,
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
        config.check()?;
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
        if matches!(self.config.form, AdapterForm::AttentionPooling { .. }) {
            return self.linear(features, "attend.v");
        }
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
            AdapterForm::OneVector => {
                let own = self.values(&chunk_means(features, pieces)?)?;
                match bridge {
                    Some((bridge, ids)) => (own + bridge.chunk_mixes(ids, pieces)?)?,
                    None => own,
                }
            }
            AdapterForm::GatedSegments => self.pool_segments(features, pieces, bridge)?,
            AdapterForm::AttentionPooling { queries, heads } => {
                self.pool_by_attention(features, pieces, queries, heads)?
            }
        };
        Ok(rms_norm(&pooled, &self.unit, RMS_EPS)?.broadcast_mul(&self.parameters["scale"])?)
    }
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
    use crate::ops::check::assert_slope;

    #[test]
    fn content_rows_leave_special_tokens_out() {
        let content = ContentRows::inside_specials(&[4, 3]);
        assert_eq!(content, ContentRows { rows: vec![1, 2, 5], pieces: vec![2, 1] });
    }

    fn wave(shape: &[usize], seed: f32, scale: f32) -> Tensor {
        let values = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * 0.77 + seed).sin() * scale).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn config(form: AdapterForm, gate_heads: Option<usize>) -> AdapterConfig {
        AdapterConfig {
            form,
            ratio: 2,
            d_enc: 2,
            d_model: 4,
            value_hidden: 3,
            gate_hidden: 2,
            segment_hidden: 3,
            embedding_rms: 1.0,
            gate_heads,
        }
    }

    /// Every parameter of every form against finite differences, over a chunk that fills its segments and one that does not.
    #[test]
    fn every_parameter_of_every_form_has_the_gradient_of_its_formula() {
        let forms = [
            (AdapterForm::GatedSegments, None),
            (AdapterForm::GatedSegments, Some(2)),
            (AdapterForm::OneVector, None),
            (AdapterForm::AttentionPooling { queries: 2, heads: 2 }, None),
        ];
        for (form, gate_heads) in forms {
            let config = config(form, gate_heads);
            let parameters: HashMap<String, Tensor> = config
                .parameters()
                .into_iter()
                .enumerate()
                .map(|(i, (name, shape))| (name.to_owned(), wave(&shape, i as f32, 0.6)))
                .collect();
            let features = wave(&[5, 4], 0.4, 1.0);
            for name in parameters.keys() {
                assert_slope(&parameters[name], |value| {
                    let mut moved = parameters.clone();
                    moved.insert(name.clone(), value.clone());
                    let adapter = Adapter::new(config.clone(), moved, &Device::Cpu).unwrap();
                    let soft = adapter.soft_tokens(&features, &[4, 1]).unwrap();
                    let weights = wave(soft.dims(), 2.2, 0.3);
                    (soft * weights).unwrap().sum_all().unwrap()
                });
            }
        }
    }

    #[test]
    fn the_table_speaks_in_every_form_that_has_one() {
        let bridge = Bridge { values: wave(&[6, 4], 1.0, 1.0), gates: wave(&[6], 0.2, 1.0), without_states: true };
        for form in [AdapterForm::GatedSegments, AdapterForm::OneVector] {
            let config = config(form, None);
            let parameters =
                config.parameters().into_iter().map(|(name, shape)| (name.to_owned(), wave(&shape, 0.5, 0.1)));
            let adapter = Adapter::new(config.clone(), parameters.collect(), &Device::Cpu).unwrap();
            let soft = |ids: &[u32], seed: f32| {
                let features = wave(&[2, 4], seed, 1.0);
                let soft = adapter.soft_tokens_bridged(&features, &[2], Some((&bridge, ids))).unwrap();
                soft.flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            assert_eq!(soft(&[1, 2], 0.0), soft(&[1, 2], 3.0), "{form:?}: states leak into the control");
            assert_ne!(soft(&[1, 2], 0.0), soft(&[4, 3], 0.0), "{form:?}: the table is not heard");
        }
    }
}
