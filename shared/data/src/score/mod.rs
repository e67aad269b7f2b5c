//! How good an answer is: string match as in RULER, F1 and exact match as in SQuAD, ROUGE.

mod rouge;

use std::collections::HashMap;

pub use rouge::{Rouge, RougeScore, rouge};

/// The share of `answers` that the prediction contains, whatever the case (RULER, arXiv 2404.06654: `string_match_all`); 0
/// without answers.
pub fn string_match(prediction: &str, answers: &[String]) -> f64 {
    let prediction = prediction.to_lowercase();
    let found = answers.iter().filter(|answer| prediction.contains(&answer.to_lowercase())).count();
    if answers.is_empty() { 0.0 } else { found as f64 / answers.len() as f64 }
}

/// 1 if the prediction contains any of the answers, which are alternatives (RULER: `string_match_part`), else 0.
pub fn string_match_any(prediction: &str, answers: &[String]) -> f64 {
    let prediction = prediction.to_lowercase();
    f64::from(u8::from(answers.iter().any(|answer| prediction.contains(&answer.to_lowercase()))))
}

/// 1 if the prediction is one of the answers apart from case, punctuation and articles, else 0 (SQuAD).
pub fn exact_match(prediction: &str, answers: &[String]) -> f64 {
    let prediction = normalized(prediction);
    f64::from(u8::from(answers.iter().any(|answer| normalized(answer) == prediction)))
}

/// The best F1 over words of the prediction and any of the answers (SQuAD).
pub fn f1(prediction: &str, answers: &[String]) -> f64 {
    let prediction = normalized(prediction);
    answers.iter().map(|answer| word_f1(&prediction, &normalized(answer))).fold(0.0, f64::max)
}

/// Lower case, without punctuation and articles.
fn normalized(text: &str) -> Vec<String> {
    let bare: String = text.to_lowercase().chars().filter(|c| !c.is_ascii_punctuation()).collect();
    bare.split_whitespace().filter(|word| !matches!(*word, "a" | "an" | "the")).map(str::to_owned).collect()
}

fn word_f1(prediction: &[String], answer: &[String]) -> f64 {
    if prediction.is_empty() || answer.is_empty() {
        return f64::from(u8::from(prediction == answer));
    }
    let common = common(prediction, answer);
    balanced(common as f64 / prediction.len() as f64, common as f64 / answer.len() as f64)
}

/// How many things two lists have in common, each as often as it is in both.
fn common<T: Eq + std::hash::Hash>(a: &[T], b: &[T]) -> usize {
    let mut counts = HashMap::<&T, usize>::new();
    a.iter().for_each(|thing| *counts.entry(thing).or_default() += 1);
    b.iter()
        .filter(|thing| match counts.get_mut(thing) {
            Some(left) if *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        })
        .count()
}

/// The harmonic mean.
fn balanced(precision: f64, recall: f64) -> f64 {
    if precision + recall > 0.0 { 2.0 * precision * recall / (precision + recall) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What reference implementations say, see `tests/golden/scores.py`.
    #[test]
    fn scores_are_those_of_the_reference_packages() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/golden/scores.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 200);
        for case in cases {
            let text = |name: &str| case[name].as_str().unwrap();
            let expect = |name: &str, ours: f64, expected: &serde_json::Value| {
                let expected = expected.as_f64().unwrap();
                assert!((ours - expected).abs() < 2e-6, "{name} {ours}, not {expected}, of {case}");
            };
            let (prediction, reference) = (text("prediction"), text("reference"));
            let rouge = rouge(prediction, reference);
            for (name, score) in [("rouge1", rouge.rouge1), ("rouge2", rouge.rouge2), ("rougeL", rouge.rouge_l)] {
                for (at, value) in [score.precision, score.recall, score.f1].into_iter().enumerate() {
                    expect(name, value, &case[name][at]);
                }
            }
            let answers = strings(&[reference]);
            expect("exact", exact_match(prediction, &answers), &case["exact"]);
            expect("f1", f1(prediction, &answers), &case["f1"]);
            let parts: Vec<String> = serde_json::from_value(case["parts"].clone()).unwrap();
            expect("all", string_match(prediction, &parts), &case["all"]);
            expect("part", string_match_any(prediction, &parts), &case["part"]);
        }
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn string_match_is_the_share_of_answers_contained() {
        let answers = strings(&["Blue-Door", "red"]);
        assert_eq!(string_match("it is BLUE-DOOR.", &answers), 0.5);
        assert_eq!(string_match("red and blue-door", &answers), 1.0);
        assert_eq!(string_match("green", &answers), 0.0);
        assert_eq!(string_match("anything", &[]), 0.0);
        assert_eq!((string_match_any("red", &answers), string_match_any("blue", &answers)), (1.0, 0.0));
    }

    #[test]
    fn exact_match_ignores_case_punctuation_and_articles() {
        assert_eq!(exact_match("The  Pigeon!", &strings(&["a dove", "pigeon"])), 1.0);
        assert_eq!(exact_match("the pigeons", &strings(&["pigeon"])), 0.0);
    }

    #[test]
    fn f1_is_that_of_the_best_answer() {
        let f = f1("a red pigeon pigeon", &strings(&["the pigeon", "no"]));
        assert!((f - 0.5).abs() < 1e-12, "precision 1/3, recall 1: {f}");
        assert_eq!(f1("", &strings(&["the"])), 1.0);
        assert_eq!(f1("word", &strings(&[""])), 0.0);
        assert_eq!(f1("word", &[]), 0.0);
    }
}
