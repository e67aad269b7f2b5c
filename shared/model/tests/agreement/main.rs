//! Agreement with independent implementations: vectors, logits, continuations and gradients of `tests/golden`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cpu;
mod decoder;
mod encoder;
#[path = "../../../../tests/golden/golden.rs"]
mod golden;
mod gradients;
mod prefixes;
mod tiny;
mod training;

use std::path::PathBuf;

use e2llm_weights::{Catalogue, Fetcher, ModelFiles, ModelRef};

/// The files of a model of the catalogue; fetched when absent.
fn model(name: &str) -> ModelFiles {
    let fetcher = Fetcher::new(Catalogue::builtin().unwrap(), None).unwrap();
    fetcher.resolve(&ModelRef::parse(name).unwrap()).unwrap()
}

fn gguf() -> PathBuf {
    model("smollm2").weights.remove(0)
}

/// Largest absolute difference of two equally long lists.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[track_caller]
fn assert_close(name: &str, ours: &[f32], theirs: &[f32], tolerance: f32) {
    let distance = distance(ours, theirs);
    assert!(distance <= tolerance, "{name}: off by {distance}, allowed is {tolerance}");
}
