//! Needles with the wording, haystacks and numbers that RULER gives them.

use rand::Rng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

use super::super::Synthesizer;
use super::super::draft::{Draft, Needle, Piece, assemble, cost, fitted, texts};
use super::super::values::{Form, Unique};
use crate::error::{DataError, Result};

/// What is repeated where the haystack is noise.
pub(super) const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
/// Draws of keys and values, should one be in the text already.
const DRAWS: usize = 8;
/// Depths that needles are hidden at, from the first place to the last.
const DEPTHS: usize = 40;

/// What surrounds the needles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hay {
    Noise,
    Texts,
    /// Needles of the same form that nobody asks for.
    Needles,
}

/// A configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needles {
    pub(super) hay: Hay,
    pub(super) key: Form,
    pub(super) value: Form,
    pub(super) keys: usize,
    pub(super) values: usize,
    pub(super) queries: usize,
}

pub(super) fn draft(
    synthesizer: &Synthesizer<'_>,
    needles: Needles,
    tokens: usize,
    rng: &mut ChaCha8Rng,
) -> Result<(Draft, usize)> {
    for _ in 0..DRAWS {
        let mut unique = Unique::new(synthesizer.haystack);
        let keys: Vec<String> = (0..needles.keys).map(|_| unique.value(needles.key, rng)).collect();
        let values = keys.iter().flat_map(|key| std::iter::repeat_n(key, needles.values));
        let pairs: Vec<(&String, String)> = values.map(|key| (key, unique.value(needles.value, rng))).collect();
        let mut asked = sample(rng, keys.len(), needles.queries).into_vec();
        asked.sort_unstable();
        let asked: Vec<&String> = asked.into_iter().map(|number| &keys[number]).collect();
        let hidden = needles.hidden(&pairs, &asked, rng);
        let (base, base_unique) = (rng.clone(), unique);
        let (mut draft, counted) = fitted(synthesizer, tokens, |aim| {
            let (mut rng, mut unique) = (base.clone(), base_unique.clone());
            let pieces = needles.pieces(synthesizer, aim, &hidden, &mut unique, &mut rng)?;
            let (context, evidence) = assemble(&pieces, &hidden);
            Ok(Draft { context, evidence, ..Draft::default() })
        })?;
        if !pairs.iter().all(|(_, value)| draft.context.matches(value.as_str()).count() == 1) {
            continue;
        }
        draft.question = needles.question(&asked);
        draft.answers = pairs.iter().filter(|(key, _)| asked.contains(key)).map(|(_, value)| value.clone()).collect();
        draft.keys = asked.into_iter().cloned().collect();
        return Ok((draft, counted));
    }
    Err(DataError::Haystack("every value drawn was in the haystack already; give texts with more words".to_owned()))
}

impl Needles {
    fn sentence(&self, key: &str, value: &str) -> String {
        format!("One of the special magic {} for {key} is: {value}.", plural(self.value))
    }

    /// The pairs as needles; among texts at different ones of [`DEPTHS`], elsewhere anywhere.
    fn hidden(&self, pairs: &[(&String, String)], asked: &[&String], rng: &mut ChaCha8Rng) -> Vec<Needle> {
        let depths: Vec<f64> = match self.hay {
            Hay::Texts => {
                sample(rng, DEPTHS, pairs.len()).into_iter().map(|at| at as f64 / (DEPTHS - 1) as f64).collect()
            }
            _ => pairs.iter().map(|_| rng.random()).collect(),
        };
        let needle = |((key, value), at): (&(&String, String), f64)| Needle {
            text: self.sentence(key, value),
            at,
            holds_answer: asked.contains(key),
        };
        pairs.iter().zip(depths).map(needle).collect()
    }

    /// Hay that fills what the needles leave of `aim` tokens.
    fn pieces(
        &self,
        synthesizer: &Synthesizer<'_>,
        aim: usize,
        hidden: &[Needle],
        unique: &mut Unique<'_>,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Piece>> {
        let room = aim.saturating_sub(cost(synthesizer, hidden)?);
        match self.hay {
            Hay::Texts => texts(synthesizer, room, rng),
            Hay::Noise => noise(synthesizer, room),
            Hay::Needles => {
                let (mut pieces, mut left) = (Vec::new(), room);
                loop {
                    let text = self.sentence(&unique.value(self.key, rng), &unique.value(self.value, rng));
                    let Some(rest) = left.checked_sub((synthesizer.count)(&format!("{text}\n"))?) else {
                        return Ok(pieces);
                    };
                    left = rest;
                    pieces.push(Piece::line(text));
                }
            }
        }
    }

    fn question(&self, asked: &[&String]) -> String {
        let noun = plural(self.value);
        let query = match asked {
            [first @ .., last] if !first.is_empty() => {
                let first: Vec<&str> = first.iter().map(|key| key.as_str()).collect();
                format!("{}, and {last}", first.join(", "))
            }
            _ => asked.first().map(|key| (*key).clone()).unwrap_or_default(),
        };
        if self.queries * self.values == 1 {
            let noun = noun.trim_end_matches('s');
            return format!("What is the special magic {noun} for {query} mentioned in the text?");
        }
        format!("What are all the special magic {noun} for {query} mentioned in the text?")
    }
}

/// Lines of noise.
pub(super) fn noise(synthesizer: &Synthesizer<'_>, tokens: usize) -> Result<Vec<Piece>> {
    let lines = tokens / (synthesizer.count)(&format!("{NOISE}\n"))?.max(1);
    Ok((0..lines).map(|_| Piece::line(NOISE.to_owned())).collect())
}

fn plural(form: Form) -> &'static str {
    match form {
        Form::Number => "numbers",
        Form::Uuid => "uuids",
        Form::Words => "words",
    }
}
