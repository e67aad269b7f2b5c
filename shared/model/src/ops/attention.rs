//! Causal or full attention over packed sequences of different lengths, grouped-query, with its gradient.
//!
//! Sequences lie one after the other in `[tokens, heads · head_dim]` tensors, so a batch has no padding. Scores are
//! computed in blocks of query rows (never a whole `[q, k]` matrix of a long prompt) and recomputed in the backward.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{composed, cpu_slice, cpu_tensor, is_fused};
use e2llm_kernels::element::{axpy, dot, softmax_row, softmax_row_backward};
use e2llm_kernels::gemm::{Mat, Threads, matmul};

/// Query rows whose scores are held at once.
const BLOCK: usize = 128;
/// Below this many query rows plain dot products beat a GEMM call.
const FEW_ROWS: usize = 4;

/// One sequence of a packed batch: its query rows and the key rows they may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Rows of the query tensor.
    pub queries: Range<usize>,
    /// Rows of the key and value tensors. With a KV cache there are more keys than queries; the last query row
    /// sees the last key row.
    pub keys: Range<usize>,
}

/// What attends to what.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Whether a row sees only its own position and earlier ones.
    pub causal: bool,
    /// Sliding window: a row sees at most this many positions, its own included.
    pub window: Option<usize>,
    /// The packed sequences.
    pub spans: Arc<Vec<Span>>,
}

impl Attention {
    /// `softmax(q·kᵀ/√head_dim)·v`. q `[tokens, heads·head_dim]`, k and v `[keys, kv_heads·head_dim]`.
    pub fn apply(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        if is_fused(q) { q.apply_op3(k, v, self.clone()) } else { composed::attention(self, q, k, v) }
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Keys (relative to the span) that query row `row` of a span sees.
    pub(super) fn visible(&self, span: &Span, row: usize) -> Range<usize> {
        if !self.causal {
            return 0..span.keys.len();
        }
        let end = span.keys.len() - span.queries.len() + row + 1;
        let start = self.window.map_or(0, |w| end.saturating_sub(w));
        start..end
    }

    /// Every (span, head, block of query rows): the units of parallel work.
    fn units(&self) -> Vec<Unit> {
        let mut units = Vec::new();
        for (span_index, span) in self.spans.iter().enumerate() {
            for head in 0..self.heads {
                for start in (0..span.queries.len()).step_by(BLOCK) {
                    let rows = start..(start + BLOCK).min(span.queries.len());
                    units.push(Unit { span: span_index, head, rows });
                }
            }
        }
        units
    }

    /// Probabilities `[rows, visible keys of the block]` of one unit, zero where masked.
    fn probabilities(&self, unit: &Unit, q: &[f32], k: &[f32], out: &mut Vec<f32>) -> Range<usize> {
        let span = &self.spans[unit.span];
        let (q_width, k_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let keys = self.visible(span, unit.rows.start).start..self.visible(span, unit.rows.end - 1).end;
        let (rows, width) = (unit.rows.len(), keys.len());
        out.clear();
        out.resize(rows * width, 0.0);
        let q = &q[(span.queries.start + unit.rows.start) * q_width + unit.head * self.head_dim..];
        let k = &k[(span.keys.start + keys.start) * k_width + self.kv_head(unit.head) * self.head_dim..];
        if rows <= FEW_ROWS {
            for row in 0..rows {
                let query = &q[row * q_width..][..self.head_dim];
                for (key, score) in out[row * width..][..width].iter_mut().enumerate() {
                    *score = dot(query, &k[key * k_width..][..self.head_dim]);
                }
            }
        } else {
            let (a, b) = (Mat::new(q, rows, self.head_dim, q_width), Mat::new(k, width, self.head_dim, k_width));
            matmul(out, width, a, b.t(), 1.0, false, Threads::One);
        }
        let scale = self.scale();
        for row in 0..rows {
            let scores = &mut out[row * width..][..width];
            let seen = self.visible(span, unit.rows.start + row);
            let (start, end) = (seen.start - keys.start, seen.end - keys.start);
            scores[..start].fill(0.0);
            scores[end..].fill(0.0);
            let seen = &mut scores[start..end];
            seen.iter_mut().for_each(|s| *s *= scale);
            softmax_row(seen);
        }
        keys
    }

    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], tokens: usize) -> Vec<f32> {
        let (q_width, k_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let units = self.units();
        let blocks: Vec<Vec<f32>> = units
            .par_iter()
            .map_init(Vec::new, |probabilities, unit| {
                let keys = self.probabilities(unit, q, k, probabilities);
                let span = &self.spans[unit.span];
                let rows = unit.rows.len();
                let v = &v[(span.keys.start + keys.start) * k_width + self.kv_head(unit.head) * self.head_dim..];
                let mut out = vec![0.0; rows * self.head_dim];
                if rows <= FEW_ROWS {
                    for (row, out) in out.chunks_exact_mut(self.head_dim).enumerate() {
                        for (key, p) in probabilities[row * keys.len()..][..keys.len()].iter().enumerate() {
                            axpy(out, *p, &v[key * k_width..][..self.head_dim]);
                        }
                    }
                } else {
                    let p = Mat::new(probabilities, rows, keys.len(), keys.len());
                    let v = Mat::new(v, keys.len(), self.head_dim, k_width);
                    matmul(&mut out, self.head_dim, p, v, 1.0, false, Threads::One);
                }
                out
            })
            .collect();
        let mut out = vec![0.0; tokens * q_width];
        for (unit, block) in units.iter().zip(blocks) {
            let first = self.spans[unit.span].queries.start + unit.rows.start;
            for (row, values) in block.chunks_exact(self.head_dim).enumerate() {
                let at = (first + row) * q_width + unit.head * self.head_dim;
                out[at..at + self.head_dim].copy_from_slice(values);
            }
        }
        out
    }

    /// Gradients of one (span, key-value head): `[queries, group·head_dim]`, `[keys, head_dim]`, `[keys, head_dim]`.
    fn backward_group(&self, span_index: usize, kv_head: usize, t: &Saved<'_>) -> GroupGradient {
        let span = &self.spans[span_index];
        let (hd, group) = (self.head_dim, self.heads / self.kv_heads);
        let (q_width, k_width) = (self.heads * hd, self.kv_heads * hd);
        let mut gradient = GroupGradient {
            dq: vec![0.0; span.queries.len() * group * hd],
            dk: vec![0.0; span.keys.len() * hd],
            dv: vec![0.0; span.keys.len() * hd],
        };
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        for head in kv_head * group..(kv_head + 1) * group {
            for start in (0..span.queries.len()).step_by(BLOCK) {
                let rows = start..(start + BLOCK).min(span.queries.len());
                let unit = Unit { span: span_index, head, rows: rows.clone() };
                let keys = self.probabilities(&unit, t.q, t.k, &mut p);
                let (n, width) = (rows.len(), keys.len());
                let q_at = (span.queries.start + start) * q_width + head * hd;
                let k_at = (span.keys.start + keys.start) * k_width + kv_head * hd;
                let grad = Mat::new(&t.grad[q_at..], n, hd, q_width);
                let probabilities = Mat::new(&p, n, width, width);
                let dv = &mut gradient.dv[keys.start * hd..];
                matmul(dv, hd, probabilities.t(), grad, 1.0, true, Threads::One);
                dp.clear();
                dp.resize(n * width, 0.0);
                let v = Mat::new(&t.v[k_at..], width, hd, k_width);
                matmul(&mut dp, width, grad, v.t(), 1.0, false, Threads::One);
                for (dp, p) in dp.chunks_exact_mut(width).zip(p.chunks_exact(width)) {
                    softmax_row_backward(dp, p);
                }
                let ds = Mat::new(&dp, n, width, width);
                let dq = &mut gradient.dq[start * group * hd + (head - kv_head * group) * hd..];
                matmul(
                    dq,
                    group * hd,
                    ds,
                    Mat::new(&t.k[k_at..], width, hd, k_width),
                    self.scale(),
                    false,
                    Threads::One,
                );
                let dk = &mut gradient.dk[keys.start * hd..];
                matmul(dk, hd, ds.t(), Mat::new(&t.q[q_at..], n, hd, q_width), self.scale(), true, Threads::One);
            }
        }
        gradient
    }
}

struct Unit {
    span: usize,
    head: usize,
    rows: Range<usize>,
}

struct Saved<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    grad: &'a [f32],
}

struct GroupGradient {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "packed-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (cpu_slice(q, q_layout)?, cpu_slice(k, k_layout)?, cpu_slice(v, v_layout)?);
        let tokens = q_layout.dims()[0];
        let out = self.forward(q, k, v, tokens);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (q_values, k_values, v_values, grad) =
            (super::values(q)?, super::values(k)?, super::values(v)?, super::values(grad)?);
        let saved = Saved { q: &q_values, k: &k_values, v: &v_values, grad: &grad };
        let groups: Vec<(usize, usize)> =
            (0..self.spans.len()).flat_map(|s| (0..self.kv_heads).map(move |h| (s, h))).collect();
        let gradients: Vec<GroupGradient> =
            groups.par_iter().map(|&(span, head)| self.backward_group(span, head, &saved)).collect();
        let (mut dq, mut dk, mut dv) =
            (vec![0.0; q_values.len()], vec![0.0; k_values.len()], vec![0.0; v_values.len()]);
        let (q_width, k_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let group_width = q_width / self.kv_heads;
        for (&(span, head), gradient) in groups.iter().zip(&gradients) {
            let span = &self.spans[span];
            add_columns(
                &mut dq[span.queries.start * q_width..],
                q_width,
                head * group_width,
                group_width,
                &gradient.dq,
            );
            add_columns(
                &mut dk[span.keys.start * k_width..],
                k_width,
                head * self.head_dim,
                self.head_dim,
                &gradient.dk,
            );
            add_columns(
                &mut dv[span.keys.start * k_width..],
                k_width,
                head * self.head_dim,
                self.head_dim,
                &gradient.dv,
            );
        }
        Ok((Some(cpu_tensor(dq, q)?), Some(cpu_tensor(dk, k)?), Some(cpu_tensor(dv, v)?)))
    }
}

/// Adds `[rows, width]` values to columns `at..at+width` of rows that are `stride` apart.
fn add_columns(dst: &mut [f32], stride: usize, at: usize, width: usize, values: &[f32]) {
    for (row, values) in values.chunks_exact(width).enumerate() {
        axpy(&mut dst[row * stride + at..][..width], 1.0, values);
    }
}
