//! The adapter of gated segments on 16-bit weights: every thread takes whole chunks.

use candle_core::Tensor;
use e2llm_kernels::element::{dot, gelu, rms_norm_row, softmax_row};
use e2llm_kernels::{Into, Linear, Matrix};
use rayon::prelude::*;

use super::pack::{kernel, values};
use super::products::{Products, groups_of, same};
use crate::adapter::{Adapter, AdapterConfig, AdapterForm, LAST_LAYER_SCALE, RMS_EPS};
use crate::encoder::TokenStates;
use crate::error::Result;

/// [`AdapterForm::GatedSegments`] for inference on the CPU.
#[derive(Debug)]
pub struct CpuAdapter {
    config: AdapterConfig,
    /// `value.up`, `value.skip` and `gate.up`, which read the same features.
    features: Linear,
    value_down: Linear,
    /// `[heads, gate_hidden]`.
    gate_down: Vec<f32>,
    /// Bias of each slot `[heads, ratio]`; empty without.
    gate_slots: Vec<f32>,
    segment_up: Linear,
    segment_down: Linear,
    /// `scale · embedding_rms` for each dimension.
    unit: Vec<f32>,
}

/// Buffers of one thread.
#[derive(Default)]
struct Work {
    products: Products,
    features: Vec<f32>,
    wide: Vec<f32>,
    values: Vec<f32>,
    gates: Vec<f32>,
    joined: Vec<f32>,
    hidden: Vec<f32>,
    mixed: Vec<f32>,
}

impl CpuAdapter {
    /// Packs the weights; `None` for other forms, whose few products tensors compute.
    ///
    /// # Errors
    /// [`crate::ModelError::Config`] for weights that cannot be packed.
    pub fn new(adapter: &Adapter) -> Result<Option<Self>> {
        let config = adapter.config().clone();
        if config.form != AdapterForm::GatedSegments {
            return Ok(None);
        }
        let of = |name: &str| adapter.parameters.get(name).map_or(Ok(Vec::new()), values);
        let scale = of("scale")?.first().copied().unwrap_or(1.0);
        Ok(Some(Self {
            features: linear(adapter, &["value.up", "value.skip", "gate.up"])?,
            value_down: linear(adapter, &["value.down"])?,
            gate_down: of("gate.down.weight")?,
            gate_slots: of("gate.slots")?,
            segment_up: linear(adapter, &["segment.up"])?,
            segment_down: linear(adapter, &["segment.down"])?,
            unit: vec![scale * config.embedding_rms; config.d_model],
            config,
        }))
    }

    /// Soft tokens of all chunks, one after the other, `[Σ soft tokens, d_model]`: as [`Adapter::soft_tokens`] of all word pieces but
    /// the first and last of each sequence.
    ///
    /// # Errors
    /// What reading the tensors fails with.
    pub fn soft_tokens(&self, states: &TokenStates) -> Result<Vec<f32>> {
        let (first, last) = (values(&states.first)?, values(&states.last)?);
        let mut start = 0;
        let mut groups = Vec::new();
        for lengths in groups_of(&states.lengths) {
            let own = start..start + lengths.iter().sum::<usize>() * self.config.d_enc;
            start = own.end;
            groups.push((&first[own.clone()], &last[own], lengths));
        }
        let of_group = |work: &mut Work, (first, last, lengths)| self.of_group(first, last, lengths, work);
        Ok(groups.into_par_iter().map_init(Work::default, of_group).collect::<Vec<_>>().concat())
    }

    fn of_group(&self, first: &[f32], last: &[f32], lengths: &[usize], work: &mut Work) -> Vec<f32> {
        let AdapterConfig { d_model, value_hidden, segment_hidden, .. } = self.config;
        gather(first, last, lengths, self.config.d_enc, &mut work.features);
        let count = work.features.len() / (2 * self.config.d_enc);
        let width = self.features.weight().rows();
        work.wide.resize(count * width, 0.0);
        work.products.apply(&self.features, (&work.features, count), same, &mut work.wide, Into::Replace);
        work.values.clear();
        work.gates.clear();
        for row in work.wide.chunks_exact(width) {
            work.values.extend_from_slice(&row[value_hidden..][..d_model]);
            self.gates(&row[value_hidden + d_model..], &mut work.hidden, &mut work.gates);
        }
        let activate = |from: &[f32], to: &mut [f32]| gelu(to, &from[..to.len()]);
        work.products.apply(&self.value_down, (&work.wide, count), activate, &mut work.values, Into::Add);
        let segments = self.mix(lengths, work);
        work.wide.resize(segments * segment_hidden, 0.0);
        work.products.apply(&self.segment_up, (&work.joined, segments), same, &mut work.wide, Into::Replace);
        work.products.apply(&self.segment_down, (&work.wide, segments), activate, &mut work.mixed, Into::Add);
        let mut soft = vec![0.0; work.mixed.len()];
        for (soft, mixed) in soft.chunks_exact_mut(d_model).zip(work.mixed.chunks_exact(d_model)) {
            rms_norm_row(soft, mixed, &self.unit, RMS_EPS);
        }
        soft
    }

    /// Gate logits of one word piece, a number per head.
    fn gates(&self, inner: &[f32], hidden: &mut Vec<f32>, gates: &mut Vec<f32>) {
        hidden.resize(inner.len(), 0.0);
        gelu(hidden, inner);
        gates.extend(self.gate_down.chunks_exact(inner.len()).map(|weights| dot(weights, hidden)));
    }

    /// The gated mix of each segment into `work.mixed`, its values side by side into `work.joined`; returns how many there are.
    fn mix(&self, lengths: &[usize], work: &mut Work) -> usize {
        let AdapterConfig { d_model, ratio, .. } = self.config;
        let heads = self.config.gate_heads.unwrap_or(1);
        let counts = || lengths.iter().map(|length| length.saturating_sub(2));
        let segments = counts().map(|count| count.div_ceil(ratio)).sum();
        work.mixed.clear();
        work.mixed.resize(segments * d_model, 0.0);
        work.joined.clear();
        work.joined.resize(segments * ratio * d_model, 0.0);
        let (mut values, mut gates) = (work.values.as_slice(), work.gates.as_slice());
        let mut places = work.mixed.chunks_exact_mut(d_model).zip(work.joined.chunks_exact_mut(ratio * d_model));
        for slots in counts().flat_map(|count| (0..count).step_by(ratio).map(move |at| ratio.min(count - at))) {
            let Some((mixed, joined)) = places.next() else { break };
            let (own, later) = values.split_at(slots * d_model);
            let (own_gates, later_gates) = gates.split_at(slots * heads);
            (values, gates) = (later, later_gates);
            joined[..own.len()].copy_from_slice(own);
            self.mix_segment(own, own_gates, heads, mixed);
        }
        segments
    }

    /// Each head mixes its own dimensions of the segment's values `[slots, d_model]` by its gates `[slots, heads]`.
    fn mix_segment(&self, values: &[f32], gates: &[f32], heads: usize, mixed: &mut [f32]) {
        let width = mixed.len() / heads;
        let mut weights = Vec::with_capacity(self.config.ratio);
        for (head, mixed) in mixed.chunks_exact_mut(width).enumerate() {
            weights.clear();
            weights.extend(gates.chunks_exact(heads).map(|gates| gates[head]));
            let biases = self.gate_slots.get(head * self.config.ratio..).unwrap_or_default();
            weights.iter_mut().zip(biases).for_each(|(weight, bias)| *weight += bias);
            softmax_row(&mut weights);
            for (weight, values) in weights.iter().zip(values.chunks_exact(heads * width)) {
                let own = &values[head * width..][..width];
                mixed.iter_mut().zip(own).for_each(|(mixed, value)| *mixed += weight * value);
            }
        }
    }
}

/// The features of [`Adapter::features`]: first and last layer of all word pieces but the first and last of each sequence.
fn gather(first: &[f32], last: &[f32], lengths: &[usize], width: usize, features: &mut Vec<f32>) {
    features.clear();
    let mut start = 0;
    for length in lengths {
        for row in start + 1..start + length.saturating_sub(1).max(1) {
            features.extend_from_slice(&first[row * width..][..width]);
            features.extend(last[row * width..][..width].iter().map(|x| x * LAST_LAYER_SCALE as f32));
        }
        start += length;
    }
}

/// Layers on the same input as one; a bias that is missing is zero.
fn linear(adapter: &Adapter, names: &[&str]) -> Result<Linear> {
    let (mut weights, mut bias, mut inputs) = (Vec::new(), Vec::new(), 0);
    for name in names {
        let weight: &Tensor = &adapter.parameters[&format!("{name}.weight")];
        let (rows, cols) = weight.dims2()?;
        weights.extend(values(weight)?);
        let own = adapter.parameters.get(&format!("{name}.bias")).map(values).transpose()?;
        bias.extend(own.unwrap_or_else(|| vec![0.0; rows]));
        inputs = cols;
    }
    let matrix = Matrix::i16_from_f32(bias.len(), inputs, &weights).map_err(kernel)?;
    Linear::new(matrix, bias).map_err(kernel)
}
