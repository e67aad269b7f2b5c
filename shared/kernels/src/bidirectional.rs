//! Attention of every position to all positions of its sequence, as encoders have it.

use crate::element::{exp_minus_and_sum, max_of};
use crate::simd::{self, LANES};

/// Positions whose queries are computed together.
const TILE: usize = 6;
/// The same where there are twice as many registers.
const LARGE_TILE: usize = 8;

/// Buffers of one thread.
#[derive(Debug, Default)]
pub struct Scratch {
    /// Panels of 16 positions `[panels, head_dim]`.
    keys: Vec<[f32; LANES]>,
    /// Panels of 16 dimensions `[panels, length]`.
    values: Vec<[f32; LANES]>,
    /// `[tile, head_dim]`.
    queries: Vec<f32>,
    /// `[tile, length]`, rows filled up to whole panels.
    scores: Vec<f32>,
}

/// `out = softmax(q·kᵀ/√head_dim)·v` of each head: `out` is `[length, width]`, `qkv` `[length, 3 · width]`, `heads` parts of
/// queries, then of keys, then of values. A sequence's result depends on nothing else.
///
/// # Panics
/// When the slices do not have these shapes: a fault of the caller.
pub fn attend_to_all(out: &mut [f32], qkv: &[f32], width: usize, heads: usize, scratch: &mut Scratch) {
    let fits = heads > 0 && width.is_multiple_of(heads) && width > 0 && out.len().is_multiple_of(width);
    assert!(fits && qkv.len() == 3 * out.len(), "{heads} heads in {width}, {} from {}", out.len(), qkv.len());
    for head in 0..heads {
        if simd::has_vnni() {
            one_head::<LARGE_TILE>(out, qkv, width, (head, width / heads), scratch);
        } else {
            one_head::<TILE>(out, qkv, width, (head, width / heads), scratch);
        }
    }
}

fn one_head<const T: usize>(
    out: &mut [f32],
    qkv: &[f32],
    width: usize,
    (head, dim): (usize, usize),
    scratch: &mut Scratch,
) {
    let length = out.len() / width;
    let part = |position: usize, index: usize| &qkv[(3 * position + index) * width + head * dim..][..dim];
    scratch.pack(length, dim, &part);
    let Scratch { keys, values, queries, scores } = scratch;
    let padded = length.next_multiple_of(LANES);
    queries.resize(T * dim, 0.0);
    scores.resize(T * padded, 0.0);
    let scale = 1.0 / (dim as f32).sqrt();
    for start in (0..length).step_by(T) {
        for (row, to) in queries.chunks_exact_mut(dim).enumerate() {
            // A tile that is not full computes its last row several times.
            let from = part((start + row).min(length - 1), 0);
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from * scale);
        }
        let rows: [&[f32]; T] = std::array::from_fn(|row| &queries[row * dim..(row + 1) * dim]);
        for (panel, keys) in keys.chunks_exact(dim).enumerate() {
            for (row, sums) in simd::panel_products(rows, keys).iter().enumerate() {
                scores[row * padded + panel * LANES..][..LANES].copy_from_slice(sums);
            }
        }
        let mut inverse = [0.0; T];
        for (row, inverse) in scores.chunks_exact_mut(padded).zip(&mut inverse) {
            row[length..].fill(f32::NEG_INFINITY);
            let max = max_of(row);
            *inverse = 1.0 / exp_minus_and_sum(row.as_chunks_mut().0, max);
        }
        let rows: [&[f32]; T] = std::array::from_fn(|row| &scores[row * padded..][..length]);
        for (panel, values) in values.chunks_exact(length).enumerate() {
            let sums = simd::panel_products(rows, values);
            let at = panel * LANES;
            let count = LANES.min(dim - at);
            for (row, sums) in sums.iter().enumerate().take(length - start) {
                let out = &mut out[(start + row) * width + head * dim + at..][..count];
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum * inverse[row]);
            }
        }
    }
}

impl Scratch {
    /// Keys and values of one head as panels, filled up with zeros; `part` gives a position's queries, keys or values.
    fn pack<'a>(&mut self, length: usize, dim: usize, part: &impl Fn(usize, usize) -> &'a [f32]) {
        self.keys.clear();
        self.keys.resize(length.div_ceil(LANES) * dim, [0.0; LANES]);
        self.values.clear();
        self.values.resize(dim.div_ceil(LANES) * length, [0.0; LANES]);
        for position in 0..length {
            let panel = &mut self.keys[position / LANES * dim..][..dim];
            panel.iter_mut().zip(part(position, 1)).for_each(|(to, from)| to[position % LANES] = *from);
            for (panel, from) in part(position, 2).chunks(LANES).enumerate() {
                self.values[panel * length + position][..from.len()].copy_from_slice(from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The formula in f64.
    fn plain(qkv: &[f32], width: usize, heads: usize) -> Vec<f64> {
        let (length, dim) = (qkv.len() / 3 / width, width / heads);
        let value = |position: usize, part: usize, at: usize| f64::from(qkv[(3 * position + part) * width + at]);
        let mut out = vec![0.0; length * width];
        for (position, at) in (0..length).flat_map(|p| (0..heads).map(move |head| (p, head * dim))) {
            let dot = |other: usize| (at..at + dim).map(|i| value(position, 0, i) * value(other, 1, i)).sum::<f64>();
            let weights: Vec<f64> = (0..length).map(|other| (dot(other) / (dim as f64).sqrt()).exp()).collect();
            for i in at..at + dim {
                let mixed = weights.iter().enumerate().map(|(other, weight)| weight * value(other, 2, i)).sum::<f64>();
                out[position * width + i] = mixed / weights.iter().sum::<f64>();
            }
        }
        out
    }

    fn attended<const T: usize>(qkv: &[f32], width: usize, heads: usize) -> Vec<f32> {
        let mut out = vec![f32::NAN; qkv.len() / 3];
        let mut scratch = Scratch::default();
        (0..heads).for_each(|head| one_head::<T>(&mut out, qkv, width, (head, width / heads), &mut scratch));
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_head_is_the_plain_formula_whatever_the_tile(
            length in 1usize..70,
            dim in 1usize..40,
            heads in 1usize..4,
            seed in 0u64..1_000,
        ) {
            let width = heads * dim;
            let qkv: Vec<f32> = (0..3 * length * width).map(|i| ((i as u64 * 37 + seed) as f32).sin() * 2.0).collect();
            let mut out = vec![f32::NAN; length * width];
            attend_to_all(&mut out, &qkv, width, heads, &mut Scratch::default());
            for (own, plain) in out.iter().zip(plain(&qkv, width, heads)) {
                prop_assert!((f64::from(*own) - plain).abs() < 2e-5, "{own} {plain}");
            }
            prop_assert_eq!(&out, &attended::<TILE>(&qkv, width, heads));
            prop_assert_eq!(&out, &attended::<LARGE_TILE>(&qkv, width, heads));
        }
    }

    #[test]
    fn no_positions_are_no_fault() {
        attend_to_all(&mut [], &[], 8, 2, &mut Scratch::default());
    }

    #[test]
    #[should_panic(expected = "3 heads in 8")]
    fn heads_that_do_not_divide_the_width_are_refused() {
        attend_to_all(&mut [0.0; 8], &[0.0; 24], 8, 3, &mut Scratch::default());
    }
}
