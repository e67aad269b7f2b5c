//! Activations rounded for the products with compact weights.

use crate::matrix::{BLOCK, Format, Matrix, WIDE_MAX};
use crate::shared_mut::SharedMut;
use crate::{Pool, simd};

/// Rows `[rows, cols]` in the form that a matrix of some [`Format`] multiplies.
///
/// For [`Format::U4`] and [`Format::I8`]: 8 bits, a scale per block of columns. For [`Format::I16`]: 13 bits, a scale per row.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) block: usize,
    pub(crate) wide: bool,
    /// 8-bit values; rows padded to whole blocks.
    pub(crate) narrow_values: Vec<i8>,
    /// 13-bit values; rows padded to whole pairs.
    pub(crate) wide_values: Vec<i16>,
    /// Scale of each block, or of each row.
    pub(crate) scales: Vec<f32>,
    /// Scale · Σ values of each block.
    pub(crate) sums: Vec<f32>,
}

/// One row of [`Rows`], to be written.
pub(crate) struct RowMut<'a> {
    pub(crate) block: usize,
    pub(crate) wide: bool,
    pub(crate) narrow_values: &'a mut [i8],
    pub(crate) wide_values: &'a mut [i16],
    pub(crate) scales: &'a mut [f32],
    pub(crate) sums: &'a mut [f32],
}

impl Rows {
    /// Takes the shape that a product with `matrix` needs; what was held is undefined afterwards.
    ///
    /// # Panics
    /// When there are more values than can be counted.
    pub fn shape_for(&mut self, matrix: &Matrix, rows: usize) {
        let wide = matrix.format == Format::I16;
        self.shape(rows, matrix.cols, if wide { matrix.cols.next_multiple_of(2) } else { matrix.block });
        self.set_wide(wide);
    }

    /// 8-bit rows in blocks of `block` columns.
    pub(crate) fn shape(&mut self, rows: usize, cols: usize, block: usize) {
        (self.rows, self.cols, self.block) = (rows, cols, block);
        self.set_wide(false);
    }

    fn set_wide(&mut self, wide: bool) {
        let rows = self.rows;
        assert!(rows.checked_mul(self.width()).is_some(), "{rows} rows of {} values", self.width());
        self.wide = wide;
        let (narrow, wide) = if self.wide { (0, self.width()) } else { (self.width(), 0) };
        self.narrow_values.resize(rows * narrow, 0);
        self.wide_values.resize(rows * wide, 0);
        self.scales.resize(rows * self.blocks(), 0.0);
        self.sums.resize(rows * self.blocks(), 0.0);
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Values of a row, padding included.
    pub(crate) fn width(&self) -> usize {
        self.blocks() * self.block
    }

    pub(crate) fn blocks(&self) -> usize {
        self.cols.div_ceil(self.block)
    }

    /// Rounds what `prepare` makes of each row of `values` `[rows, any width]` in a buffer of `cols` values: a norm, or a copy.
    ///
    /// # Panics
    /// When `values` is no whole number of rows.
    pub fn fill(&mut self, pool: &Pool, values: &[f32], prepare: impl Fn(&[f32], &mut [f32]) + Sync) {
        let cols = self.cols;
        if self.rows == 0 {
            return;
        }
        let width = values.len() / self.rows;
        assert_eq!(values.len(), self.rows * width, "values of {} rows", self.rows);
        // A row is too little work to share out by itself.
        let share = self.rows.div_ceil(4 * pool.threads()).max(8);
        let shared = self.share();
        pool.run(shared.rows.div_ceil(share), &|task| {
            let mut scratch = vec![0.0; cols];
            for row in task * share..((task + 1) * share).min(shared.rows) {
                prepare(&values[row * width..(row + 1) * width], &mut scratch);
                // SAFETY: every row is taken by one task.
                unsafe { shared.row(row) }.round(&scratch);
            }
        });
    }

    /// All rows, for the tasks of a region to write.
    pub(crate) fn share(&mut self) -> SharedRows<'_> {
        let (rows, blocks, width) = (self.rows, self.blocks(), self.width());
        SharedRows {
            rows,
            blocks,
            block: self.block,
            narrow_width: if self.wide { 0 } else { width },
            wide_width: if self.wide { width } else { 0 },
            narrow_values: SharedMut::new(&mut self.narrow_values),
            wide_values: SharedMut::new(&mut self.wide_values),
            scales: SharedMut::new(&mut self.scales),
            sums: SharedMut::new(&mut self.sums),
        }
    }
}

/// [`Rows`] under construction.
pub(crate) struct SharedRows<'a> {
    rows: usize,
    blocks: usize,
    block: usize,
    narrow_width: usize,
    wide_width: usize,
    narrow_values: SharedMut<'a, i8>,
    wide_values: SharedMut<'a, i16>,
    scales: SharedMut<'a, f32>,
    sums: SharedMut<'a, f32>,
}

impl SharedRows<'_> {
    /// # Safety
    /// Blocks that are held at the same time may not overlap.
    unsafe fn row(&self, row: usize) -> RowMut<'_> {
        // SAFETY: rows do not overlap.
        unsafe { self.blocks_of(row, 0, self.blocks) }
    }

    /// `count` blocks of a row from `first` on. Of 13-bit rows only whole ones can be taken.
    ///
    /// # Safety
    /// As [`SharedRows::row`].
    pub(crate) unsafe fn blocks_of(&self, row: usize, first: usize, count: usize) -> RowMut<'_> {
        let values = |width: usize| {
            row * width + first * self.block.min(width)..row * width + (first + count) * self.block.min(width)
        };
        let blocks = row * self.blocks + first..row * self.blocks + first + count;
        // SAFETY: by the contract.
        unsafe {
            RowMut {
                block: self.block,
                wide: self.wide_width > 0,
                narrow_values: self.narrow_values.part(values(self.narrow_width)),
                wide_values: self.wide_values.part(values(self.wide_width)),
                scales: self.scales.part(blocks.clone()),
                sums: self.sums.part(blocks),
            }
        }
    }
}

impl RowMut<'_> {
    /// Rounds a whole row.
    pub(crate) fn round(&mut self, values: &[f32]) {
        if self.wide {
            self.scales[0] = simd::round_wide(values, WIDE_MAX, self.wide_values);
            return;
        }
        for (index, values) in values.chunks(self.block).enumerate() {
            let out = &mut self.narrow_values[index * self.block..(index + 1) * self.block];
            let (scale, sum) = if values.len() == BLOCK {
                simd::round_block(values, out)
            } else {
                let mut padded = [0.0; BLOCK];
                padded[..values.len()].copy_from_slice(values);
                let mut rounded = [0; BLOCK];
                let result = simd::round_block(&padded, &mut rounded);
                out.copy_from_slice(&rounded[..out.len()]);
                result
            };
            (self.scales[index], self.sums[index]) = (scale, sum);
        }
    }
}
