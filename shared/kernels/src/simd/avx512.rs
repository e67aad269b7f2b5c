//! Products with AVX-512 VNNI: four 8-bit or two 16-bit products and their sums in one instruction. The integers are the same as those of
//! the other forms, and so are all bits. Callers have checked every length, and that the machine has the features.

use std::arch::x86_64::*;

use super::x86::{lanes, spread, u4_block};
use crate::matrix::U4_BLOCK;
use crate::rows::Rows;
use crate::simd::LANES;

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn u4_tile<const T: usize>(bytes: &[u8], x: &Rows, row: usize, first_block: usize) -> [[f32; 8]; T] {
    let mut sums = [_mm256_setzero_ps(); T];
    let blocks = x.blocks();
    for index in 0..bytes.len() / U4_BLOCK {
        // SAFETY: the block lies inside `bytes`, and the caller checked that the rows have its columns.
        unsafe {
            let (weights, scale, min) = u4_block(bytes.as_ptr().add(index * U4_BLOCK));
            for (t, sum) in sums.iter_mut().enumerate() {
                let at = (row + t) * blocks + first_block + index;
                let values = x.narrow_values.as_ptr().add(at * 32);
                // Two chains, for one would wait for itself.
                let mut dots = [_mm256_setzero_si256(); 2];
                for (i, weights) in weights.iter().enumerate() {
                    dots[i % 2] = _mm256_dpbusd_epi32(dots[i % 2], *weights, spread(values.add(4 * i)));
                }
                let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dots[0], dots[1]));
                let both = _mm256_mul_ps(scale, _mm256_set1_ps(*x.scales.get_unchecked(at)));
                *sum = _mm256_fmadd_ps(both, dot, *sum);
                *sum = _mm256_fmadd_ps(min, _mm256_set1_ps(*x.sums.get_unchecked(at)), *sum);
            }
        }
    }
    lanes(sums)
}

/// The first factor of the 8-bit product is unsigned: |w| · (x with the sign of w).
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn i8_tile<const T: usize, const V: usize>(
    bytes: &[u8],
    x: &Rows,
    row: usize,
    first_block: usize,
) -> [[f32; 8]; T] {
    let mut sums = [_mm256_setzero_ps(); T];
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
                    *dot = _mm256_dpbusd_epi32(*dot, size, _mm256_sign_epi8(values, weights));
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

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn wide_tile<const T: usize>(
    [first, second]: [&[i16]; 2],
    scales: &[f32; LANES],
    x: &Rows,
    row: usize,
) -> [[f32; LANES]; T] {
    let mut sums = [_mm512_setzero_si512(); T];
    let width = x.width();
    // SAFETY: the caller checked that the panels have a vector per pair of columns, and that the rows are there.
    unsafe {
        let values = x.wide_values.as_ptr().add(row * width);
        for pair in 0..width / 2 {
            let a = _mm256_loadu_si256(first.as_ptr().add(pair * 16).cast());
            let b = _mm256_loadu_si256(second.as_ptr().add(pair * 16).cast());
            let weights = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b);
            for (t, sum) in sums.iter_mut().enumerate() {
                let inputs = values.add(t * width + 2 * pair).cast::<i32>().read_unaligned();
                *sum = _mm512_dpwssd_epi32(*sum, weights, _mm512_set1_epi32(inputs));
            }
        }
    }
    let mut out = [[0.0; LANES]; T];
    for (t, (out, sum)) in out.iter_mut().zip(sums).enumerate() {
        // SAFETY: both are one vector, and the caller checked that the row has a scale.
        unsafe {
            let scale = _mm512_set1_ps(*x.scales.get_unchecked(row + t));
            let scales = _mm512_mul_ps(_mm512_loadu_ps(scales.as_ptr()), scale);
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scales));
        }
    }
    out
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) fn panel_products<const T: usize>(rows: [&[f32]; T], panel: &[[f32; LANES]]) -> [[f32; LANES]; T] {
    let mut sums = [_mm512_setzero_ps(); T];
    for (k, columns) in panel.iter().enumerate() {
        // SAFETY: a panel's row is one vector, and the caller checked that the rows have as many values.
        unsafe {
            let columns = _mm512_loadu_ps(columns.as_ptr());
            for (sum, row) in sums.iter_mut().zip(rows) {
                *sum = _mm512_fmadd_ps(_mm512_set1_ps(*row.get_unchecked(k)), columns, *sum);
            }
        }
    }
    let mut out = [[0.0; LANES]; T];
    // SAFETY: a row is one vector.
    out.iter_mut().zip(sums).for_each(|(out, sum)| unsafe { _mm512_storeu_ps(out.as_mut_ptr(), sum) });
    out
}
