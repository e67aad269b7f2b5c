//! Variable tracking: chains of assignments hidden in the text.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Synthesizer;
use super::draft::{Draft, Needle, any, depths, fitted, hidden, shuffled};
use crate::error::Result;

/// Variables of a chain that is asked for.
const CHAIN: std::ops::RangeInclusive<usize> = 3..=5;

const FIRST: [&str; 3] = ["VAR {a} = {v}.", "Let the variable {a} be {v}.", "The variable {a} is set to {v}."];
const NEXT: [&str; 3] =
    ["VAR {a} = VAR {b}.", "Let the variable {a} be equal to {b}.", "The variable {a} gets the value of {b}."];
const QUESTIONS: [&str; 3] = [
    "Which variables have the value {v}, directly or through other variables? Name all of them.",
    "Find all variables that are assigned the value {v} in the text, also by way of others.",
    "List every variable whose value is {v}.",
];

/// Variables that all have one value, each but the first from the one before it.
struct Chain {
    names: Vec<String>,
    value: String,
}

pub(super) fn draft(synthesizer: &Synthesizer<'_>, tokens: usize, rng: &mut ChaCha8Rng) -> Result<(Draft, usize)> {
    let chains = chains(rng);
    let mut needles: Vec<Needle> = Vec::new();
    for (number, chain) in chains.iter().enumerate() {
        needles.extend(chain.needles(number == 0, rng));
    }
    let question = any(&QUESTIONS, rng).replace("{v}", &chains[0].value);
    let base = rng.clone();
    fitted(synthesizer, tokens, |aim| {
        let (context, evidence) = hidden(synthesizer, aim, &needles, &mut base.clone())?;
        let (keys, answers) = (vec![chains[0].value.clone()], chains[0].names.clone());
        Ok(Draft { context, evidence, question: question.clone(), keys, answers })
    })
}

/// The chain asked for, and one more.
fn chains(rng: &mut ChaCha8Rng) -> [Chain; 2] {
    let lengths = [rng.random_range(CHAIN), rng.random_range(CHAIN)];
    let mut names = names(lengths[0] + lengths[1], rng);
    let others = names.split_off(lengths[0]);
    let first: u32 = rng.random_range(10_000..99_999);
    let second = if first < 55_000 { first + 12_345 } else { first - 12_345 };
    [Chain { names, value: first.to_string() }, Chain { names: others, value: second.to_string() }]
}

/// Names of variables: different first letters keep them apart.
pub(super) fn names(count: usize, rng: &mut ChaCha8Rng) -> Vec<String> {
    let initials = shuffled(('A'..='Z').collect::<Vec<char>>(), rng);
    initials.into_iter().take(count).map(|initial| name(initial, rng)).collect()
}

/// Five capital letters.
fn name(initial: char, rng: &mut ChaCha8Rng) -> String {
    std::iter::once(initial).chain((0..4).map(|_| char::from(rng.random_range(b'A'..=b'Z')))).collect()
}

impl Chain {
    fn needles(&self, holds_answer: bool, rng: &mut ChaCha8Rng) -> Vec<Needle> {
        let depths = depths(self.names.len(), rng);
        let text = |number: usize, rng: &mut ChaCha8Rng| match number.checked_sub(1) {
            None => any(&FIRST, rng).replace("{v}", &self.value),
            Some(before) => any(&NEXT, rng).replace("{b}", &self.names[before]),
        };
        let needle = |(number, at): (usize, f64)| {
            let text = text(number, rng).replace("{a}", &self.names[number]);
            Needle { text, at, holds_answer }
        };
        depths.into_iter().enumerate().map(needle).collect()
    }
}
