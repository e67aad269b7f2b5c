//! BERT layers on 16-bit weights: every thread takes whole chunks through all layers.

use std::sync::Arc;

use candle_core::Tensor;
use e2llm_kernels::bidirectional::{self, attend_to_all};
use e2llm_kernels::element::{gelu, layer_norm_row};
use e2llm_kernels::{Into, Linear, Matrix};
use rayon::prelude::*;

use super::pack::{kernel, matrix, values};
use super::products::{Products, groups_of, same};
use crate::decoder;
use crate::encoder::{Layer, Norm, TextEncoder, TokenStates};
use crate::error::Result;

/// An encoder for inference on the CPU; a clone shares the weights.
#[derive(Debug, Clone)]
pub struct CpuEncoder {
    encoder: TextEncoder,
    layers: Arc<Vec<CpuLayer>>,
}

#[derive(Debug)]
struct CpuLayer {
    qkv: Linear,
    output: Linear,
    attention_norm: CpuNorm,
    up: Linear,
    down: Linear,
    ffn_norm: CpuNorm,
}

#[derive(Debug)]
struct CpuNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

/// Buffers of one thread.
#[derive(Default)]
struct Work {
    products: Products,
    wide: Vec<f32>,
    mixed: Vec<f32>,
    normed: Vec<f32>,
    attention: bidirectional::Scratch,
}

impl CpuEncoder {
    /// Packs the layers' weights; LoRA has to be merged into them.
    ///
    /// # Errors
    /// [`crate::ModelError::Config`] for LoRA beside the weights.
    pub fn new(encoder: &TextEncoder) -> Result<Self> {
        let layers = encoder.layers.iter().map(CpuLayer::new).collect::<Result<_>>()?;
        Ok(Self { encoder: encoder.clone(), layers: Arc::new(layers) })
    }

    /// As [`TextEncoder::states`].
    ///
    /// # Errors
    /// As [`TextEncoder::states`].
    pub fn states(&self, sequences: &[Vec<u32>]) -> Result<TokenStates> {
        let first = self.encoder.embed(sequences)?;
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let width = self.encoder.width();
        let mut last = values(&first)?;
        let mut groups = Vec::new();
        let mut rest = last.as_mut_slice();
        for lengths in groups_of(&lengths) {
            let (own, later) = rest.split_at_mut(lengths.iter().sum::<usize>() * width);
            groups.push((own, lengths));
            rest = later;
        }
        groups.into_par_iter().for_each_init(Work::default, |work, (x, lengths)| {
            for layer in self.layers.iter() {
                layer.forward(x, lengths, &self.encoder, work);
            }
        });
        let last = Tensor::from_vec(last, first.shape(), first.device())?;
        Ok(TokenStates { first, last, lengths })
    }
}

impl CpuLayer {
    fn new(layer: &Layer) -> Result<Self> {
        Ok(Self {
            qkv: linear(&layer.qkv)?,
            output: linear(&layer.output)?,
            attention_norm: CpuNorm::new(&layer.attention_norm)?,
            up: linear(&layer.up)?,
            down: linear(&layer.down)?,
            ffn_norm: CpuNorm::new(&layer.ffn_norm)?,
        })
    }

    fn forward(&self, x: &mut [f32], lengths: &[usize], encoder: &TextEncoder, work: &mut Work) {
        let count = x.len() / encoder.width();
        let Work { products, wide, mixed, normed, attention } = work;
        wide.resize(count * self.qkv.weight().rows(), 0.0);
        products.apply(&self.qkv, (x, count), same, wide, Into::Replace);
        mixed.resize(x.len(), 0.0);
        attend(lengths, encoder, wide, mixed, attention);
        products.apply(&self.output, (mixed, count), same, x, Into::Add);
        self.attention_norm.apply(x, normed);
        wide.resize(count * self.up.weight().rows(), 0.0);
        products.apply(&self.up, (x, count), same, wide, Into::Replace);
        let activate = |from: &[f32], to: &mut [f32]| activate(encoder.activation(), from, to);
        products.apply(&self.down, (wide, count), activate, x, Into::Add);
        self.ffn_norm.apply(x, normed);
    }
}

fn activate(activation: &str, from: &[f32], to: &mut [f32]) {
    match activation {
        "relu" => to.iter_mut().zip(from).for_each(|(to, x)| *to = x.max(0.0)),
        "gelu_new" => to.iter_mut().zip(from).for_each(|(to, x)| *to = tanh_gelu(*x)),
        _ => gelu(to, from),
    }
}

fn tanh_gelu(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (SQRT_2_OVER_PI * x * (1.0 + 0.044_715 * x * x)).tanh())
}

/// Every sequence by itself, from its projections `[length, 3 · width]` to `mixed`.
fn attend(
    lengths: &[usize],
    encoder: &TextEncoder,
    mut projections: &[f32],
    mut mixed: &mut [f32],
    scratch: &mut bidirectional::Scratch,
) {
    let width = encoder.width();
    for &length in lengths {
        let (from, later) = projections.split_at(3 * length * width);
        let (to, rest) = mixed.split_at_mut(length * width);
        attend_to_all(to, from, width, encoder.heads(), scratch);
        (projections, mixed) = (later, rest);
    }
}

impl CpuNorm {
    fn new(norm: &Norm) -> Result<Self> {
        Ok(Self { weight: values(&norm.weight)?, bias: values(&norm.bias)?, eps: norm.eps })
    }

    fn apply(&self, x: &mut [f32], normed: &mut Vec<f32>) {
        normed.resize(self.weight.len(), 0.0);
        for row in x.chunks_exact_mut(self.weight.len()) {
            layer_norm_row(normed, row, &self.weight, &self.bias, self.eps);
            row.copy_from_slice(normed);
        }
    }
}

fn linear(linear: &decoder::Linear) -> Result<Linear> {
    if linear.lora.is_some() {
        return Err(kernel("LoRA beside the encoder's weights: merge it first".to_owned()));
    }
    let weight: Matrix = matrix(&linear.weight)?;
    let bias = linear.bias.as_ref().map(values).transpose()?;
    Linear::new(weight, bias.unwrap_or_default()).map_err(kernel)
}
