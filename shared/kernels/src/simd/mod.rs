//! The inner loops: compiled for AVX2 where the machine has it, most products for AVX-512 too, and a portable form; all with the same
//! results bit for bit.

#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::sync::OnceLock;

use half::f16;

use crate::attention::PAGE;
use crate::matrix::{Format, Matrix};
use crate::rows::Rows;

/// Most activation rows of one tile.
pub(crate) const TILE: usize = 4;
/// Most activation rows of one tile of 16-bit products.
pub(crate) const WIDE_TILE: usize = 6;

/// The same where there are twice as many registers, see [`has_vnni`].
pub(crate) const LARGE_TILE: usize = 8;
pub(crate) const LARGE_WIDE_TILE: usize = 16;

/// Columns of a panel of f32.
pub(crate) const LANES: usize = 16;

/// What this machine can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// Those and AVX-512 F, BW, VL and VNNI.
    Vnni,
}

/// Looked up once.
fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(detect)
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
fn detect() -> Level {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma") && has!("f16c")) {
        return Level::Portable;
    }
    let vnni = has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512vnni");
    if vnni { Level::Vnni } else { Level::Avx2 }
}

#[cfg(any(not(target_arch = "x86_64"), miri))]
fn detect() -> Level {
    Level::Portable
}

/// Whether functions compiled for AVX2, FMA and F16C may run here.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_avx2() -> bool {
    level() >= Level::Avx2
}

/// Whether functions compiled for AVX-512 F, BW, VL and VNNI may run here, too.
pub(crate) fn has_vnni() -> bool {
    level() == Level::Vnni
}

/// Calls `x86::name` where the machine has the features, else `portable::name`.
macro_rules! dispatch {
    ($name:ident $(::<$($generic:tt),+>)? ($($arg:expr),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        if $crate::simd::has_avx2() {
            // SAFETY: the features the function was compiled for were just detected.
            return unsafe { x86::$name $(::<$($generic),+>)? ($($arg),*) };
        }
        portable::$name $(::<$($generic),+>)? ($($arg),*)
    }};
}

/// The largest absolute value; NaN when any is no number.
fn max_abs<'a>(values: impl Iterator<Item = &'a f32>) -> f32 {
    values.fold(0.0, |max, v| if v.is_nan() || max.is_nan() { f32::NAN } else { max.max(v.abs()) })
}

/// What a block with a value that is not finite becomes, so that every product with it is NaN and nobody takes it for a small one.
fn not_finite<T: Default>(out: &mut [T]) -> (f32, f32) {
    out.fill_with(T::default);
    (f32::NAN, f32::NAN)
}

/// [`dispatch`] for functions that have an AVX-512 form too.
macro_rules! dispatch_product {
    ($name:ident ::<$($generic:tt),+> ($($arg:expr),* $(,)?)) => {{
        #[cfg(target_arch = "x86_64")]
        if $crate::simd::has_vnni() {
            // SAFETY: the features the function was compiled for were detected.
            return unsafe { avx512::$name::<$($generic),+>($($arg),*) };
        }
        dispatch!($name::<$($generic),+>($($arg),*))
    }};
}

/// Rounds 32 values to 8 bits with a common scale: `(scale, scale · Σ rounded)`; NaN for both when a value is not finite.
pub(crate) fn round_block(values: &[f32], out: &mut [i8]) -> (f32, f32) {
    assert!(values.len() == 32 && out.len() == 32);
    dispatch!(round_block(values, out))
}

/// Rounds a row to whole numbers up to ±`max` with a common scale, which is returned; NaN when a value is not finite.
pub(crate) fn round_wide(values: &[f32], max: f32, out: &mut [i16]) -> f32 {
    assert!(out.len() >= values.len());
    dispatch!(round_wide(values, max, out))
}

/// Products of one panel with `T` rows from `row` on, whose blocks from `first_block` on are the panel's columns.
pub(crate) fn tile<const T: usize>(
    matrix: &Matrix,
    panel: usize,
    x: &Rows,
    row: usize,
    first_block: usize,
) -> [[f32; 8]; T] {
    let blocks = matrix.blocks();
    let size = blocks * matrix.block_bytes();
    let bytes = &matrix.bytes[panel * size..(panel + 1) * size];
    assert!(row + T <= x.rows && first_block + blocks <= x.blocks() && x.block == matrix.block && !x.wide);
    match (matrix.format, matrix.block) {
        (Format::U4, _) => dispatch_product!(u4_tile::<T>(bytes, x, row, first_block)),
        (_, 16) => dispatch_product!(i8_tile::<T, 4>(bytes, x, row, first_block)),
        _ => dispatch_product!(i8_tile::<T, 8>(bytes, x, row, first_block)),
    }
}

/// Products of two panels, the second of which may be missing, with `T` rows from `row` on.
pub(crate) fn wide_tile<const T: usize>(matrix: &Matrix, panel: usize, x: &Rows, row: usize) -> [[f32; LANES]; T] {
    let size = matrix.blocks() * 16;
    let first = &matrix.wide[panel * size..(panel + 1) * size];
    let second = if panel + 1 < matrix.panels() { &matrix.wide[(panel + 1) * size..(panel + 2) * size] } else { first };
    assert!(row + T <= x.rows && x.width() == matrix.blocks() * 2 && x.wide);
    assert!(x.scales.len() >= row + T);
    let mut scales = [0.0; LANES];
    scales.iter_mut().zip(&matrix.scales[panel * 8..]).for_each(|(to, scale)| *to = *scale);
    dispatch_product!(wide_tile::<T>([first, second], &scales, x, row))
}

/// Products of rows with a panel of 16 columns: `out[t][c] = Σ rows[t][k] · panel[k][c]`, in order of k.
pub(crate) fn panel_products<const T: usize>(rows: [&[f32]; T], panel: &[[f32; LANES]]) -> [[f32; LANES]; T] {
    assert!(rows.iter().all(|row| row.len() == panel.len()));
    dispatch_product!(panel_products::<T>(rows, panel))
}

/// 16-bit floats as f32.
pub(crate) fn widen(from: &[f16], to: &mut [f32]) {
    assert!(from.len() == to.len() && from.len().is_multiple_of(8));
    dispatch!(widen(from, to))
}

/// Keys and values of a page: as they are stored, or widened for many rows. The results are the same.
pub(crate) trait Element: Copy {
    /// Dot products of up to three rows `[rows, width]` with a page's first `count` positions (a multiple of 32): `keys`
    /// `[width, 64]`, `out` `[rows, 64]`.
    fn scores(rows: &[f32], width: usize, keys: &[Self], count: usize, out: &mut [f32]);

    /// `out = rescale · out + Σ weightᵢ · valuesᵢ`, values `[weights, out.len()]`.
    fn mix(out: &mut [f32], rescale: f32, weights: &[f32], values: &[Self]);
}

macro_rules! element {
    ($element:ty, $scores:ident, $mix:ident) => {
        impl Element for $element {
            fn scores(rows: &[f32], width: usize, keys: &[Self], count: usize, out: &mut [f32]) {
                let tile = rows.len() / width;
                assert!(rows.len() == tile * width && keys.len() == width * PAGE && out.len() >= tile * PAGE);
                assert!(count <= PAGE && count.is_multiple_of(32));
                match tile {
                    3 => dispatch!($scores::<3>(rows, width, keys, count, out)),
                    2 => dispatch!($scores::<2>(rows, width, keys, count, out)),
                    1 => dispatch!($scores::<1>(rows, width, keys, count, out)),
                    _ => {}
                }
            }

            fn mix(out: &mut [f32], rescale: f32, weights: &[f32], values: &[Self]) {
                assert!(values.len() == weights.len() * out.len() && out.len().is_multiple_of(8));
                dispatch!($mix(out, rescale, weights, values))
            }
        }
    };
}

element!(f32, scores, mix);
element!(f16, half_scores, half_mix);

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Pool;

    fn rows_for(matrix: &Matrix, values: &[f32]) -> Rows {
        let mut x = Rows::default();
        x.shape_for(matrix, values.len() / matrix.cols());
        x.fill(&Pool::new(1), values, |from, to| to.copy_from_slice(from));
        x
    }

    proptest! {
        #[test]
        fn rounding_is_the_same_with_and_without_avx2(values in prop::collection::vec(-1e4f32..1e4, 32)) {
            if has_avx2() {
                let (mut a, mut b) = ([0i8; 32], [0i8; 32]);
                // SAFETY: the features were detected.
                let fast = unsafe { x86::round_block(&values, &mut a) };
                prop_assert_eq!(fast, portable::round_block(&values, &mut b));
                prop_assert_eq!(a, b);
                let (mut a, mut b) = ([0i16; 32], [0i16; 32]);
                // SAFETY: as above.
                let fast = unsafe { x86::round_wide(&values, 8191.0, &mut a) };
                prop_assert_eq!(fast, portable::round_wide(&values, 8191.0, &mut b));
                prop_assert_eq!(a, b);
            }
        }

        #[test]
        fn products_of_four_bits_are_the_same_in_every_form(bytes in prop::collection::vec(any::<u8>(), 8 * 3 * 20), values in prop::collection::vec(-9f32..9.0, 4 * 96)) {
            // Scales and minima of ordinary size, values of any bits.
            let ordinary: Vec<u8> = bytes.iter().enumerate().map(|(i, b)| if matches!(i % 20, 1 | 3) { b & 0x3b } else { *b }).collect();
            let matrix = Matrix::from_q4_1(8, 96, &ordinary).unwrap();
            let x = rows_for(&matrix, &values);
            if has_avx2() {
                // SAFETY: the features were detected.
                let fast = unsafe { x86::u4_tile::<4>(&matrix.bytes, &x, 0, 0) };
                prop_assert_eq!(fast, portable::u4_tile::<4>(&matrix.bytes, &x, 0, 0));
            }
            if has_vnni() {
                // SAFETY: the features were detected.
                let fast = unsafe { avx512::u4_tile::<4>(&matrix.bytes, &x, 0, 0) };
                prop_assert_eq!(fast, portable::u4_tile::<4>(&matrix.bytes, &x, 0, 0));
            }
        }

        #[test]
        fn products_of_dense_weights_are_the_same_in_every_form(weights in prop::collection::vec(-2f32..2.0, 16 * 96), values in prop::collection::vec(-9f32..9.0, 3 * 96)) {
            let (wide, narrow) = (Matrix::i16_from_f32(16, 96, &weights).unwrap(), Matrix::i8_from_f32(16, 96, &weights).unwrap());
            let (x, y) = (rows_for(&wide, &values), rows_for(&narrow, &values));
            let (first, second) = wide.wide.split_at(wide.wide.len() / 2);
            let (panels, scales) = ([first, second], std::array::from_fn(|lane| wide.scales[lane]));
            if has_avx2() {
                // SAFETY: the features were detected.
                let fast = unsafe { x86::wide_tile::<3>(panels, &scales, &x, 0) };
                prop_assert_eq!(fast, portable::wide_tile::<3>(panels, &scales, &x, 0));
                let panel = &narrow.bytes[..narrow.bytes.len() / 2];
                // SAFETY: as above.
                let fast = unsafe { x86::i8_tile::<3, 8>(panel, &y, 0, 0) };
                prop_assert_eq!(fast, portable::i8_tile::<3, 8>(panel, &y, 0, 0));
            }
            if has_vnni() {
                // SAFETY: the features were detected.
                let fast = unsafe { avx512::wide_tile::<3>(panels, &scales, &x, 0) };
                prop_assert_eq!(fast, portable::wide_tile::<3>(panels, &scales, &x, 0));
                let panel = &narrow.bytes[..narrow.bytes.len() / 2];
                // SAFETY: as above.
                let fast = unsafe { avx512::i8_tile::<3, 8>(panel, &y, 0, 0) };
                prop_assert_eq!(fast, portable::i8_tile::<3, 8>(panel, &y, 0, 0));
            }
        }

        #[test]
        fn panels_are_the_same_in_every_form(panel in prop::collection::vec(prop::array::uniform16(-2f32..2.0), 9), rows in prop::collection::vec(-2f32..2.0, 3 * 9)) {
            let rows: [&[f32]; 3] = std::array::from_fn(|row| &rows[row * 9..(row + 1) * 9]);
            if has_avx2() {
                // SAFETY: the features were detected.
                prop_assert_eq!(unsafe { x86::panel_products::<3>(rows, &panel) }, portable::panel_products::<3>(rows, &panel));
            }
            if has_vnni() {
                // SAFETY: the features were detected.
                prop_assert_eq!(unsafe { avx512::panel_products::<3>(rows, &panel) }, portable::panel_products::<3>(rows, &panel));
            }
        }

        #[test]
        fn attention_is_the_same_with_and_without_avx2(keys in prop::collection::vec(-2f32..2.0, 16 * PAGE), rows in prop::collection::vec(-2f32..2.0, 3 * 16)) {
            if has_avx2() {
                let (mut a, mut b) = ([0.0; 3 * PAGE], [0.0; 3 * PAGE]);
                // SAFETY: the features were detected.
                unsafe { x86::scores::<3>(&rows, 16, &keys, 64, &mut a) };
                portable::scores::<3>(&rows, 16, &keys, 64, &mut b);
                prop_assert_eq!(a, b);
                let halves: Vec<f16> = keys.iter().map(|key| f16::from_f32(*key)).collect();
                // SAFETY: as above.
                unsafe { x86::half_scores::<3>(&rows, 16, &halves, 32, &mut a) };
                portable::half_scores::<3>(&rows, 16, &halves, 32, &mut b);
                prop_assert_eq!(a, b);
                let (mut a, mut b) = ([1.5; 16], [1.5; 16]);
                // SAFETY: as above.
                unsafe { x86::mix(&mut a, 0.3, &rows, &keys[..16 * 48]) };
                portable::mix(&mut b, 0.3, &rows, &keys[..16 * 48]);
                prop_assert_eq!(a, b);
                // SAFETY: as above.
                unsafe { x86::half_mix(&mut a, 0.3, &rows, &halves[..16 * 48]) };
                portable::half_mix(&mut b, 0.3, &rows, &halves[..16 * 48]);
                prop_assert_eq!(a, b);
            }
        }
    }
}
