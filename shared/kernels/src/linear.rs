//! Products of activation rows with compact weights.

use std::ops::Range;

use crate::Pool;
use crate::element::swiglu;
use crate::matrix::{BLOCK, Format, Matrix, PANEL};
use crate::rows::Rows;
use crate::shared_mut::SharedMut;
use crate::simd::{LARGE_TILE, LARGE_WIDE_TILE, TILE, WIDE_TILE, has_vnni, tile, wide_tile};

/// Blocks of the low-rank rows.
const LOW_BLOCK: usize = 16;

/// `x · weightᵀ + bias + LoRA`; the weight may be several layers' on the same input, rows after each other.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Matrix,
    /// `[out]`, or empty.
    bias: Vec<f32>,
    lora: Option<Lora>,
}

/// Low-rank update `B·A` of each of the stacked layers, in 8 bits beside weights of 4 or 8.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[layers · rank, in]`, rank padded to a multiple of 16.
    down: Matrix,
    /// `[out, rank]`.
    up: Matrix,
    /// First panel of each layer's outputs.
    starts: Vec<usize>,
}

impl Lora {
    /// `parts`: per stacked layer its outputs, A `[rank, in]` and B `[outputs, rank]` times the LoRA's scale, all of one rank.
    ///
    /// # Errors
    /// When lengths do not fit, or the outputs of a layer that is followed by another are no multiple of eight.
    pub fn new(parts: &[(usize, &[f32], &[f32])], rank: usize, inputs: usize) -> Result<Self, String> {
        let padded = rank.next_multiple_of(LOW_BLOCK);
        let (mut down, mut up, mut starts, mut outputs) = (Vec::new(), Vec::new(), Vec::new(), 0usize);
        for (count, a, b) in parts {
            if a.len() != rank * inputs || b.len() != count * rank {
                return Err(format!(
                    "LoRA of rank {rank} for {count} x {inputs} has {} and {} values",
                    a.len(),
                    b.len()
                ));
            }
            if !outputs.is_multiple_of(PANEL) {
                return Err(format!("{outputs} outputs are no whole number of panels of {PANEL}"));
            }
            starts.push(outputs / PANEL);
            outputs += count;
            down.extend_from_slice(a);
            down.resize(starts.len() * padded * inputs, 0.0);
            for row in b.chunks_exact(rank.max(1)) {
                up.extend_from_slice(row);
                up.resize(up.len().next_multiple_of(padded), 0.0);
            }
        }
        let down = Matrix::i8_from_f32(starts.len() * padded, inputs, &down)?;
        Ok(Self { down, up: Matrix::i8_from_f32_in(LOW_BLOCK, outputs, padded, &up)?, starts })
    }

    /// The low-rank rows that a panel of outputs is made of: their first block.
    fn first_block(&self, panel: usize) -> usize {
        let layer = self.starts.iter().rposition(|start| *start <= panel).unwrap_or(0);
        layer * self.up.blocks()
    }
}

/// What becomes of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Into {
    /// It replaces what is there.
    Replace,
    /// It is added to what is there.
    Add,
}

/// Buffers that products reuse.
#[derive(Debug, Default)]
pub struct Scratch {
    low: Vec<f32>,
    low_rows: Rows,
    wide: Vec<f32>,
}

impl Linear {
    /// A layer without LoRA. `bias` has `weight.rows()` values or none.
    ///
    /// # Errors
    /// When the bias has another length.
    pub fn new(weight: Matrix, bias: Vec<f32>) -> Result<Self, String> {
        if !bias.is_empty() && bias.len() != weight.rows() {
            return Err(format!("a layer of {} outputs has a bias of {}", weight.rows(), bias.len()));
        }
        Ok(Self { weight, bias, lora: None })
    }

    /// With LoRA beside the weights.
    ///
    /// # Errors
    /// When the weights are dense ([`Format::I16`]): merge it into them, that costs nothing per row; or when shapes differ.
    pub fn with_lora(self, lora: Lora) -> Result<Self, String> {
        if self.weight.format() == Format::I16 {
            return Err("LoRA beside dense weights: merge it into them".to_owned());
        }
        if lora.up.rows() != self.weight.rows() || lora.down.cols() != self.weight.cols() {
            return Err("LoRA of another shape than its layer".to_owned());
        }
        Ok(Self { lora: Some(lora), ..self })
    }

    /// The weights.
    pub fn weight(&self) -> &Matrix {
        &self.weight
    }

    /// Bytes of memory.
    pub fn size(&self) -> usize {
        self.weight.size() + 4 * self.bias.len() + self.lora.as_ref().map_or(0, |l| l.down.size() + l.up.size())
    }

    /// Multiplies `x` (shaped for [`Linear::weight`]) into `out` `[rows, outputs]`.
    ///
    /// # Panics
    /// When `x` or `out` has another shape.
    pub fn forward(&self, pool: &Pool, x: &Rows, out: &mut [f32], into: Into, scratch: &mut Scratch) {
        let outputs = self.weight.rows();
        assert_eq!(x.cols, self.weight.cols(), "inputs of a layer");
        assert_eq!(Some(out.len()), x.len().checked_mul(outputs), "outputs of {} rows of {outputs}", x.len());
        self.low_rank(pool, x, scratch);
        let low = self.lora.as_ref().map(|lora| (lora, &scratch.low_rows));
        let shared = SharedMut::new(out);
        let tasks = tasks(self.weight.panels(), pool.threads());
        pool.run(tasks.len(), &|task| {
            self.panels(tasks.range(task), x, low, &mut |row, panel, values: &[f32; PANEL]| {
                let first = panel * PANEL;
                let count = PANEL.min(outputs - first);
                // SAFETY: every panel belongs to one task.
                let out = unsafe { shared.part(row * outputs + first..row * outputs + first + count) };
                put(out, values, into);
            });
        });
    }

    /// Rows of a product's low-rank half, once for all panels.
    fn low_rank(&self, pool: &Pool, x: &Rows, scratch: &mut Scratch) {
        let Some(lora) = &self.lora else { return };
        let width = lora.down.rows();
        assert!(x.len().checked_mul(width).is_some(), "{} rows of LoRA", x.len());
        scratch.low.resize(x.len() * width, 0.0);
        let shared = SharedMut::new(&mut scratch.low);
        let tasks = tasks(lora.down.panels(), if x.len() < TILE { 1 } else { pool.threads() });
        pool.run(tasks.len(), &|task| {
            for panel in tasks.range(task) {
                each_tile(&lora.down, panel, x, 0, &mut |row, values| {
                    let first = row * width + panel * PANEL;
                    // SAFETY: every panel belongs to one task.
                    unsafe { shared.part(first..first + PANEL) }.copy_from_slice(values);
                });
            }
        });
        scratch.low_rows.shape(x.len(), width, LOW_BLOCK);
        scratch.low_rows.fill(pool, &scratch.low, |from, to| to.copy_from_slice(from));
    }

    /// Gives each row's products with a range of panels, bias and LoRA included.
    fn panels(
        &self,
        panels: Range<usize>,
        x: &Rows,
        low: Option<(&Lora, &Rows)>,
        sink: &mut impl FnMut(usize, usize, &[f32; PANEL]),
    ) {
        let mut held = vec![[0.0; PANEL]; x.len()];
        let mut panel = panels.start;
        while panel < panels.end {
            if self.weight.format() == Format::I16 {
                let both = panel + 1 < panels.end;
                let bias = [self.bias_of(panel), self.bias_of(panel + 1)];
                each_wide_tile(&self.weight, panel, x, &mut |row, values| {
                    let (halves, _) = values.as_chunks::<PANEL>();
                    sink(row, panel, &sum(&halves[0], &bias[0]));
                    if both {
                        sink(row, panel + 1, &sum(&halves[1], &bias[1]));
                    }
                });
                panel += 2;
                continue;
            }
            if let Some((lora, low)) = low {
                each_tile(&lora.up, panel, low, lora.first_block(panel), &mut |row, values| held[row] = *values);
            }
            let bias = self.bias_of(panel);
            each_tile(&self.weight, panel, x, 0, &mut |row, values| {
                sink(row, panel, &sum(&sum(values, &held[row]), &bias));
            });
            panel += 1;
        }
    }

    /// Biases of a panel; zeros where there are none.
    fn bias_of(&self, panel: usize) -> [f32; PANEL] {
        if self.bias.is_empty() {
            return [0.0; PANEL];
        }
        std::array::from_fn(|lane| self.bias.get(panel * PANEL + lane).copied().unwrap_or(0.0))
    }
}

fn sum(a: &[f32; PANEL], b: &[f32; PANEL]) -> [f32; PANEL] {
    std::array::from_fn(|lane| a[lane] + b[lane])
}

/// Writes a panel's products, of which the last panel may have too many.
fn put(out: &mut [f32], values: &[f32; PANEL], into: Into) {
    if let Ok(out) = <&mut [f32; PANEL]>::try_from(&mut *out) {
        *out = if into == Into::Add { sum(out, values) } else { *values };
        return;
    }
    for (out, value) in out.iter_mut().zip(values) {
        *out = if into == Into::Add { *out + value } else { *value };
    }
}

/// A SwiGLU layer: gate and up projections as one matrix, `[2 · inner, in]`.
#[derive(Debug, Clone)]
pub struct Gated(Linear);

impl Gated {
    /// From the stacked projections, gate first.
    ///
    /// # Errors
    /// When the inner width is no multiple of 32.
    pub fn new(both: Linear) -> Result<Self, String> {
        let inner = both.weight.rows() / 2;
        if !both.weight.rows().is_multiple_of(2) || !inner.is_multiple_of(BLOCK) {
            return Err(format!("an inner width of {inner} is no multiple of {BLOCK}"));
        }
        Ok(Self(both))
    }

    /// The stacked projections.
    pub fn linear(&self) -> &Linear {
        &self.0
    }

    /// `silu(gate · x) · (up · x)`, rounded for a product with `down`.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn forward(&self, pool: &Pool, x: &Rows, down: &Linear, out: &mut Rows, scratch: &mut Scratch) {
        let inner = self.0.weight.rows() / 2;
        assert_eq!(inner, down.weight.cols(), "inner width of a feed-forward layer");
        out.shape_for(&down.weight, x.len());
        if down.weight.format() == Format::I16 || self.0.weight.format() == Format::I16 {
            let mut wide = std::mem::take(&mut scratch.wide);
            wide.resize(x.len() * 2 * inner, 0.0);
            self.0.forward(pool, x, &mut wide, Into::Replace, scratch);
            out.fill(pool, &wide, |from, to| swiglu(to, &from[..inner], &from[inner..]));
            scratch.wide = wide;
            return;
        }
        self.0.low_rank(pool, x, scratch);
        let low = self.0.lora.as_ref().map(|lora| (lora, &scratch.low_rows));
        let shared = out.share();
        let group = BLOCK / PANEL;
        pool.run(inner / BLOCK, &|task| {
            let mut products = vec![[0.0f32; 2 * BLOCK]; x.len()];
            for (half, first) in [task * group, inner / PANEL + task * group].into_iter().enumerate() {
                self.0.panels(first..first + group, x, low, &mut |row, panel, values| {
                    products[row][half * BLOCK + (panel - first) * PANEL..][..PANEL].copy_from_slice(values);
                });
            }
            for (row, products) in products.iter().enumerate() {
                let mut activated = [0.0; BLOCK];
                swiglu(&mut activated, &products[..BLOCK], &products[BLOCK..]);
                // SAFETY: every block belongs to one task.
                unsafe { shared.blocks_of(row, task, 1) }.round(&activated);
            }
        });
    }
}

/// Panels shared out in contiguous parts, a few for each thread.
struct Tasks {
    panels: usize,
    share: usize,
}

fn tasks(panels: usize, threads: usize) -> Tasks {
    let parts = if threads == 1 { 1 } else { 4 * threads };
    // Even, so that 16-bit products take panels in pairs.
    Tasks { panels, share: panels.div_ceil(parts).next_multiple_of(2).max(2) }
}

impl Tasks {
    fn len(&self) -> usize {
        self.panels.div_ceil(self.share)
    }

    fn range(&self, task: usize) -> Range<usize> {
        task * self.share..((task + 1) * self.share).min(self.panels)
    }
}

/// Products of one panel with all rows, tile by tile.
fn each_tile(matrix: &Matrix, panel: usize, x: &Rows, first_block: usize, sink: &mut impl FnMut(usize, &[f32; PANEL])) {
    let mut row = 0;
    let mut give = |row: usize, values: &[[f32; PANEL]]| {
        values.iter().enumerate().for_each(|(index, values)| sink(row + index, values));
    };
    while has_vnni() && row + LARGE_TILE <= x.len() {
        give(row, &tile::<LARGE_TILE>(matrix, panel, x, row, first_block));
        row += LARGE_TILE;
    }
    while row + TILE <= x.len() {
        give(row, &tile::<TILE>(matrix, panel, x, row, first_block));
        row += TILE;
    }
    match x.len() - row {
        3 => give(row, &tile::<3>(matrix, panel, x, row, first_block)),
        2 => give(row, &tile::<2>(matrix, panel, x, row, first_block)),
        1 => give(row, &tile::<1>(matrix, panel, x, row, first_block)),
        _ => {}
    }
}

/// [`each_tile`] of two panels of 16-bit weights.
fn each_wide_tile(matrix: &Matrix, panel: usize, x: &Rows, sink: &mut impl FnMut(usize, &[f32; 2 * PANEL])) {
    let mut row = 0;
    let mut give = |row: usize, values: &[[f32; 2 * PANEL]]| {
        values.iter().enumerate().for_each(|(index, values)| sink(row + index, values));
    };
    while has_vnni() && row + LARGE_WIDE_TILE <= x.len() {
        give(row, &wide_tile::<LARGE_WIDE_TILE>(matrix, panel, x, row));
        row += LARGE_WIDE_TILE;
    }
    while row + WIDE_TILE <= x.len() {
        give(row, &wide_tile::<WIDE_TILE>(matrix, panel, x, row));
        row += WIDE_TILE;
    }
    while row + 3 <= x.len() {
        give(row, &wide_tile::<3>(matrix, panel, x, row));
        row += 3;
    }
    while row < x.len() {
        give(row, &wide_tile::<1>(matrix, panel, x, row));
        row += 1;
    }
}
