//! Weight matrices in the forms that the products read: panels of eight rows, so that one vector holds eight outputs.

use half::f16;

/// Rows of a panel.
pub(crate) const PANEL: usize = 8;
/// Columns that share a scale.
pub(crate) const BLOCK: usize = 32;
/// Bytes of a 4-bit block of a panel: values, scales, minima.
pub(crate) const U4_BLOCK: usize = PANEL * BLOCK / 2 + 4 * PANEL;
/// Largest absolute value of an activation of 13 bits.
pub(crate) const WIDE_MAX: f32 = 4095.0;

/// How values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Blocks of 32 columns, value `d·q + m`, q in 0..16, d and m f16: GGUF's Q4_1 and Q4_0 without loss. 5 bits a weight.
    U4,
    /// Blocks of columns (32, or 16 for narrow matrices), value `d·q`, q in −127..=127, d f16: GGUF's Q8_0 without loss. 8.5 bits.
    I8,
    /// Value `d·q`, q 16-bit, one f32 d per row: dense weights to about 12 bits of the row's largest. 16 bits.
    I16,
}

/// A matrix `[rows, cols]` in panels of eight rows. Rows and columns are padded with zeros to whole panels and blocks.
#[derive(Debug, Clone)]
pub struct Matrix {
    pub(crate) format: Format,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Columns of a block: [`BLOCK`] or 16.
    pub(crate) block: usize,
    /// Panel after panel, block after block.
    pub(crate) bytes: Vec<u8>,
    /// I16: 16-bit values of panels, pairs of columns after each other.
    pub(crate) wide: Vec<i16>,
    /// I16: scale of each row.
    pub(crate) scales: Vec<f32>,
}

/// A block of a row as it is stored elsewhere.
struct Block {
    values: [i16; BLOCK],
    scale: f16,
    min: f16,
}

impl Matrix {
    /// From GGUF's Q4_1 blocks (d, m, 16 bytes of nibbles), row after row.
    ///
    /// # Errors
    /// When `bytes` is not as long as the shape asks for, or `cols` is no multiple of 32.
    pub fn from_q4_1(rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, String> {
        Self::from_blocks(Format::U4, rows, cols, bytes, 20, |block| {
            let (scale, min) = (half_at(block, 0), half_at(block, 2));
            Block { values: nibbles(&block[4..]), scale, min }
        })
    }

    /// From GGUF's Q4_0 blocks (d, 16 bytes of nibbles), whose values are `d·(q − 8)`.
    ///
    /// # Errors
    /// As [`Matrix::from_q4_1`].
    pub fn from_q4_0(rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, String> {
        Self::from_blocks(Format::U4, rows, cols, bytes, 18, |block| {
            let scale = half_at(block, 0);
            Block { values: nibbles(&block[2..]), scale, min: f16::from_f32(-8.0 * scale.to_f32()) }
        })
    }

    /// From GGUF's Q8_0 blocks (d, 32 signed bytes).
    ///
    /// # Errors
    /// As [`Matrix::from_q4_1`].
    pub fn from_q8_0(rows: usize, cols: usize, bytes: &[u8]) -> Result<Self, String> {
        Self::from_blocks(Format::I8, rows, cols, bytes, 34, |block| {
            let values = std::array::from_fn(|i| i16::from(block[2 + i] as i8));
            Block { values, scale: half_at(block, 0), min: f16::ZERO }
        })
    }

    /// Rounds values to 8 bits in blocks of 32 columns.
    ///
    /// # Errors
    /// When `values` is not `rows · cols` long.
    pub fn i8_from_f32(rows: usize, cols: usize, values: &[f32]) -> Result<Self, String> {
        Self::i8_from_f32_in(BLOCK, rows, cols, values)
    }

    /// [`Matrix::i8_from_f32`] in blocks of `block` columns, 16 or 32.
    pub(crate) fn i8_from_f32_in(block: usize, rows: usize, cols: usize, values: &[f32]) -> Result<Self, String> {
        check_len(rows, cols, values.len(), Some(cols))?;
        let mut matrix = Self::empty(Format::I8, rows, cols, block);
        for (row, values) in values.chunks_exact(cols.max(1)).enumerate() {
            for (index, values) in values.chunks(block).enumerate() {
                let scale = f16::from_f32(values.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0);
                let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
                let mut rounded = [0; BLOCK];
                for (q, v) in rounded.iter_mut().zip(values) {
                    *q = (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i16;
                }
                matrix.put(row, index, &Block { values: rounded, scale, min: f16::ZERO });
            }
        }
        Ok(matrix)
    }

    /// Rounds values to 16 bits or fewer: as many as no sum of products with 13-bit activations can overflow.
    ///
    /// # Errors
    /// When `values` is not `rows · cols` long.
    pub fn i16_from_f32(rows: usize, cols: usize, values: &[f32]) -> Result<Self, String> {
        check_len(rows, cols, values.len(), Some(cols))?;
        let mut matrix = Self::empty(Format::I16, rows, cols, 2);
        let pairs = matrix.blocks();
        for (row, values) in values.chunks_exact(cols.max(1)).enumerate() {
            let (max, sum) = values.iter().fold((0.0f32, 0.0f32), |(m, s), v| (m.max(v.abs()), s + v.abs()));
            // |Σ q·x| ≤ Σ|q| · WIDE_MAX must stay below 2^31; rounding adds at most half a step per column.
            let room = (2_147_483_000.0 / WIDE_MAX - cols as f32).max(1.0);
            let scale = (max / 32_767.0).max(sum / room);
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            matrix.scales[row] = scale;
            let panel = row / PANEL * pairs * 2 * PANEL;
            for (col, v) in values.iter().enumerate() {
                let at = panel + col / 2 * 2 * PANEL + row % PANEL * 2 + col % 2;
                matrix.wide[at] = (v * inverse).round_ties_even() as i16;
            }
        }
        Ok(matrix)
    }

    /// Matrices of one format and width as one, rows after each other.
    ///
    /// # Errors
    /// When there is none, they differ in format or width, or one that is followed by another has no whole number of panels.
    pub fn stack(parts: Vec<Self>) -> Result<Self, String> {
        let mut parts = parts.into_iter();
        let mut whole = parts.next().ok_or_else(|| "no matrix to stack".to_owned())?;
        for part in parts {
            if (whole.format, whole.cols, whole.block) != (part.format, part.cols, part.block) {
                return Err(format!(
                    "matrices of {:?} x {} and {:?} x {} cannot be one",
                    whole.format, whole.cols, part.format, part.cols
                ));
            }
            if !whole.rows.is_multiple_of(PANEL) {
                return Err(format!("{} rows are no whole number of panels of {PANEL}", whole.rows));
            }
            whole.rows += part.rows;
            whole.bytes.extend(part.bytes);
            whole.wide.extend(part.wide);
            whole.scales.extend(part.scales);
        }
        Ok(whole)
    }

    /// Number of rows: outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns: inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How values are stored.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes of memory.
    pub fn size(&self) -> usize {
        self.bytes.len() + 2 * self.wide.len() + 4 * self.scales.len()
    }

    /// Panels of eight rows.
    pub fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    pub(crate) fn blocks(&self) -> usize {
        self.cols.div_ceil(self.block)
    }

    pub(crate) fn block_bytes(&self) -> usize {
        match self.format {
            Format::U4 => U4_BLOCK,
            Format::I8 => PANEL * self.block + 2 * PANEL,
            Format::I16 => 4 * PANEL,
        }
    }

    /// The values of a row as the products see them.
    ///
    /// # Panics
    /// When there is no such row.
    pub fn row(&self, row: usize) -> Vec<f32> {
        assert!(row < self.rows, "row {row} of a matrix of {} rows", self.rows);
        (0..self.cols).map(|col| self.value(row, col)).collect()
    }

    fn value(&self, row: usize, col: usize) -> f32 {
        let (panel, lane) = (row / PANEL, row % PANEL);
        if self.format == Format::I16 {
            let at = panel * self.blocks() * 2 * PANEL + col / 2 * 2 * PANEL + lane * 2 + col % 2;
            return f32::from(self.wide[at]) * self.scales[row];
        }
        let start = (panel * self.blocks() + col / self.block) * self.block_bytes();
        let block = &self.bytes[start..start + self.block_bytes()];
        let (vector, byte) = (col % self.block / 4, col % 4);
        let values = PANEL * self.block / if self.format == Format::U4 { 2 } else { 1 };
        let scale = half_at(block, values + 2 * lane).to_f32();
        if self.format == Format::U4 {
            let pair = block[vector % 4 * 32 + lane * 4 + byte];
            let q = if vector < 4 { pair & 15 } else { pair >> 4 };
            return scale * f32::from(q) + half_at(block, values + 2 * PANEL + 2 * lane).to_f32();
        }
        scale * f32::from(block[vector * 32 + lane * 4 + byte] as i8)
    }

    fn empty(format: Format, rows: usize, cols: usize, block: usize) -> Self {
        let mut matrix = Self { format, rows, cols, block, bytes: Vec::new(), wide: Vec::new(), scales: Vec::new() };
        let blocks = matrix.panels() * matrix.blocks();
        if format == Format::I16 {
            matrix.wide = vec![0; blocks * 2 * PANEL];
            matrix.scales = vec![0.0; matrix.panels() * PANEL];
        } else {
            matrix.bytes = vec![0; blocks * matrix.block_bytes()];
        }
        matrix
    }

    fn from_blocks(
        format: Format,
        rows: usize,
        cols: usize,
        bytes: &[u8],
        size: usize,
        read: impl Fn(&[u8]) -> Block,
    ) -> Result<Self, String> {
        if !cols.is_multiple_of(BLOCK) || cols == 0 {
            return Err(format!("{cols} columns are no whole number of blocks of {BLOCK}"));
        }
        let blocks = cols / BLOCK;
        check_len(rows, cols, bytes.len(), blocks.checked_mul(size))?;
        let mut matrix = Self::empty(format, rows, cols, BLOCK);
        for (index, block) in bytes.chunks_exact(size).enumerate() {
            matrix.put(index / blocks, index % blocks, &read(block));
        }
        Ok(matrix)
    }

    /// Four columns of eight rows to a vector of 32 bytes; of 4-bit values, vectors 0–3 in the low halves and 4–7 in the high.
    fn put(&mut self, row: usize, index: usize, block: &Block) {
        let (panel, lane) = (row / PANEL, row % PANEL);
        let (size, width, packed) = (self.block_bytes(), self.block, self.format == Format::U4);
        let start = (panel * self.blocks() + index) * size;
        let bytes = &mut self.bytes[start..start + size];
        for (col, q) in block.values[..width].iter().enumerate() {
            let (vector, byte) = (col / 4, col % 4);
            if packed {
                bytes[vector % 4 * 32 + lane * 4 + byte] |= (*q as u8) << if vector < 4 { 0 } else { 4 };
            } else {
                bytes[vector * 32 + lane * 4 + byte] = *q as u8;
            }
        }
        let values = PANEL * width / if packed { 2 } else { 1 };
        bytes[values + 2 * lane..][..2].copy_from_slice(&block.scale.to_le_bytes());
        if packed {
            bytes[values + 2 * PANEL + 2 * lane..][..2].copy_from_slice(&block.min.to_le_bytes());
        }
    }
}

/// `of_row` values or bytes of each row. A length that was checked is one that exists, so nothing computed from it overflows.
fn check_len(rows: usize, cols: usize, found: usize, of_row: Option<usize>) -> Result<(), String> {
    match of_row.and_then(|of_row| of_row.checked_mul(rows)) {
        Some(expected) if expected == found => Ok(()),
        Some(expected) => {
            Err(format!("a matrix of {rows} x {cols} takes {expected} values or bytes, {found} were given"))
        }
        None => Err(format!("a matrix of {rows} x {cols} is too large")),
    }
}

pub(crate) fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// GGUF packs value i of a block with value i + 16.
fn nibbles(bytes: &[u8]) -> [i16; BLOCK] {
    std::array::from_fn(|i| i16::from(if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_gguf_keep_their_values() {
        let bytes: Vec<u8> =
            (0..9 * 2 * 20).map(|i: usize| (i * 37 % 251) as u8 & if i % 20 < 4 { 0x3b } else { 0xff }).collect();
        let matrix = Matrix::from_q4_1(9, 64, &bytes).unwrap();
        for row in 0..9 {
            for (col, value) in matrix.row(row).into_iter().enumerate() {
                let block = &bytes[(row * 2 + col / 32) * 20..][..20];
                let pair = block[4 + col % 16];
                let q = if col % 32 < 16 { pair & 15 } else { pair >> 4 };
                let expected = half_at(block, 0).to_f32() * f32::from(q) + half_at(block, 2).to_f32();
                assert_eq!(value, expected, "row {row}, column {col}");
            }
        }
    }

    #[test]
    fn a_form_is_as_near_to_the_values_as_its_bits_allow() {
        let values: Vec<f32> = (0..10 * 48).map(|i| (i as f32 * 0.7).sin()).collect();
        let distance = |matrix: Matrix| {
            let rows: Vec<f32> = (0..10).flat_map(|row| matrix.row(row)).collect();
            rows.iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
        };
        assert!(distance(Matrix::i8_from_f32(10, 48, &values).unwrap()) < 0.0045);
        assert!(distance(Matrix::i16_from_f32(10, 48, &values).unwrap()) < 0.0001);
        assert!(distance(Matrix::i8_from_f32_in(16, 10, 48, &values).unwrap()) < 0.0045);
    }

    #[test]
    fn a_wrong_length_is_refused_with_both_lengths() {
        let problem = Matrix::from_q8_0(2, 32, &[0; 67]).unwrap_err();
        assert_eq!(problem, "a matrix of 2 x 32 takes 68 values or bytes, 67 were given");
    }

    #[test]
    fn stacked_rows_follow_each_other() {
        let values: Vec<f32> = (0..16 * 32).map(|i| (i as f32).cos()).collect();
        let part = |rows: std::ops::Range<usize>| {
            Matrix::i16_from_f32(rows.len(), 32, &values[rows.start * 32..rows.end * 32]).unwrap()
        };
        let whole = Matrix::stack(vec![part(0..8), part(8..16)]).unwrap();
        assert_eq!((whole.rows(), whole.row(11)), (16, part(0..16).row(11)));
        assert!(Matrix::stack(vec![part(0..7), part(7..16)]).unwrap_err().contains("7 rows"));
    }
}
