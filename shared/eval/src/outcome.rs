use std::collections::BTreeMap;

use e2llm_api::v1::Usage;
use e2llm_data::TaskLine;
use e2llm_data::score::{exact_match, f1, rouge, string_match, string_match_any};
use serde::{Deserialize, Serialize};

/// One system's answer to one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Of the task.
    pub id: String,
    /// Its kind.
    pub task: String,
    /// Decoder tokens of its document, where they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// See [`crate::System`].
    pub system: String,
    /// The answer.
    pub prediction: String,
    /// From 0 to 1, by what the kind of task is judged by.
    pub score: f64,
    /// All metrics, the score among them.
    pub metrics: BTreeMap<String, f64>,
    /// Decoder positions of the prompt.
    pub positions: u32,
    /// Of these, soft tokens.
    pub soft_positions: u32,
    /// Chunks that the prompt had no place for.
    pub chunks_left_out: u32,
    /// From the decoder's taking up the question to its first token, in microseconds, documents fetched included.
    pub first_token_us: u64,
    /// To its last.
    pub total_us: u64,
}

impl Outcome {
    /// Judges an answer.
    pub fn new(task: &TaskLine, system: &str, prediction: String, usage: &Usage) -> Self {
        let (score, metrics) = score(task, &prediction);
        Self {
            id: task.id.clone(),
            task: task.task.clone(),
            tokens: task.tokens,
            system: system.to_owned(),
            prediction,
            score,
            metrics,
            positions: usage.soft_positions + usage.text_positions,
            soft_positions: usage.soft_positions,
            chunks_left_out: usage.chunks_left_out,
            first_token_us: usage.first_token_us,
            total_us: usage.total_us,
        }
    }
}

/// What an answer is worth, by the kind of its task: RULER's string match for needles, variables and words; for questions
/// whether any of the answers is contained; for choices the letter; for texts G-mean, (ROUGE-1 · ROUGE-2 · ROUGE-L)^⅓ of F1 (E2LLM, arXiv
/// 2409.06679). With all metrics of that kind.
pub fn score(task: &TaskLine, prediction: &str) -> (f64, BTreeMap<String, f64>) {
    let reference: Vec<String> =
        if task.answers.is_empty() { task.answer.iter().cloned().collect() } else { task.answers.clone() };
    let metrics: Vec<(&str, f64)> = match task.task.as_str() {
        _ if task.asks_for_text() => {
            let rouge = rouge(prediction, task.answer.as_deref().unwrap_or_default());
            let (one, two, longest) = (rouge.rouge1.f1, rouge.rouge2.f1, rouge.rouge_l.f1);
            vec![("g_mean", rouge.g_mean()), ("rouge1", one), ("rouge2", two), ("rougeL", longest)]
        }
        "choice" => vec![("accuracy", f64::from(u8::from(chosen(prediction, task.choices.len()) == task.answer)))],
        "qa" => vec![
            ("string_match", string_match_any(prediction, &reference)),
            ("f1", f1(prediction, &reference)),
            ("exact_match", exact_match(prediction, &reference)),
        ],
        _ => vec![("string_match", string_match(prediction, &reference))],
    };
    let score = metrics.first().map_or(0.0, |(_, value)| *value);
    (score, metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// The first letter of a choice that stands alone in an answer.
fn chosen(prediction: &str, choices: usize) -> Option<String> {
    let letters: Vec<String> = (b'A'..=b'Z').take(choices).map(|letter| char::from(letter).to_string()).collect();
    let mut words = prediction.split(|c: char| !c.is_alphanumeric());
    words.find(|word| letters.iter().any(|letter| letter == word)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(kind: &str, answers: &[&str]) -> TaskLine {
        let answers: Vec<String> = answers.iter().map(|answer| (*answer).to_owned()).collect();
        TaskLine { task: kind.to_owned(), answer: Some(answers.join(", ")), answers, ..TaskLine::default() }
    }

    #[test]
    fn needles_count_by_their_share_and_questions_by_any_answer() {
        assert_eq!(score(&task("niah_multivalue", &["12", "34"]), "it is 12").0, 0.5);
        let (any, metrics) = score(&task("qa", &["blue", "azure"]), "It is blue.");
        assert_eq!((any, metrics["exact_match"]), (1.0, 0.0));
        let untold = TaskLine { task: "qa".to_owned(), answer: Some("blue".to_owned()), ..TaskLine::default() };
        assert_eq!(score(&untold, "blue").1["exact_match"], 1.0, "an answer without alternatives");
    }

    #[test]
    fn a_choice_is_the_first_letter_that_stands_alone() {
        let choice = TaskLine {
            task: "choice".to_owned(),
            answer: Some("C".to_owned()),
            choices: vec![String::new(); 4],
            ..TaskLine::default()
        };
        let right = |prediction: &str| score(&choice, prediction).0;
        assert_eq!(
            (right("C"), right("The correct answer is (C)."), right("B, not C"), right("Cats")),
            (1.0, 1.0, 0.0, 0.0)
        );
        assert_eq!(right("E is the letter; C"), 1.0, "there are four choices");
    }

    #[test]
    fn texts_are_judged_by_rouge() {
        let summary =
            TaskLine { task: "summary".to_owned(), answer: Some("a b c d".to_owned()), ..TaskLine::default() };
        let (score_of, metrics) = score(&summary, "a b c d");
        assert!((score_of - 1.0).abs() < 1e-9 && metrics.len() == 4);
        assert_eq!(score(&summary, "x").0, 0.0);
    }
}
