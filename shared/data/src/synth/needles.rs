//! Needles in a haystack: sentences that give a key a value.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::draft::{Draft, Needle, any, depths, fitted, hidden, shuffled};
use super::values::{Form, Unique};
use super::{Synthesizer, TaskKind};
use crate::error::{DataError, Result};

/// Draws of keys and values, should one be in the text already.
const DRAWS: usize = 8;

/// The answer to a question that the text does not answer.
const NOT_SAID: &str = "The text does not say.";

const WORDINGS: [&str; 6] = [
    "One of the special {noun}s for {key} is: {value}.",
    "The {noun} of {key} is {value}.",
    "For {key}, the {noun} {value} has been recorded.",
    "Please remember that {value} is a {noun} of {key}.",
    "A {noun} was given to {key}: {value}.",
    "Whoever looks for {key} needs the {noun} {value}.",
];
const ONE: [&str; 3] = [
    "What is the {noun} of {key}?",
    "Which {noun} does the text give for {key}?",
    "Find the {noun} of {key} in the text.",
];
const ALL: [&str; 3] = [
    "What are all the {noun}s of {key}?",
    "Which {noun}s does the text give for {key}? Name all of them.",
    "List every {noun} of {key} in the text.",
];
const SEVERAL: [&str; 2] = [
    "What are the {noun}s of {keys}, in this order?",
    "Which {noun}s does the text give for {keys}? Answer in this order.",
];

/// Keys with their values, and how many of them are asked for.
struct Pairs {
    noun: &'static str,
    /// Those asked for come first.
    pairs: Vec<(String, String)>,
    asked: usize,
    /// Whether the text holds those asked for.
    are_told: bool,
}

impl Pairs {
    /// Number of the first pair that is hidden in the text.
    fn first_hidden(&self) -> usize {
        if self.are_told { 0 } else { self.asked }
    }
}

pub(super) fn draft(
    synthesizer: &Synthesizer<'_>,
    task: TaskKind,
    tokens: usize,
    rng: &mut ChaCha8Rng,
) -> Result<(Draft, usize)> {
    for _ in 0..DRAWS {
        let pairs = pairs(synthesizer, task, rng);
        let needles = needles(&pairs, rng);
        let (question, in_order) = question(&pairs, task, rng);
        let base = rng.clone();
        let (mut draft, counted) = fitted(synthesizer, tokens, |aim| {
            let (context, evidence) = hidden(synthesizer, aim, &needles, &mut base.clone())?;
            Ok(Draft { context, evidence, ..Draft::default() })
        })?;
        let once = |text: &str| draft.context.matches(text).count() == 1;
        if !pairs.pairs[pairs.first_hidden()..].iter().all(|(_, value)| once(value)) {
            continue;
        }
        let asked = &pairs.pairs[..pairs.asked];
        let mut answers: Vec<String> = match pairs.are_told {
            true => asked.iter().map(|(_, value)| value.clone()).collect(),
            false => vec![NOT_SAID.to_owned()],
        };
        if !in_order {
            answers.sort_by_key(|value| draft.context.find(value.as_str()));
        }
        let mut keys: Vec<String> = asked.iter().map(|(key, _)| key.clone()).collect();
        keys.dedup();
        (draft.question, draft.keys, draft.answers) = (question, keys, answers);
        return Ok((draft, counted));
    }
    Err(DataError::Haystack("every value drawn was in the haystack already; give texts with more words".to_owned()))
}

fn pairs(synthesizer: &Synthesizer<'_>, task: TaskKind, rng: &mut ChaCha8Rng) -> Pairs {
    let form = Form::any(rng);
    let noun = any(form.nouns(), rng);
    let mut unique = Unique::new(synthesizer.haystack);
    let (asked, others) = match task {
        TaskKind::NiahMultikey | TaskKind::Unanswerable => (1, rng.random_range(3..=7)),
        TaskKind::NiahMultivalue | TaskKind::NiahMultiquery => (4, 2),
        _ => (1, 0),
    };
    let mut pairs: Vec<(String, String)> =
        (0..asked + others).map(|_| (unique.key(rng), unique.value(form, rng))).collect();
    if task == TaskKind::NiahMultivalue {
        let key = pairs[0].0.clone();
        pairs[..asked].iter_mut().for_each(|pair| pair.0.clone_from(&key));
    }
    Pairs { noun, pairs, asked, are_told: task != TaskKind::Unanswerable }
}

fn needles(pairs: &Pairs, rng: &mut ChaCha8Rng) -> Vec<Needle> {
    let hidden: Vec<usize> = (pairs.first_hidden()..pairs.pairs.len()).collect();
    let depths = depths(hidden.len(), rng);
    let order = shuffled(hidden, rng);
    let needle = |(at, number): (f64, usize)| {
        let (key, value) = &pairs.pairs[number];
        let wording = any(&WORDINGS, rng).replace("{noun}", pairs.noun).replace("{key}", key);
        Needle { text: wording.replace("{value}", value), at, holds_answer: number < pairs.asked }
    };
    depths.into_iter().zip(order).map(needle).collect()
}

/// The question, and whether it asks for answers in an order of its own instead of the text's.
fn question(pairs: &Pairs, task: TaskKind, rng: &mut ChaCha8Rng) -> (String, bool) {
    let wordings: &[&str] = match task {
        TaskKind::NiahMultivalue => &ALL,
        TaskKind::NiahMultiquery => &SEVERAL,
        _ => &ONE,
    };
    let keys: Vec<&str> = pairs.pairs[..pairs.asked].iter().map(|(key, _)| key.as_str()).collect();
    let (last, first) = keys.split_last().map_or(("", &keys[..]), |(last, first)| (*last, first));
    let list = if first.is_empty() { last.to_owned() } else { format!("{} and {last}", first.join(", ")) };
    let question = any(wordings, rng).replace("{noun}", pairs.noun).replace("{keys}", &list).replace("{key}", last);
    (question, task == TaskKind::NiahMultiquery)
}
