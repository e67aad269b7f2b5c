//! Lexical ranking of chunks: how much of a question's words a chunk holds, rare words counting more (Okapi BM25).
//!
//! Vectors of chunks say what these are about; identifiers, numbers and names they hardly tell apart. Words do.

use std::collections::HashMap;

/// Saturation of a word's frequency in a chunk.
const K1: f32 = 1.2;
/// How much long chunks are discounted.
const B: f32 = 0.75;

/// BM25 of each chunk's text for `question`, as the share of what a chunk would get that holds every word of it many times: 0 to
/// 1. A chunk without text gets 0.
pub fn scores(question: &str, texts: &[Option<&str>]) -> Vec<f32> {
    let mut asked: HashMap<String, usize> = HashMap::new();
    for word in words(question) {
        let next = asked.len();
        asked.entry(word).or_insert(next);
    }
    let found: Vec<Found> = texts.iter().map(|text| Found::in_text(text.unwrap_or_default(), &asked)).collect();
    let weights = weights(&found, asked.len());
    let best: f32 = weights.iter().sum::<f32>() * (K1 + 1.0);
    let mean = found.iter().map(|found| found.words).sum::<usize>() as f32 / found.len().max(1) as f32;
    let score = |found: &Found| {
        let length = 1.0 - B + B * found.words as f32 / mean.max(1.0);
        let of = |(count, weight): (&u32, &f32)| {
            let count = *count as f32;
            weight * count * (K1 + 1.0) / (count + K1 * length)
        };
        found.counts.iter().zip(&weights).map(of).sum::<f32>() / best.max(f32::MIN_POSITIVE)
    };
    found.iter().map(score).collect()
}

/// A chunk that scores so much holds several words that are rare in the text.
const FOUND: f32 = 0.1;

/// Whether each chunk holds as much of the question's words as the best, within a factor of two; all do where no chunk holds
/// much, for words then say little.
pub fn standing_out(scores: &[f32]) -> Vec<bool> {
    let best = scores.iter().copied().fold(0.0, f32::max);
    scores.iter().map(|score| best < FOUND || *score >= best / 2.0).collect()
}

/// What a chunk holds of the words asked for.
struct Found {
    counts: Vec<u32>,
    words: usize,
}

impl Found {
    fn in_text(text: &str, asked: &HashMap<String, usize>) -> Self {
        let mut found = Self { counts: vec![0; asked.len()], words: 0 };
        for word in words(text) {
            found.words += 1;
            if let Some(index) = asked.get(&word) {
                found.counts[*index] += 1;
            }
        }
        found
    }
}

/// Inverse document frequency of each word asked for, the chunks being the documents.
fn weights(found: &[Found], words: usize) -> Vec<f32> {
    let weight = |index: usize| {
        let holding = found.iter().filter(|found| found.counts[index] > 0).count() as f32;
        (1.0 + (found.len() as f32 - holding + 0.5) / (holding + 0.5)).ln()
    };
    (0..words).map(weight).collect()
}

fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rare_word_outweighs_common_ones() {
        let texts = ["the port of the server", "the server and the client", "of the client", "quark is 853"];
        let scores = scores("What is the port of quark?", &texts.map(Some));
        assert!(scores[3] > scores[0] && scores[0] > scores[2] && scores[2] > scores[1], "{scores:?}");
        assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "{scores:?}");
    }

    #[test]
    fn what_holds_nothing_of_the_question_gets_nothing() {
        assert_eq!(scores("port", &[Some("client"), None, Some("")]), [0.0; 3]);
        assert_eq!(scores("", &[Some("client")]), [0.0]);
        assert_eq!(scores("port", &[]), [0.0; 0]);
    }

    #[test]
    fn chunks_stand_out_where_one_holds_most_of_the_question() {
        assert_eq!(standing_out(&[0.1, 0.4, 0.25, 0.0]), [false, true, true, false]);
        assert_eq!(standing_out(&[0.01, 0.09]), [true, true]);
        assert_eq!(standing_out(&[]), [false; 0]);
        let texts = ["the key of red-fox is 1", "the key of blue-whale is 2", "the key of grey-owl is 3"];
        let scores = scores("What is the key of blue-whale?", &texts.map(Some));
        assert_eq!(standing_out(&scores), [false, true, false], "{scores:?}");
    }

    #[test]
    fn case_and_punctuation_do_not_matter() {
        let scores = scores("Which UUID has Blue-Whale?", &[Some("blue whale: 1"), Some("grey whale: 2")]);
        assert!(scores[0] > scores[1] && scores[1] > 0.0, "{scores:?}");
    }
}
