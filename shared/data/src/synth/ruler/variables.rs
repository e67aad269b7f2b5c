//! One chain of assignments in noise.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::super::Synthesizer;
use super::super::draft::{Draft, Needle, assemble, cost, depths, fitted};
use super::super::variables::names;
use super::needles::noise;
use crate::error::Result;

/// Assignments after the first.
const HOPS: usize = 4;

pub(super) fn draft(synthesizer: &Synthesizer<'_>, tokens: usize, rng: &mut ChaCha8Rng) -> Result<(Draft, usize)> {
    let value = rng.random_range(10_000..=99_999).to_string();
    let names = names(HOPS + 1, rng);
    let depths = depths(names.len(), rng);
    let needle = |(number, at): (usize, f64)| {
        let assigned = number.checked_sub(1).map_or(value.clone(), |before| format!("VAR {}", names[before]));
        Needle { text: format!("VAR {} = {assigned}.", names[number]), at, holds_answer: true }
    };
    let needles: Vec<Needle> = depths.into_iter().enumerate().map(needle).collect();
    fitted(synthesizer, tokens, |aim| {
        let pieces = noise(synthesizer, aim.saturating_sub(cost(synthesizer, &needles)?))?;
        let (context, evidence) = assemble(&pieces, &needles);
        let question = format!("Find all variables that are assigned the value {value} in the text.");
        Ok(Draft { context, evidence, question, keys: vec![value.clone()], answers: names.clone() })
    })
}
