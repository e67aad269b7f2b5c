//! ROUGE-1, -2 and -L as the PyPI package `rouge-score` computes them, without its stemmer.

use super::{balanced, common};

/// One kind of ROUGE.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RougeScore {
    /// Of what was written, the share that is in the reference.
    pub precision: f64,
    /// Of the reference, the share that was written.
    pub recall: f64,
    /// The harmonic mean of both.
    pub f1: f64,
}

/// The three kinds that summaries are judged by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rouge {
    /// Words.
    pub rouge1: RougeScore,
    /// Pairs of words.
    pub rouge2: RougeScore,
    /// The longest common subsequence of words.
    pub rouge_l: RougeScore,
}

impl Rouge {
    /// (ROUGE-1 · ROUGE-2 · ROUGE-L)^⅓ of the F1s, the paper's measure (arXiv 2409.06679).
    pub fn g_mean(&self) -> f64 {
        (self.rouge1.f1 * self.rouge2.f1 * self.rouge_l.f1).cbrt()
    }
}

/// Compares a prediction with a reference. Words are runs of ASCII letters and digits in the lower-cased text.
pub fn rouge(prediction: &str, reference: &str) -> Rouge {
    let (prediction, reference) = (prediction.to_lowercase(), reference.to_lowercase());
    let (prediction, reference) = (words(&prediction), words(&reference));
    let grams = |n: usize| {
        let (a, b): (Vec<_>, Vec<_>) = (prediction.windows(n).collect(), reference.windows(n).collect());
        score(common(&a, &b), a.len(), b.len())
    };
    let longest = longest_common(&prediction, &reference);
    Rouge { rouge1: grams(1), rouge2: grams(2), rouge_l: score(longest, prediction.len(), reference.len()) }
}

fn words(lower: &str) -> Vec<&str> {
    let mut words = Vec::new();
    crate::hash::words(lower, |range| words.push(&lower[range]));
    words
}

fn score(common: usize, written: usize, wanted: usize) -> RougeScore {
    let share = |of: usize| if of == 0 { 0.0 } else { common as f64 / of as f64 };
    let (precision, recall) = (share(written), share(wanted));
    RougeScore { precision, recall, f1: balanced(precision, recall) }
}

/// Length of the longest common subsequence, in memory of one row.
fn longest_common(a: &[&str], b: &[&str]) -> usize {
    let mut row = vec![0; b.len() + 1];
    for word in a {
        let mut diagonal = 0;
        for (at, other) in b.iter().enumerate() {
            let above = row[at + 1];
            row[at + 1] = if word == other { diagonal + 1 } else { above.max(row[at]) };
            diagonal = above;
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn g_mean_is_the_cube_root_of_the_product() {
        let same = rouge("one two three", "one two three");
        assert!((same.g_mean() - 1.0).abs() < 1e-12);
        assert_eq!(rouge("one", "one").g_mean(), 0.0, "one word has no pairs");
    }

    proptest! {
        #[test]
        fn scores_are_shares_and_swapping_swaps_precision_and_recall(a in "[abc ]{0,30}", b in "[abc ]{0,30}") {
            let (one, other) = (rouge(&a, &b), rouge(&b, &a));
            for (x, y) in [(one.rouge1, other.rouge1), (one.rouge2, other.rouge2), (one.rouge_l, other.rouge_l)] {
                prop_assert!((0.0..=1.0).contains(&x.precision) && (0.0..=1.0).contains(&x.f1));
                prop_assert_eq!((x.precision, x.recall), (y.recall, y.precision));
            }
            prop_assert!(one.rouge_l.recall <= one.rouge1.recall);
        }
    }
}
