//! Rotary position embedding for packed sequences.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{composed, cpu_slice, is_fused};
use e2llm_kernels::element::{rope_head_halves, rope_head_neighbours};

/// Which dimensions of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// Dimension i with i + half: Hugging Face checkpoints, and GGUF files of Qwen.
    Halves,
    /// Dimension 2i with 2i + 1: GGUF files of Llama, whose query and key rows llama.cpp permuted.
    Neighbours,
}

/// Cosines and sines `[positions, head_dim / 2]`.
#[derive(Debug)]
pub struct RopeTable {
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    pairs: RopePairs,
}

impl RopeTable {
    /// Angles `position · frequency` for `positions` positions; `frequencies` has `head_dim / 2` entries.
    pub fn new(frequencies: &[f64], positions: usize, pairs: RopePairs) -> Self {
        let angle = |i: usize| (i / frequencies.len()) as f64 * frequencies[i % frequencies.len()];
        let count = positions * frequencies.len();
        Self {
            cos: (0..count).map(|i| angle(i).cos() as f32).collect(),
            sin: (0..count).map(|i| angle(i).sin() as f32).collect(),
            half: frequencies.len(),
            pairs,
        }
    }

    /// Rotates the heads of one row, one after the other in `row`, by a position.
    ///
    /// # Panics
    /// When the table ends before the position.
    pub fn rotate(&self, row: &mut [f32], position: usize, sign: f32) {
        let at = position * self.half;
        let (cos, sin) = (&self.cos[at..at + self.half], &self.sin[at..at + self.half]);
        let rotate = match self.pairs {
            RopePairs::Halves => rope_head_halves,
            RopePairs::Neighbours => rope_head_neighbours,
        };
        row.chunks_exact_mut(2 * self.half).for_each(|head| rotate(head, cos, sin, sign));
    }

    /// Which dimensions rotate together.
    pub(super) fn pairs(&self) -> RopePairs {
        self.pairs
    }

    /// Number of positions the table holds.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }
}

/// Rotates the heads of every row by the row's position.
#[derive(Clone)]
pub struct Rope {
    /// The angles.
    pub table: Arc<RopeTable>,
    /// Position of each row.
    pub positions: Arc<Vec<u32>>,
}

impl Rope {
    /// x `[tokens, heads · head_dim]`; one position per row.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if is_fused(x) { x.apply_op1(Rotation { rope: self.clone(), sign: 1.0 }) } else { composed::rope(self, x) }
    }

    /// Cosines and sines `[rows, head_dim / 2]` of the positions of `rows` rows.
    pub(super) fn angles(&self, rows: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        self.check(rows)?;
        let half = self.table.half;
        let of = |table: &[f32]| {
            self.positions.iter().flat_map(|position| &table[*position as usize * half..][..half]).copied().collect()
        };
        Ok((of(&self.table.cos), of(&self.table.sin)))
    }

    fn check(&self, rows: usize) -> Result<()> {
        let last = self.positions.iter().max().map_or(0, |p| *p as usize + 1);
        if self.positions.len() != rows || last > self.table.positions() {
            candle_core::bail!(
                "rope of {rows} rows got {} positions up to {last}, the table ends at {}",
                self.positions.len(),
                self.table.positions()
            );
        }
        Ok(())
    }
}

struct Rotation {
    rope: Rope,
    sign: f32,
}

impl CustomOp1 for Rotation {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = layout.shape().dims2()?;
        let (table, positions) = (&self.rope.table, &self.rope.positions);
        self.rope.check(tokens)?;
        let mut out = cpu_slice(x, layout)?.to_vec();
        out.par_chunks_mut(width)
            .with_min_len(32)
            .zip(positions.par_iter())
            .for_each(|(row, position)| table.rotate(row, *position as usize, self.sign));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, _x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Rotation { rope: self.rope.clone(), sign: -self.sign };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}
