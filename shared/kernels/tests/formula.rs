//! Products against the plain formula on the values that were given, through the public interface.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2llm_kernels::{Format, Into, Linear, Lora, Matrix, Pool, Rows, Scratch};
use proptest::prelude::*;

/// Most rows, outputs and inputs of a case.
const ROWS: usize = 9;
const OUTPUTS: usize = 27;
const INPUTS: usize = 96;
const RANK: usize = 4;

fn packed(format: Format, outputs: usize, weights: &[f32]) -> Matrix {
    match format {
        Format::I16 => Matrix::i16_from_f32(outputs, INPUTS, weights),
        Format::I8 => Matrix::i8_from_f32(outputs, INPUTS, weights),
        Format::U4 => Matrix::from_q4_1(outputs, INPUTS, &q4_1(weights)),
    }
    .unwrap()
}

/// Blocks of scale 1/16, minimum −0.5 and four bits of each weight.
fn q4_1(weights: &[f32]) -> Vec<u8> {
    let nibble = |weight: f32| ((weight + 1.0) * 7.5) as u8 & 15;
    let block = |values: &[f32]| {
        let pairs = (0..16).map(|i| nibble(values[i]) | nibble(values[i + 16]) << 4);
        [0x00, 0x2c, 0x00, 0xb8].into_iter().chain(pairs).collect::<Vec<u8>>()
    };
    weights.chunks_exact(32).flat_map(block).collect()
}

fn rows(linear: &Linear, pool: &Pool, x: &[f32]) -> Rows {
    let mut rows = Rows::default();
    rows.shape_for(linear.weight(), x.len() / INPUTS);
    rows.fill(pool, x, |from, to| to.copy_from_slice(from));
    rows
}

fn product(linear: &Linear, pool: &Pool, x: &[f32], into: Into) -> Vec<f32> {
    let mut out = vec![1.0; x.len() / INPUTS * linear.weight().rows()];
    linear.forward(pool, &rows(linear, pool, x), &mut out, into, &mut Scratch::default());
    out
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_product_is_as_near_to_its_formula_as_the_rounding_of_the_inputs_allows(
        format in prop::sample::select(vec![Format::U4, Format::I8, Format::I16]),
        (count, outputs) in (1..=ROWS, 1..=OUTPUTS),
        weights in prop::collection::vec(-1f32..1.0, OUTPUTS * INPUTS),
        x in prop::collection::vec(-5f32..5.0, ROWS * INPUTS),
        into in prop::sample::select(vec![Into::Replace, Into::Add]),
    ) {
        let bias: Vec<f32> = (0..outputs).map(|output| output as f32).collect();
        let linear = Linear::new(packed(format, outputs, &weights[..outputs * INPUTS]), bias.clone()).unwrap();
        let x = &x[..count * INPUTS];
        let out = product(&linear, &Pool::new(2), x, into);
        prop_assert_eq!(&out, &product(&linear, Pool::single(), x, into), "threads change nothing");
        for (row, x) in x.chunks_exact(INPUTS).enumerate() {
            let alone = product(&linear, Pool::single(), x, into);
            prop_assert_eq!(&out[row * outputs..(row + 1) * outputs], alone.as_slice(), "nor does company");
            for output in 0..outputs {
                let weights = linear.weight().row(output);
                let size: f32 = weights.iter().map(|w| w.abs()).sum();
                let steps = if format == Format::I16 { 4095.0 } else { 127.0 };
                let exact = dot(&weights, x) + f64::from(bias[output]) + if into == Into::Add { 1.0 } else { 0.0 };
                let error = (f64::from(alone[output]) - exact).abs();
                // Half a step of every input, and what f32 sums lose.
                prop_assert!(error <= f64::from(size * 5.0 * (0.5 / steps + 1e-5) + 1e-4), "{format:?}: off by {error}");
            }
        }
    }

    #[test]
    fn lora_adds_its_two_products(
        weights in prop::collection::vec(-1f32..1.0, 2 * 16 * INPUTS),
        a in prop::collection::vec(-1f32..1.0, 2 * RANK * INPUTS),
        b in prop::collection::vec(-1f32..1.0, 2 * 16 * RANK),
        x in prop::collection::vec(-1f32..1.0, 5 * INPUTS),
    ) {
        let plain = Linear::new(packed(Format::U4, 32, &weights), Vec::new()).unwrap();
        let part = |layer: usize| (16, &a[layer * RANK * INPUTS..][..RANK * INPUTS], &b[layer * 16 * RANK..][..16 * RANK]);
        let lora = Lora::new(&[part(0), part(1)], RANK, INPUTS).unwrap();
        let with = plain.clone().with_lora(lora).unwrap();
        let (without, with) = (product(&plain, Pool::single(), &x, Into::Replace), product(&with, Pool::single(), &x, Into::Replace));
        for (row, x) in x.chunks_exact(INPUTS).enumerate() {
            for output in 0..32 {
                let (_, a, b) = part(output / 16);
                let low: Vec<f32> = a.chunks_exact(INPUTS).map(|a| dot(a, x) as f32).collect();
                let expected = dot(&b[output % 16 * RANK..][..RANK], &low);
                let added = f64::from(with[row * 32 + output] - without[row * 32 + output]);
                let size: f32 = low.iter().map(|low| low.abs()).sum::<f32>() + 5.0;
                prop_assert!((added - expected).abs() < f64::from(0.05 * size), "{added} instead of {expected}");
            }
        }
    }
}

#[test]
fn a_value_that_is_no_number_is_seen_in_its_own_row_only() {
    let weights: Vec<f32> = (0..8 * INPUTS).map(|i| (i as f32).sin()).collect();
    for format in [Format::U4, Format::I8, Format::I16] {
        let linear = Linear::new(packed(format, 8, &weights), Vec::new()).unwrap();
        for bad in [f32::NAN, f32::INFINITY] {
            let mut x = vec![0.5; 2 * INPUTS];
            x[INPUTS + 40] = bad;
            let out = product(&linear, Pool::single(), &x, Into::Replace);
            assert!(
                out[..8].iter().all(|value| value.is_finite()) && out[8..].iter().all(|value| value.is_nan()),
                "{format:?}"
            );
        }
    }
}

#[test]
fn lengths_that_do_not_exist_are_refused() {
    assert!(Matrix::i16_from_f32(8, 1 << 61, &[]).unwrap_err().contains("too large"));
    assert!(Matrix::from_q8_0(1 << 60, 1 << 10, &[]).unwrap_err().contains("too large"));
    let linear = Linear::new(packed(Format::I8, 8, &[0.5; 8 * INPUTS]), Vec::new()).unwrap();
    let shaped = std::panic::catch_unwind(|| Rows::default().shape_for(linear.weight(), 1 << 60));
    assert!(shaped.is_err());
}
