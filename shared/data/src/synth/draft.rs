//! Contexts of a wanted length: sentences of the haystack with needles between them.

use std::ops::Range;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::{Haystack, Synthesizer};
use crate::cut;
use crate::error::{DataError, Result};

/// A context and what is asked about it.
#[derive(Debug, Clone, Default)]
pub(super) struct Draft {
    pub(super) context: String,
    /// Byte ranges that hold the answers.
    pub(super) evidence: Vec<Range<usize>>,
    pub(super) question: String,
    pub(super) keys: Vec<String>,
    pub(super) answers: Vec<String>,
}

/// A sentence to be hidden.
#[derive(Debug, Clone)]
pub(super) struct Needle {
    pub(super) text: String,
    /// Where, as a share of the places that there are.
    pub(super) at: f64,
    pub(super) holds_answer: bool,
}

/// A unit of the haystack.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    text: String,
    separator: &'static str,
    /// Whether a needle may follow.
    open: bool,
}

/// Attempts to come close to a length.
const ATTEMPTS: usize = 12;
/// Units that are too long for what is left, after which a context counts as full.
const MISSES: usize = 60;

/// Calls `build` with a number of tokens to aim at, until the context has at most `tokens` and at least 95 % of them.
pub(super) fn fitted(
    synthesizer: &Synthesizer<'_>,
    tokens: usize,
    mut build: impl FnMut(usize) -> Result<Draft>,
) -> Result<(Draft, usize)> {
    let mut aim = tokens as f64 * 0.985;
    for _ in 0..ATTEMPTS {
        let draft = build(aim as usize)?;
        let counted = (synthesizer.count)(&draft.context)?;
        if counted <= tokens && counted * 100 >= tokens * 95 {
            return Ok((draft, counted));
        }
        aim *= tokens as f64 * 0.975 / counted.max(1) as f64;
    }
    Err(DataError::Haystack(format!(
        "no context of {tokens} tokens came out of {ATTEMPTS} attempts; give a haystack of ordinary prose"
    )))
}

/// Units of documents drawn at random, none twice, of about `tokens` tokens.
pub(super) fn hay(synthesizer: &Synthesizer<'_>, tokens: usize, rng: &mut ChaCha8Rng) -> Result<Vec<Piece>> {
    let Haystack { documents, .. } = synthesizer.haystack;
    let mut order: Vec<u32> = (0..documents.len() as u32).collect();
    let (mut pieces, mut left, mut misses) = (Vec::new(), tokens, 0);
    let enough = tokens / 100;
    for drawn in 0..order.len() {
        let other = rng.random_range(drawn..order.len());
        order.swap(drawn, other);
        let text = &documents[order[drawn] as usize].text;
        let units = cut::units(text);
        let first = rng.random_range(0..=units.len() / 2);
        for unit in units.into_iter().skip(first) {
            let piece = Piece::of(text, &unit);
            let cost = (synthesizer.count)(&format!("{}{}", piece.text, piece.separator))?;
            if cost > left {
                misses += 1;
            } else {
                left -= cost;
                pieces.push(piece);
            }
            if left <= enough || misses >= MISSES {
                return Ok(pieces);
            }
        }
    }
    let found = tokens - left;
    // Halves of documents are left out, so twice as much may be there; but that cannot be promised.
    Err(DataError::Haystack(format!(
        "the haystack gave {found} of {tokens} tokens; give a file with several times as much text, or ask for fewer --tokens"
    )))
}

/// Units of whole documents in random order, of about `tokens` tokens; around again where there are too few.
pub(super) fn texts(synthesizer: &Synthesizer<'_>, tokens: usize, rng: &mut ChaCha8Rng) -> Result<Vec<Piece>> {
    let documents = shuffled(synthesizer.haystack.documents.iter().collect(), rng);
    let (mut pieces, mut left, mut misses) = (Vec::new(), tokens, 0);
    loop {
        let before = pieces.len();
        for document in &documents {
            for unit in cut::units(&document.text) {
                let piece = Piece::of(&document.text, &unit);
                match left.checked_sub((synthesizer.count)(&format!("{}{}", piece.text, piece.separator))?) {
                    Some(rest) => {
                        (left, misses) = (rest, 0);
                        pieces.push(piece);
                    }
                    None => misses += 1,
                }
                if left <= tokens / 100 || misses >= MISSES {
                    return Ok(pieces);
                }
            }
        }
        if pieces.len() == before {
            let problem = "no sentence of the haystack fits; give a haystack of ordinary prose";
            return Err(DataError::Haystack(problem.to_owned()));
        }
    }
}

impl Piece {
    /// A line of its own.
    pub(super) fn line(text: String) -> Self {
        Self { text, separator: "\n", open: true }
    }

    fn of(text: &str, unit: &cut::Unit) -> Self {
        let open = unit.ends_paragraph || unit.kind == cut::Kind::Sentence;
        Self { text: unit.show(text), separator: unit.separator(), open }
    }
}

/// Puts needles between pieces; the second value are the ranges of those that hold answers.
pub(super) fn assemble(pieces: &[Piece], needles: &[Needle]) -> (String, Vec<Range<usize>>) {
    // Before the first piece, and after every open one.
    let places: Vec<usize> = std::iter::once(0)
        .chain(pieces.iter().enumerate().filter(|(_, piece)| piece.open).map(|(at, _)| at + 1))
        .collect();
    let mut order: Vec<&Needle> = needles.iter().collect();
    order.sort_by(|a, b| a.at.total_cmp(&b.at));
    let place = |needle: &Needle| places[((needle.at * places.len() as f64) as usize).min(places.len() - 1)];
    let (mut context, mut evidence) = (String::new(), Vec::new());
    let mut waiting = order.into_iter().peekable();
    let are_lines = !pieces.is_empty() && pieces.iter().all(|piece| piece.separator == "\n");
    let first = if are_lines { "\n" } else { "\n\n" };
    for at in 0..=pieces.len() {
        let separator = at.checked_sub(1).map_or(first, |before| pieces[before].separator);
        while let Some(needle) = waiting.next_if(|needle| place(needle) == at) {
            let start = context.len();
            context.push_str(&needle.text);
            if needle.holds_answer {
                evidence.push(start..context.len());
            }
            context.push_str(separator);
        }
        if let Some(piece) = pieces.get(at) {
            context.push_str(&piece.text);
            context.push_str(piece.separator);
        }
    }
    context.truncate(context.trim_end().len());
    (context, evidence)
}

/// A context of about `aim` tokens with the needles in it.
pub(super) fn hidden(
    synthesizer: &Synthesizer<'_>,
    aim: usize,
    needles: &[Needle],
    rng: &mut ChaCha8Rng,
) -> Result<(String, Vec<Range<usize>>)> {
    let pieces = hay(synthesizer, aim.saturating_sub(cost(synthesizer, needles)?), rng)?;
    Ok(assemble(&pieces, needles))
}

/// Tokens of needles.
pub(super) fn cost(synthesizer: &Synthesizer<'_>, needles: &[Needle]) -> Result<usize> {
    needles.iter().map(|needle| (synthesizer.count)(&format!(" {}", needle.text))).sum()
}

/// `count` shares of the text, ascending.
pub(super) fn depths(count: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut depths: Vec<f64> = (0..count).map(|_| rng.random()).collect();
    depths.sort_by(f64::total_cmp);
    depths
}

/// One of several wordings.
pub(super) fn any<'t>(of: &[&'t str], rng: &mut ChaCha8Rng) -> &'t str {
    of[rng.random_range(0..of.len())]
}

/// The same things in another order.
pub(super) fn shuffled<T>(mut things: Vec<T>, rng: &mut ChaCha8Rng) -> Vec<T> {
    things.shuffle(rng);
    things
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, separator: &'static str, open: bool) -> Piece {
        Piece { text: text.to_owned(), separator, open }
    }

    fn needle(text: &str, at: f64) -> Needle {
        Needle { text: text.to_owned(), at, holds_answer: true }
    }

    #[test]
    fn needles_stand_between_sentences_and_never_inside_a_block() {
        let pieces =
            [piece("A.", " ", true), piece("| b", "\n", false), piece("| c", "\n\n", true), piece("D.", " ", true)];
        let at = |share: f64| assemble(&pieces, &[needle("N.", share)]);
        assert_eq!(at(0.0), ("N.\n\nA. | b\n| c\n\nD.".to_owned(), std::iter::once(0..2).collect()));
        assert_eq!(at(0.3), ("A. N. | b\n| c\n\nD.".to_owned(), std::iter::once(3..5).collect()));
        assert_eq!(at(0.6).0, "A. | b\n| c\n\nN.\n\nD.");
        assert_eq!(at(0.999).0, "A. | b\n| c\n\nD. N.");
    }

    #[test]
    fn a_needle_before_lines_is_a_line() {
        let lines = [Piece::line("A.".to_owned()), Piece::line("B.".to_owned())];
        assert_eq!(assemble(&lines, &[needle("N.", 0.0)]).0, "N.\nA.\nB.");
    }

    #[test]
    fn needles_keep_their_order_also_at_one_place() {
        let (context, evidence) = assemble(&[piece("A.", " ", true)], &[needle("2.", 0.9), needle("1.", 0.8)]);
        assert_eq!(context, "A. 1. 2.");
        assert_eq!(evidence, [3..5, 6..8]);
    }
}
