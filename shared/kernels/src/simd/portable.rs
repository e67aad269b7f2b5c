//! The plain form of every inner loop. The order of operations is that of the vectors, so results are the same.

use half::f16;

use crate::attention::PAGE;
use crate::matrix::{U4_BLOCK, half_at};
use crate::rows::Rows;
use crate::simd::LANES;

pub(super) fn round_block(values: &[f32], out: &mut [i8]) -> (f32, f32) {
    let max = super::max_abs(values.iter());
    if !max.is_finite() {
        return super::not_finite(out);
    }
    let scale = max / 127.0;
    let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
    let mut sum = 0;
    for (q, v) in out.iter_mut().zip(values) {
        let rounded = (v * inverse).round_ties_even() as i32;
        *q = rounded as i8;
        sum += rounded;
    }
    (scale, scale * sum as f32)
}

pub(super) fn round_wide(values: &[f32], limit: f32, out: &mut [i16]) -> f32 {
    let max = super::max_abs(values.iter());
    if !max.is_finite() {
        return super::not_finite(out).0;
    }
    let inverse = if max > 0.0 { limit / max } else { 0.0 };
    for (q, v) in out.iter_mut().zip(values) {
        *q = (v * inverse).round_ties_even() as i16;
    }
    out[values.len()..].fill(0);
    max / limit
}

pub(super) fn u4_tile<const T: usize>(bytes: &[u8], x: &Rows, row: usize, first_block: usize) -> [[f32; 8]; T] {
    let mut sums = [[0.0f32; 8]; T];
    for (index, block) in bytes.chunks_exact(U4_BLOCK).enumerate() {
        for (t, sums) in sums.iter_mut().enumerate() {
            let at = (row + t) * x.blocks() + first_block + index;
            let values = &x.narrow_values[at * 32..(at + 1) * 32];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let products = values.iter().enumerate().map(|(col, value)| {
                    let pair = block[col / 4 % 4 * 32 + lane * 4 + col % 4];
                    i32::from(if col < 16 { pair & 15 } else { pair >> 4 }) * i32::from(*value)
                });
                let dot = products.sum::<i32>() as f32;
                let (scale, min) = (half_at(block, 128 + 2 * lane).to_f32(), half_at(block, 144 + 2 * lane).to_f32());
                *sum = (scale * x.scales[at]).mul_add(dot, *sum);
                *sum = min.mul_add(x.sums[at], *sum);
            }
        }
    }
    sums
}

pub(super) fn i8_tile<const T: usize, const V: usize>(
    bytes: &[u8],
    x: &Rows,
    row: usize,
    first_block: usize,
) -> [[f32; 8]; T] {
    let mut sums = [[0.0f32; 8]; T];
    for (index, block) in bytes.chunks_exact(V * 32 + 16).enumerate() {
        for (t, sums) in sums.iter_mut().enumerate() {
            let at = (row + t) * x.blocks() + first_block + index;
            let values = &x.narrow_values[at * V * 4..(at + 1) * V * 4];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let products = values
                    .iter()
                    .enumerate()
                    .map(|(col, value)| i32::from(block[col / 4 * 32 + lane * 4 + col % 4] as i8) * i32::from(*value));
                let dot = products.sum::<i32>() as f32;
                *sum = (half_at(block, V * 32 + 2 * lane).to_f32() * x.scales[at]).mul_add(dot, *sum);
            }
        }
    }
    sums
}

pub(super) fn wide_tile<const T: usize>(
    panels: [&[i16]; 2],
    scales: &[f32; LANES],
    x: &Rows,
    row: usize,
) -> [[f32; LANES]; T] {
    let width = x.width();
    std::array::from_fn(|t| {
        let values = &x.wide_values[(row + t) * width..(row + t + 1) * width];
        let mut sums = [0i32; LANES];
        for (pair, values) in values.chunks_exact(2).enumerate() {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let at = pair * 16 + lane % 8 * 2;
                let weights = &panels[lane / 8][at..at + 2];
                *sum += i32::from(weights[0]) * i32::from(values[0]) + i32::from(weights[1]) * i32::from(values[1]);
            }
        }
        std::array::from_fn(|lane| sums[lane] as f32 * (scales[lane] * x.scales[row + t]))
    })
}

pub(super) fn panel_products<const T: usize>(rows: [&[f32]; T], panel: &[[f32; LANES]]) -> [[f32; LANES]; T] {
    rows.map(|row| {
        let mut sums = [0.0; LANES];
        for (value, panel) in row.iter().zip(panel) {
            sums.iter_mut().zip(panel).for_each(|(sum, column)| *sum = value.mul_add(*column, *sum));
        }
        sums
    })
}

pub(super) fn widen(from: &[f16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}

pub(super) fn scores<const T: usize>(rows: &[f32], width: usize, keys: &[f32], count: usize, out: &mut [f32]) {
    scores_of::<T, _>(rows, width, keys, count, out);
}

pub(super) fn half_scores<const T: usize>(rows: &[f32], width: usize, keys: &[f16], count: usize, out: &mut [f32]) {
    scores_of::<T, _>(rows, width, keys, count, out);
}

fn scores_of<const T: usize, N: Copy + Into<f32>>(
    rows: &[f32],
    width: usize,
    keys: &[N],
    count: usize,
    out: &mut [f32],
) {
    for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(PAGE)).take(T) {
        out[..count].fill(0.0);
        for (query, keys) in row.iter().zip(keys.chunks_exact(PAGE)) {
            for (out, key) in out[..count].iter_mut().zip(keys) {
                *out = query.mul_add((*key).into(), *out);
            }
        }
    }
}

pub(super) fn mix(out: &mut [f32], rescale: f32, weights: &[f32], values: &[f32]) {
    mix_of(out, rescale, weights, values);
}

pub(super) fn half_mix(out: &mut [f32], rescale: f32, weights: &[f32], values: &[f16]) {
    mix_of(out, rescale, weights, values);
}

fn mix_of<N: Copy + Into<f32>>(out: &mut [f32], rescale: f32, weights: &[f32], values: &[N]) {
    out.iter_mut().for_each(|out| *out *= rescale);
    for (weight, values) in weights.iter().zip(values.chunks_exact(out.len())) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = weight.mul_add((*value).into(), *out);
        }
    }
}
