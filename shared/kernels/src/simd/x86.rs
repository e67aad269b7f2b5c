//! AVX2 forms. Callers have checked every length, and that the machine has the features.

use std::arch::x86_64::*;

use half::f16;

use crate::attention::PAGE;
use crate::matrix::U4_BLOCK;
use crate::rows::Rows;
use crate::simd::LANES;

/// The largest absolute value; NaN when any is no number.
#[target_feature(enable = "avx2,fma,f16c")]
fn max_abs(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<8>();
    let sign = _mm256_set1_ps(-0.0);
    let (mut max, mut nan) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for chunk in chunks {
        // SAFETY: eight values are there.
        let values = unsafe { _mm256_loadu_ps(chunk.as_ptr()) };
        nan = _mm256_or_ps(nan, _mm256_cmp_ps::<_CMP_UNORD_Q>(values, values));
        max = _mm256_max_ps(max, _mm256_andnot_ps(sign, values));
    }
    if _mm256_movemask_ps(nan) != 0 {
        return f32::NAN;
    }
    let mut lanes = [0.0f32; 8];
    // SAFETY: eight values fit.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), max) };
    super::max_abs(lanes.iter().chain(rest))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn round_block(values: &[f32], out: &mut [i8]) -> (f32, f32) {
    let max = max_abs(values);
    if !max.is_finite() {
        return super::not_finite(out);
    }
    let inverse = _mm256_set1_ps(if max > 0.0 { 127.0 / max } else { 0.0 });
    // SAFETY: the caller checked that both have 32 values.
    let rounded =
        |i: usize| unsafe { _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(values.as_ptr().add(8 * i)), inverse)) };
    let (a, b, c, d) = (rounded(0), rounded(1), rounded(2), rounded(3));
    let sum = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
    // Packing works on halves of the vectors; the permutation puts groups of four back in order.
    let packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    let packed = _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    let mut lanes = [0i32; 8];
    // SAFETY: 32 bytes fit `out`, eight numbers fit `lanes`.
    unsafe {
        _mm256_storeu_si256(out.as_mut_ptr().cast(), packed);
        _mm256_storeu_si256(lanes.as_mut_ptr().cast(), sum);
    }
    let scale = max / 127.0;
    (scale, scale * lanes.iter().sum::<i32>() as f32)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn round_wide(values: &[f32], limit: f32, out: &mut [i16]) -> f32 {
    let max = max_abs(values);
    if !max.is_finite() {
        return super::not_finite(out).0;
    }
    let inverse = if max > 0.0 { limit / max } else { 0.0 };
    let (chunks, rest) = values.as_chunks::<8>();
    let (whole, tail) = out.split_at_mut(chunks.len() * 8);
    for (chunk, out) in chunks.iter().zip(whole.as_chunks_mut::<8>().0) {
        // SAFETY: eight values are there and fit.
        unsafe {
            let scaled = _mm256_mul_ps(_mm256_loadu_ps(chunk.as_ptr()), _mm256_set1_ps(inverse));
            let wide = _mm256_cvtps_epi32(scaled);
            let packed = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256::<1>(wide));
            _mm_storeu_si128(out.as_mut_ptr().cast(), packed);
        }
    }
    tail.fill(0);
    for (q, v) in tail.iter_mut().zip(rest) {
        *q = (v * inverse).round_ties_even() as i16;
    }
    max / limit
}

/// Four 8-bit values, or two of 16 bits, in every lane.
///
/// # Safety
/// Four bytes must be readable.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn spread<T>(from: *const T) -> __m256i {
    // SAFETY: by the contract.
    _mm256_set1_epi32(unsafe { from.cast::<i32>().read_unaligned() })
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn lanes<const T: usize>(sums: [__m256; T]) -> [[f32; 8]; T] {
    let mut out = [[0.0; 8]; T];
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: eight values fit.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
    out
}

/// Values of a 4-bit block in vectors of four columns, its scales and its minima.
///
/// # Safety
/// The bytes of a block must be readable.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn u4_block(block: *const u8) -> ([__m256i; 8], __m256, __m256) {
    let low = _mm256_set1_epi8(15);
    let mut weights = [_mm256_setzero_si256(); 8];
    // SAFETY: by the contract.
    unsafe {
        for i in 0..4 {
            let pairs = _mm256_loadu_si256(block.add(32 * i).cast());
            weights[i] = _mm256_and_si256(pairs, low);
            weights[i + 4] = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), low);
        }
        let scale = _mm256_cvtph_ps(_mm_loadu_si128(block.add(128).cast()));
        let min = _mm256_cvtph_ps(_mm_loadu_si128(block.add(144).cast()));
        (weights, scale, min)
    }
}

/// 15·127·2 from each of eight pairs fits 16 bits: one widening per block.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn u4_tile<const T: usize>(bytes: &[u8], x: &Rows, row: usize, first_block: usize) -> [[f32; 8]; T] {
    let mut sums = [_mm256_setzero_ps(); T];
    let ones = _mm256_set1_epi16(1);
    let blocks = x.blocks();
    for index in 0..bytes.len() / U4_BLOCK {
        // SAFETY: the block lies inside `bytes`, and the caller checked that the rows have its columns.
        unsafe {
            let (weights, scale, min) = u4_block(bytes.as_ptr().add(index * U4_BLOCK));
            for (t, sum) in sums.iter_mut().enumerate() {
                let at = (row + t) * blocks + first_block + index;
                let values = x.narrow_values.as_ptr().add(at * 32);
                let mut dot = _mm256_maddubs_epi16(weights[0], spread(values));
                for (i, weights) in weights.iter().enumerate().skip(1) {
                    dot = _mm256_add_epi16(dot, _mm256_maddubs_epi16(*weights, spread(values.add(4 * i))));
                }
                let dot = _mm256_cvtepi32_ps(_mm256_madd_epi16(dot, ones));
                let both = _mm256_mul_ps(scale, _mm256_set1_ps(*x.scales.get_unchecked(at)));
                *sum = _mm256_fmadd_ps(both, dot, *sum);
                *sum = _mm256_fmadd_ps(min, _mm256_set1_ps(*x.sums.get_unchecked(at)), *sum);
            }
        }
    }
    lanes(sums)
}

/// The first factor of the 8-bit product is unsigned: |w| · (x with the sign of w).
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn i8_tile<const T: usize, const V: usize>(
    bytes: &[u8],
    x: &Rows,
    row: usize,
    first_block: usize,
) -> [[f32; 8]; T] {
    let mut sums = [_mm256_setzero_ps(); T];
    let ones = _mm256_set1_epi16(1);
    let (blocks, size) = (x.blocks(), V * 32 + 16);
    for index in 0..bytes.len() / size {
        // SAFETY: the block lies inside `bytes`, and the caller checked that the rows have its columns.
        unsafe {
            let block = bytes.as_ptr().add(index * size);
            let scale = _mm256_cvtph_ps(_mm_loadu_si128(block.add(V * 32).cast()));
            let at = |t: usize| (row + t) * blocks + first_block + index;
            let mut dots = [_mm256_setzero_si256(); T];
            for i in 0..V {
                let weights = _mm256_loadu_si256(block.add(32 * i).cast());
                let size = _mm256_abs_epi8(weights);
                for (t, dot) in dots.iter_mut().enumerate() {
                    let values = spread(x.narrow_values.as_ptr().add((at(t) * V + i) * 4));
                    let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(values, weights));
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
                }
            }
            for t in 0..T {
                let both = _mm256_mul_ps(scale, _mm256_set1_ps(*x.scales.get_unchecked(at(t))));
                sums[t] = _mm256_fmadd_ps(both, _mm256_cvtepi32_ps(dots[t]), sums[t]);
            }
        }
    }
    lanes(sums)
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn wide_tile<const T: usize>(
    [first, second]: [&[i16]; 2],
    scales: &[f32; LANES],
    x: &Rows,
    row: usize,
) -> [[f32; LANES]; T] {
    let mut sums = [[_mm256_setzero_si256(); 2]; T];
    let width = x.width();
    // SAFETY: the caller checked that the panels have a vector per pair of columns, and that the rows are there.
    unsafe {
        let values = x.wide_values.as_ptr().add(row * width);
        for pair in 0..width / 2 {
            let a = _mm256_loadu_si256(first.as_ptr().add(pair * 16).cast());
            let b = _mm256_loadu_si256(second.as_ptr().add(pair * 16).cast());
            for (t, sums) in sums.iter_mut().enumerate() {
                let value = spread(values.add(t * width + pair * 2));
                sums[0] = _mm256_add_epi32(sums[0], _mm256_madd_epi16(a, value));
                sums[1] = _mm256_add_epi32(sums[1], _mm256_madd_epi16(b, value));
            }
        }
    }
    let mut out = [[0.0; LANES]; T];
    for (t, (out, sums)) in out.iter_mut().zip(sums).enumerate() {
        // SAFETY: both are two vectors, and the caller checked that the row has a scale.
        unsafe {
            let scale = _mm256_set1_ps(*x.scales.get_unchecked(row + t));
            for (half, sum) in sums.into_iter().enumerate() {
                let scales = _mm256_mul_ps(_mm256_loadu_ps(scales.as_ptr().add(8 * half)), scale);
                let products = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scales);
                _mm256_storeu_ps(out.as_mut_ptr().add(8 * half), products);
            }
        }
    }
    out
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn widen(from: &[f16], to: &mut [f32]) {
    for (from, to) in from.as_chunks::<8>().0.iter().zip(to.as_chunks_mut::<8>().0) {
        // SAFETY: eight values are there and fit.
        unsafe { _mm256_storeu_ps(to.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast()))) };
    }
}

/// Scores and mixtures over keys and values of one type.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn panel_products<const T: usize>(rows: [&[f32]; T], panel: &[[f32; LANES]]) -> [[f32; LANES]; T] {
    let mut sums = [[_mm256_setzero_ps(); 2]; T];
    for (k, columns) in panel.iter().enumerate() {
        // SAFETY: a panel's row has two vectors, and the caller checked that the rows have as many values.
        unsafe {
            let columns = [_mm256_loadu_ps(columns.as_ptr()), _mm256_loadu_ps(columns.as_ptr().add(8))];
            for (sums, row) in sums.iter_mut().zip(rows) {
                let value = _mm256_set1_ps(*row.get_unchecked(k));
                sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
            }
        }
    }
    let mut out = [[0.0; LANES]; T];
    for (out, sums) in out.iter_mut().zip(sums) {
        // SAFETY: a row has two vectors.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), sums[0]);
            _mm256_storeu_ps(out.as_mut_ptr().add(8), sums[1]);
        }
    }
    out
}

macro_rules! attention {
    ($scores:ident, $mix:ident, $vectors:ident, $element:ty, |$from:ident| $load:expr) => {
        /// Four vectors of positions at a time, so that `3 · 4` sums stay in registers.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) fn $scores<const T: usize>(
            rows: &[f32],
            width: usize,
            keys: &[$element],
            count: usize,
            out: &mut [f32],
        ) {
            for half in (0..count).step_by(32) {
                let mut sums = [[_mm256_setzero_ps(); 4]; T];
                // SAFETY: the caller checked the lengths of all three.
                unsafe {
                    for dim in 0..width {
                        let keys = keys.as_ptr().add(dim * PAGE + half);
                        let queries: [__m256; T] =
                            std::array::from_fn(|t| _mm256_set1_ps(*rows.get_unchecked(t * width + dim)));
                        for i in 0..4 {
                            let $from = keys.add(8 * i);
                            let keys = $load;
                            for t in 0..T {
                                sums[t][i] = _mm256_fmadd_ps(queries[t], keys, sums[t][i]);
                            }
                        }
                    }
                    for (t, sums) in sums.iter().enumerate() {
                        for (i, sum) in sums.iter().enumerate() {
                            _mm256_storeu_ps(out.as_mut_ptr().add(t * PAGE + half + 8 * i), *sum);
                        }
                    }
                }
            }
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        pub(super) fn $mix(out: &mut [f32], rescale: f32, weights: &[f32], values: &[$element]) {
            let width = out.len();
            let mut dim = 0;
            while dim + 64 <= width {
                $vectors::<8>(out, dim, rescale, weights, values);
                dim += 64;
            }
            while dim < width {
                $vectors::<1>(out, dim, rescale, weights, values);
                dim += 8;
            }
        }

        #[target_feature(enable = "avx2,fma,f16c")]
        fn $vectors<const V: usize>(out: &mut [f32], dim: usize, rescale: f32, weights: &[f32], values: &[$element]) {
            let width = out.len();
            // SAFETY: `V` vectors from `dim` on lie inside a row, and the caller checked that there is a row per weight.
            unsafe {
                let to = out.as_mut_ptr().add(dim);
                let rescale = _mm256_set1_ps(rescale);
                let mut sums: [__m256; V] =
                    std::array::from_fn(|i| _mm256_mul_ps(_mm256_loadu_ps(to.add(8 * i)), rescale));
                for (index, weight) in weights.iter().enumerate() {
                    let (weight, values) = (_mm256_set1_ps(*weight), values.as_ptr().add(index * width + dim));
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let $from = values.add(8 * i);
                        *sum = _mm256_fmadd_ps(weight, $load, *sum);
                    }
                }
                for (i, sum) in sums.iter().enumerate() {
                    _mm256_storeu_ps(to.add(8 * i), *sum);
                }
            }
        }
    };
}

attention!(scores, mix, mix_vectors, f32, |from| _mm256_loadu_ps(from));
attention!(half_scores, half_mix, half_mix_vectors, f16, |from| _mm256_cvtph_ps(_mm_loadu_si128(from.cast())));
