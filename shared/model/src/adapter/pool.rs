//! How the word pieces of a chunk are pooled into soft tokens, by form.

use std::sync::Arc;

use candle_core::{D, DType, Tensor};

use super::{Adapter, Bridge};
use crate::error::Result;
use crate::ops::{Attention, Span, gelu, layer_norm};

/// Gate logit of a slot that has no word piece.
const EMPTY_SLOT: f32 = -1e9;
/// torch's default, which the paper's module has.
const LAYER_NORM_EPS: f32 = 1e-5;

impl Adapter {
    pub(super) fn pool_segments(
        &self,
        features: &Tensor,
        pieces: &[usize],
        bridge: Option<(&Bridge, &[u32])>,
    ) -> Result<Tensor> {
        let (ratio, d, device) = (self.config.ratio, self.config.d_model, features.device());
        let mut values = self.values(features)?;
        let mut gates = self.linear(&gelu(&self.linear(features, "gate.up")?)?, "gate.down")?;
        if let Some((bridge, ids)) = bridge {
            let ids = Tensor::new(ids, device)?;
            values = (values + bridge.values.index_select(&ids, 0)?)?;
            gates = gates.broadcast_add(&bridge.gates.index_select(&ids, 0)?.unsqueeze(1)?)?;
        }
        // Row `total` stands for a slot without word piece at the end of a chunk: zero value, closed gate.
        let total = features.dim(0)?;
        let slots = Tensor::new(segment_slots(pieces, ratio, total as u32), device)?;
        let values = Tensor::cat(&[values, Tensor::zeros((1, d), DType::F32, device)?], 0)?;
        let gates = Tensor::cat(&[&gates, &Tensor::full(EMPTY_SLOT, (1, gates.dim(1)?), device)?], 0)?;
        let segments = slots.elem_count() / ratio;
        let values = values.index_select(&slots, 0)?.reshape((segments, ratio, d))?;
        let gates = gates.index_select(&slots, 0)?;
        let mixed = match self.config.gate_heads {
            None => mix_by_one_gate(&values, &gates.reshape((segments, ratio))?)?,
            Some(heads) => self.mix_by_heads(&values, &gates.reshape((segments, ratio, heads))?)?,
        };
        let joined = values.reshape((segments, ratio * d))?;
        let residual = self.linear(&gelu(&self.linear(&joined, "segment.up")?)?, "segment.down")?;
        Ok((mixed + residual)?)
    }

    /// Each head mixes its own dimensions. values `[segments, ratio, d_model]`, gates `[segments, ratio, heads]`.
    fn mix_by_heads(&self, values: &Tensor, gates: &Tensor) -> Result<Tensor> {
        let (segments, ratio, d) = values.dims3()?;
        let heads = gates.dim(2)?;
        let gates = gates.broadcast_add(&self.parameters["gate.slots"].t()?)?;
        let weights = candle_nn::ops::softmax(&gates, 1)?.unsqueeze(3)?;
        let values = values.reshape((segments, ratio, heads, d / heads))?;
        Ok(values.broadcast_mul(&weights)?.sum(1)?.reshape((segments, d))?)
    }

    /// The paper's second form (arXiv 2409.06679): h = LN(MHA(q, K, V) + q), c = LN(h + FFN(h)), for every learned query.
    pub(super) fn pool_by_attention(
        &self,
        features: &Tensor,
        pieces: &[usize],
        queries: usize,
        heads: usize,
    ) -> Result<Tensor> {
        let rows: Vec<u32> = pieces.iter().flat_map(|_| 0..queries as u32).collect();
        let rows = Tensor::new(rows, features.device())?;
        let learned = &self.parameters["queries"];
        let asked = self.linear(learned, "attend.q")?.index_select(&rows, 0)?;
        let attention = Attention {
            heads,
            kv_heads: heads,
            head_dim: self.config.d_model / heads,
            causal: false,
            window: None,
            spans: Arc::new(query_spans(pieces, queries)),
        };
        let found = attention.apply(&asked, &self.linear(features, "attend.k")?, &self.values(features)?)?;
        let mixed = self.linear(&found, "attend.o")?;
        let h = self.trained_norm(&(mixed + learned.index_select(&rows, 0)?)?, "norm1")?;
        let inner = self.linear(&gelu(&self.linear(&h, "ffn.up")?)?, "ffn.down")?;
        self.trained_norm(&(h + inner)?, "norm2")
    }

    /// LayerNorm whose weight and bias are trained; the fused one keeps its own frozen.
    fn trained_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let (weight, bias) = (&self.parameters[&format!("{name}.weight")], &self.parameters[&format!("{name}.bias")]);
        let plain = layer_norm(x, &weight.ones_like()?, &bias.zeros_like()?, LAYER_NORM_EPS)?;
        Ok(plain.broadcast_mul(weight)?.broadcast_add(bias)?)
    }
}

fn mix_by_one_gate(values: &Tensor, gates: &Tensor) -> Result<Tensor> {
    let weights = candle_nn::ops::softmax(gates, D::Minus1)?;
    Ok(values.broadcast_mul(&weights.unsqueeze(2)?)?.sum(1)?)
}

/// `queries` rows per chunk, which see that chunk's word pieces only.
fn query_spans(pieces: &[usize], queries: usize) -> Vec<Span> {
    let mut start = 0;
    let spans = pieces.iter().enumerate().map(|(chunk, count)| {
        let keys = start..start + count;
        start += count;
        Span { queries: chunk * queries..(chunk + 1) * queries, keys }
    });
    spans.collect()
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
pub(super) fn chunk_means(features: &Tensor, pieces: &[usize]) -> Result<Tensor> {
    let mut start = 0;
    let mut means = Vec::with_capacity(pieces.len());
    for &count in pieces {
        means.push(features.narrow(0, start, count)?.mean_keepdim(0)?);
        start += count;
    }
    Ok(Tensor::cat(&means, 0)?)
}

impl Bridge {
    /// The table's mix of each chunk `[chunks, d_model]`, its gates as weights: what one soft token per chunk gets.
    pub(super) fn chunk_mixes(&self, ids: &[u32], pieces: &[usize]) -> Result<Tensor> {
        let mut rest = ids;
        let mut mixes = Vec::with_capacity(pieces.len());
        for &count in pieces {
            let (own, later) = rest.split_at(count.min(rest.len()));
            rest = later;
            let own = Tensor::new(own, self.values.device())?;
            let weights = candle_nn::ops::softmax(&self.gates.index_select(&own, 0)?, 0)?;
            let values = self.values.index_select(&own, 0)?;
            mixes.push(values.broadcast_mul(&weights.unsqueeze(1)?)?.sum_keepdim(0)?);
        }
        Ok(Tensor::cat(&mixes, 0)?)
    }
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
    fn queries_see_their_own_chunk() {
        let spans = query_spans(&[3, 5], 2);
        assert_eq!(spans, [Span { queries: 0..2, keys: 0..3 }, Span { queries: 2..4, keys: 3..8 }]);
    }
}
