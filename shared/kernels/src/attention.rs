//! Causal attention over keys and values in pages of 16-bit floats, grouped queries together, softmax page by page.
//!
//! A row's result depends on its own query and on the positions it sees, not on the rows computed beside it or on how a prompt was
//! cut into steps.

use std::ops::Range;

use half::f16;

use crate::Pool;
use crate::element::{exp, exp_minus, max_of, sum_of};
use crate::shared_mut::SharedMut;
use crate::simd::{self, Element};

/// Positions of a page.
pub const PAGE: usize = 64;
/// Query rows of one tile.
const TILE: usize = 3;
/// Positions whose queries one task computes.
const TASK_ROWS: usize = 32;

/// Heads of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub queries: usize,
    /// Key and value heads; divides `queries`.
    pub keys: usize,
    /// Width of one head; a multiple of 8.
    pub width: usize,
    /// Sliding window: a row sees at most this many positions, its own included.
    pub window: Option<usize>,
}

/// Rows of a batch that follow the positions of one sequence.
#[derive(Debug, Clone)]
pub struct Sequence<'a> {
    /// How many rows it has; those of the first sequence come first in the batch.
    pub rows: usize,
    /// Positions before the first of them.
    pub past: usize,
    /// Pages of this layer in order, the rows' own positions included: for every key-value head `[head_dim, PAGE]` keys and
    /// `[PAGE, head_dim]` values.
    pub pages: Vec<&'a [f16]>,
}

impl Heads {
    /// 16-bit floats that a page of one layer takes.
    pub fn page_len(&self) -> usize {
        self.keys * 2 * self.width * PAGE
    }

    /// Keys and values of one head in a page.
    fn page<'a>(&self, page: &'a [f16], head: usize) -> HeadPage<'a> {
        let size = self.width * PAGE;
        let (keys, values) = page[head * 2 * size..(head + 1) * 2 * size].split_at(size);
        HeadPage { keys, values }
    }

    /// Writes one position's keys and values, both `[keys · width]`, into a page of one layer.
    ///
    /// # Panics
    /// When lengths differ or the page has no such slot.
    pub fn store(&self, page: &mut [f16], slot: usize, key: &[f32], value: &[f32]) {
        let size = self.width * PAGE;
        assert!(page.len() == self.page_len() && key.len() == self.keys * self.width && value.len() == key.len());
        for (head, page) in page.chunks_exact_mut(2 * size).enumerate() {
            let (keys, values) = page.split_at_mut(size);
            let own = head * self.width..(head + 1) * self.width;
            store(keys, values, slot, &key[own.clone()], &value[own]);
        }
    }

    /// Causal attention of a batch. `queries` and `out` `[rows, heads · width]`, the queries scaled already.
    ///
    /// # Panics
    /// When shapes do not fit, or a sequence's pages hold fewer positions than its rows see.
    pub fn attend(&self, pool: &Pool, sequences: &[Sequence<'_>], queries: &[f32], out: &mut [f32]) {
        let row_width = self.queries * self.width;
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let fit = rows.checked_mul(row_width) == Some(queries.len()) && out.len() == queries.len();
        assert!(fit, "queries of {rows} rows");
        let tasks = self.tasks(sequences);
        let shared = SharedMut::new(out);
        let group = self.queries / self.keys * self.width;
        pool.run(tasks.len(), &|index| {
            let Task { sequence, head, first, rows } = &tasks[index];
            let sequence = &sequences[*sequence];
            let of =
                |row: usize| (first + row) * row_width + head * group..(first + row) * row_width + (head + 1) * group;
            let mut gathered = Vec::with_capacity(rows.len() * group);
            rows.clone().for_each(|row| gathered.extend_from_slice(&queries[of(row)]));
            let sees: Vec<Range<usize>> = rows.clone().flat_map(|row| self.sees(sequence.past + row)).collect();
            let end = sees.last().map_or(0, |seen| seen.end).div_ceil(PAGE);
            let pages: Vec<_> = sequence.pages[..end].iter().map(|page| self.page(page, *head)).collect();
            let mut mixed = vec![0.0; gathered.len()];
            attend(&gathered, &sees, &pages, &mut mixed, &mut Scratch::default());
            for (row, mixed) in rows.clone().zip(mixed.chunks_exact(group)) {
                // SAFETY: every row and head belongs to one task.
                unsafe { shared.part(of(row)) }.copy_from_slice(mixed);
            }
        });
    }

    /// What each query of a position's group sees.
    fn sees(&self, position: usize) -> impl Iterator<Item = Range<usize>> {
        let start = self.window.map_or(0, |window| (position + 1).saturating_sub(window));
        std::iter::repeat_n(start..position + 1, self.queries / self.keys)
    }

    fn tasks(&self, sequences: &[Sequence<'_>]) -> Vec<Task> {
        let mut tasks = Vec::new();
        let mut first = 0;
        for (index, sequence) in sequences.iter().enumerate() {
            for start in (0..sequence.rows).step_by(TASK_ROWS) {
                let rows = start..(start + TASK_ROWS).min(sequence.rows);
                tasks.extend((0..self.keys).map(|head| Task { sequence: index, head, first, rows: rows.clone() }));
            }
            first += sequence.rows;
        }
        // The longest first, so that the last ones even out.
        tasks.reverse();
        tasks
    }
}

struct Task {
    sequence: usize,
    head: usize,
    /// The sequence's first row in the batch.
    first: usize,
    rows: Range<usize>,
}

/// Keys and values of up to [`PAGE`] positions of one key-value head.
#[derive(Debug, Clone, Copy)]
struct HeadPage<'a> {
    /// `[head_dim, PAGE]`: one dimension of all positions together.
    keys: &'a [f16],
    /// `[PAGE, head_dim]`.
    values: &'a [f16],
}

/// Writes one position into a head's page.
fn store(keys: &mut [f16], values: &mut [f16], slot: usize, key: &[f32], value: &[f32]) {
    let width = key.len();
    assert!(slot < PAGE && value.len() == width && keys.len() == width * PAGE && values.len() == width * PAGE);
    for (dim, key) in key.iter().enumerate() {
        keys[dim * PAGE + slot] = f16::from_f32(*key);
    }
    for (to, value) in values[slot * width..(slot + 1) * width].iter_mut().zip(value) {
        *to = f16::from_f32(*value);
    }
}

/// Buffers that attention reuses.
#[derive(Debug, Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    rows: RowScratch,
}

#[derive(Debug, Default)]
struct RowScratch {
    scores: Vec<f32>,
    /// Largest score and Σ e^(score − largest) of each row.
    state: Vec<(f32, f32)>,
}

/// `softmax(q · keysᵀ) · values` for rows of one key-value head.
///
/// `queries` `[rows, head_dim]`, scaled already; `sees` the positions of each row; `pages` in order; `out` `[rows, head_dim]`.
///
/// # Panics
/// When shapes differ, the head's width is no multiple of 8, or a row sees a position that no page holds.
fn attend(queries: &[f32], sees: &[Range<usize>], pages: &[HeadPage<'_>], out: &mut [f32], scratch: &mut Scratch) {
    let Some(width) = queries.len().checked_div(sees.len()) else { return };
    assert!(width.is_multiple_of(8) && queries.len() == sees.len() * width && out.len() == queries.len());
    assert!(sees.iter().all(|seen| seen.end <= pages.len() * PAGE), "a row sees more positions than the pages hold");
    scratch.rows.state.clear();
    scratch.rows.state.resize(sees.len(), (f32::NEG_INFINITY, 0.0));
    scratch.rows.scores.resize(TILE * PAGE, 0.0);
    out.fill(0.0);
    for (index, page) in pages.iter().enumerate() {
        assert!(page.keys.len() == width * PAGE && page.values.len() == width * PAGE, "a page of another width");
        let first = index * PAGE;
        if !sees.iter().any(|seen| seen.start < first + PAGE && seen.end > first) {
            continue;
        }
        if sees.len() <= TILE {
            attend_page(queries, sees, first, page.keys, page.values, out, &mut scratch.rows);
        } else {
            scratch.keys.resize(width * PAGE, 0.0);
            scratch.values.resize(width * PAGE, 0.0);
            simd::widen(page.keys, &mut scratch.keys);
            simd::widen(page.values, &mut scratch.values);
            attend_page(queries, sees, first, &scratch.keys, &scratch.values, out, &mut scratch.rows);
        }
    }
    for (row, (_, sum)) in out.chunks_exact_mut(width).zip(&scratch.rows.state) {
        let inverse = if *sum > 0.0 { 1.0 / sum } else { 0.0 };
        row.iter_mut().for_each(|value| *value *= inverse);
    }
}

fn attend_page<N: Element>(
    queries: &[f32],
    sees: &[Range<usize>],
    first: usize,
    keys: &[N],
    values: &[N],
    out: &mut [f32],
    scratch: &mut RowScratch,
) {
    let width = queries.len() / sees.len();
    let of_page = |row: usize| {
        let seen: &Range<usize> = &sees[row];
        seen.start.saturating_sub(first).min(PAGE)..seen.end.saturating_sub(first).min(PAGE)
    };
    for start in (0..sees.len()).step_by(TILE) {
        let rows = start..(start + TILE).min(sees.len());
        let end = rows.clone().map(|row| of_page(row).end).max().unwrap_or(0);
        if rows.clone().all(|row| of_page(row).is_empty()) {
            continue;
        }
        let tile = &queries[rows.start * width..rows.end * width];
        N::scores(tile, width, keys, end.next_multiple_of(32), &mut scratch.scores);
        for row in rows.clone() {
            let (seen, scores) = (of_page(row), &mut scratch.scores[(row - rows.start) * PAGE..][..PAGE]);
            if seen.is_empty() {
                continue;
            }
            let out = &mut out[row * width..(row + 1) * width];
            let (largest, sum) = &mut scratch.state[row];
            let rescale = soften(&mut scores[seen.clone()], largest, sum);
            N::mix(out, rescale, &scores[seen.clone()], &values[seen.start * width..seen.end * width]);
        }
    }
}

/// Turns scores into weights relative to the largest so far; returns what earlier weights are to be multiplied by.
fn soften(scores: &mut [f32], largest: &mut f32, sum: &mut f32) -> f32 {
    let max = max_of(scores).max(*largest);
    let rescale = if *sum > 0.0 { exp(*largest - max) } else { 0.0 };
    exp_minus(scores, max);
    *sum = *sum * rescale + sum_of(scores);
    *largest = max;
    rescale
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pages(width: usize, values: &[f32]) -> Vec<(Vec<f16>, Vec<f16>)> {
        let positions = values.len() / (2 * width);
        let mut pages = vec![(vec![f16::ZERO; width * PAGE], vec![f16::ZERO; width * PAGE]); positions.div_ceil(PAGE)];
        for (position, row) in values.chunks_exact(2 * width).enumerate() {
            let (keys, values) = &mut pages[position / PAGE];
            store(keys, values, position % PAGE, &row[..width], &row[width..]);
        }
        pages
    }

    fn run(queries: &[f32], sees: &[Range<usize>], pages: &[(Vec<f16>, Vec<f16>)]) -> Vec<f32> {
        let mut out = vec![0.0; queries.len()];
        let pages: Vec<_> = pages.iter().map(|(keys, values)| HeadPage { keys, values }).collect();
        attend(queries, sees, &pages, &mut out, &mut Scratch::default());
        out
    }

    /// The formula, in f64.
    fn plain(query: &[f32], seen: &Range<usize>, values: &[f32]) -> Vec<f64> {
        let width = query.len();
        let half = |v: f32| f64::from(f16::from_f32(v).to_f32());
        let rows: Vec<&[f32]> = values.chunks_exact(2 * width).collect();
        let score = |row: &&[f32]| query.iter().zip(*row).map(|(q, k)| f64::from(*q) * half(*k)).sum::<f64>();
        let scores: Vec<f64> = rows[seen.clone()].iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        (0..width)
            .map(|dim| {
                let weighted =
                    rows[seen.clone()].iter().zip(&scores).map(|(row, s)| (s - max).exp() * half(row[width + dim]));
                weighted.sum::<f64>() / total
            })
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

        #[test]
        fn attention_is_its_formula_whatever_stands_beside_a_row(
            positions in 1usize..200,
            seed in any::<u32>(),
            window in 1usize..250,
        ) {
            let width = 16;
            let noise = |i: usize| ((i as f32 + seed as f32 * 1e-6) * 12.9898).sin() * 2.0;
            let values: Vec<f32> = (0..positions * 2 * width).map(noise).collect();
            let sees: Vec<Range<usize>> = [positions, positions.div_ceil(2), positions, 1, positions]
                .into_iter()
                .map(|end| end.saturating_sub(window)..end)
                .collect();
            let queries: Vec<f32> = (0..sees.len() * width).map(|i| noise(i + 7)).collect();
            let pages = pages(width, &values);
            let together = run(&queries, &sees, &pages);
            for (row, seen) in sees.iter().enumerate() {
                let (query, out) = (&queries[row * width..][..width], &together[row * width..][..width]);
                prop_assert_eq!(out, &run(query, std::slice::from_ref(seen), &pages)[..]);
                for (a, b) in out.iter().zip(plain(query, seen, &values)) {
                    prop_assert!((f64::from(*a) - b).abs() < 1e-4, "{} {}", a, b);
                }
            }
        }
    }
}
