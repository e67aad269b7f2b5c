//! Exact and near duplicates of texts, by bottom-k sketches.

use std::collections::{HashMap, HashSet};

use crate::hash;

/// Words of a shingle.
const SHINGLE: usize = 8;
/// Hashes kept of a text.
const SKETCH: usize = 64;
/// The smallest of them, under which a text is found again.
const INDEXED: usize = 4;
/// Most texts looked at under one hash: boilerplate must not make this quadratic.
const BUCKET: usize = 64;
/// Shingles in common, of all, from which two texts count as the same.
const NEAR: f64 = 0.9;

/// Whether a text was seen before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// No.
    New,
    /// Word for word, apart from case, punctuation and white space.
    Exact,
    /// Nine tenths of its eight-word shingles, estimated, are another text's.
    Near,
}

/// The texts seen so far: about 600 bytes each.
#[derive(Debug, Default)]
pub struct Duplicates {
    whole: HashSet<u64>,
    sketches: Vec<Vec<u64>>,
    index: HashMap<u64, Vec<u32>>,
}

impl Duplicates {
    /// Compares a text with those before it and, if it is new, remembers it.
    pub fn see(&mut self, text: &str) -> Seen {
        let words = hash::word_hashes(text);
        if !self.whole.insert(hash::sequence(&words)) {
            return Seen::Exact;
        }
        let sketch = sketch(&words);
        if self.is_near(&sketch) {
            return Seen::Near;
        }
        let number = self.sketches.len() as u32;
        for hash in sketch.iter().take(INDEXED) {
            let bucket = self.index.entry(*hash).or_default();
            if bucket.len() < BUCKET {
                bucket.push(number);
            }
        }
        self.sketches.push(sketch);
        Seen::New
    }

    fn is_near(&self, sketch: &[u64]) -> bool {
        let candidates: HashSet<u32> =
            sketch.iter().take(INDEXED).filter_map(|hash| self.index.get(hash)).flatten().copied().collect();
        candidates.into_iter().any(|number| resemblance(sketch, &self.sketches[number as usize]) >= NEAR)
    }
}

/// The smallest hashes of the text's shingles, ascending.
fn sketch(words: &[u64]) -> Vec<u64> {
    let mut hashes: Vec<u64> = words.windows(SHINGLE.min(words.len().max(1))).map(hash::sequence).collect();
    hashes.sort_unstable();
    hashes.dedup();
    hashes.truncate(SKETCH);
    hashes
}

/// Broder's estimate of the Jaccard index: of the smallest hashes of the union, the share that both have.
fn resemblance(a: &[u64], b: &[u64]) -> f64 {
    let (mut i, mut j, mut both, mut seen) = (0, 0, 0, 0);
    while seen < SKETCH && i < a.len() && j < b.len() {
        match a[i].cmp(&b[j]) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => {
                both += 1;
                i += 1;
                j += 1;
            }
        }
        seen += 1;
    }
    // What is left of the longer one belongs to the union, too.
    seen = SKETCH.min(seen + (a.len() - i) + (b.len() - j));
    if seen == 0 { 1.0 } else { f64::from(both) / seen as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(range: std::ops::Range<u32>) -> String {
        range.map(|n| format!("word{n}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn case_and_layout_do_not_make_a_text_new() {
        let mut seen = Duplicates::default();
        assert_eq!(seen.see("The  quick\nfox."), Seen::New);
        assert_eq!(seen.see("the quick fox"), Seen::Exact);
        assert_eq!(seen.see("the quick dog"), Seen::New);
    }

    #[test]
    fn a_text_with_a_changed_line_is_near_and_one_with_a_new_half_is_not() {
        let mut seen = Duplicates::default();
        assert_eq!(seen.see(&numbers(0..2000)), Seen::New);
        assert_eq!(seen.see(&format!("{} changed {}", numbers(0..700), numbers(700..2000))), Seen::Near);
        assert_eq!(seen.see(&numbers(1000..3000)), Seen::New);
    }

    #[test]
    fn a_repeated_line_does_not_fill_the_sketch() {
        let mut seen = Duplicates::default();
        let rule = "a b c d e f g h ".repeat(3000);
        assert_eq!(seen.see(&format!("{rule}{}", numbers(0..500))), Seen::New);
        assert_eq!(seen.see(&format!("{rule}{}", numbers(500..1000))), Seen::New);
    }

    #[test]
    fn short_texts_are_compared_as_a_whole() {
        let mut seen = Duplicates::default();
        assert_eq!(seen.see(""), Seen::New);
        assert_eq!(seen.see(" - "), Seen::Exact);
        assert_eq!(seen.see("one"), Seen::New);
        assert_eq!(seen.see("two"), Seen::New);
    }
}
