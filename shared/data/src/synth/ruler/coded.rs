//! Frequent words: made-up ones, whose frequencies follow a Zeta distribution.

use std::collections::HashSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::super::Synthesizer;
use super::super::draft::{Draft, fitted, shuffled};
use crate::error::Result;

/// Letters of a word.
const LETTERS: usize = 6;
/// What the most frequent word is written as; it is not asked for.
const DOTS: &str = "...";
/// Words asked for.
const ASKED: usize = 3;
/// Tokens of a context for each word of the vocabulary.
const TOKENS_PER_WORD: usize = 50;
/// ζ(2), the sum of all k⁻²: the word of rank k has the share k⁻² / ζ(2).
const ZETA: f64 = std::f64::consts::PI * std::f64::consts::PI / 6.0;

pub(super) fn draft(synthesizer: &Synthesizer<'_>, tokens: usize, rng: &mut ChaCha8Rng) -> Result<(Draft, usize)> {
    let vocabulary = vocabulary((tokens / TOKENS_PER_WORD).max(ASKED + 2), rng);
    let base = rng.clone();
    // A made-up word takes about four tokens, the dots one; `fitted` corrects that.
    fitted(synthesizer, tokens, |aim| Ok(text(&vocabulary, aim / 2, &mut base.clone())))
}

/// Different words by rank.
fn vocabulary(size: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
    let mut seen = HashSet::new();
    let mut words = vec![DOTS.to_owned()];
    while words.len() < size {
        let word: String = (0..LETTERS).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect();
        if seen.insert(word.clone()) {
            words.push(word);
        }
    }
    words
}

fn text(vocabulary: &[String], count: usize, rng: &mut ChaCha8Rng) -> Draft {
    let times = |rank: usize| (count as f64 / ZETA / (rank * rank) as f64) as usize;
    let entries = (1..).zip(vocabulary).flat_map(|(rank, word)| std::iter::repeat_n(word.as_str(), times(rank)));
    let context = shuffled(entries.collect::<Vec<_>>(), rng).join(" ");
    let question = "Ignoring the dots '...', which three coded words appear most often in the coded text above?";
    let answers = vocabulary[1..=ASKED].to_vec();
    Draft { context, question: question.to_owned(), answers, ..Draft::default() }
}
