use std::collections::BTreeMap;
use std::ops::Range;

use e2llm_api::v1::{ExpandedChunk, Usage};
use e2llm_data::TaskLine;
use e2llm_data::score::{exact_match, f1, rouge, string_match, string_match_any};
use serde::{Deserialize, Serialize};

/// One system's answer to one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The benchmark that the task is of; empty for a user's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub suite: String,
    /// Of the task.
    pub id: String,
    /// Its kind.
    pub task: String,
    /// Of its document. Outcomes of one document are resampled together.
    pub doc_id: String,
    /// Decoder tokens of its document, where they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// The length it is reported under, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// What a benchmark says of it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Where its first evidence begins, as a share of the document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<f64>,
    /// Share of the evidence's bytes that the decoder read as raw text; absent where there is no evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence_read: Option<f64>,
    /// See [`crate::System`].
    pub system: String,
    /// Hash of all that was asked, its name apart: document, instruction, how it is read and how the answer is written.
    pub prompt: String,
    /// What was asked, as it stood after the document.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instruction: String,
    /// What a right answer is, or contains.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// The answer.
    pub prediction: String,
    /// Log-likelihoods of the choices in nats, from A on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<f64>,
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

/// A task as it was asked.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// See [`Outcome::suite`].
    pub suite: &'a str,
    /// The task; its context may be gone.
    pub task: &'a TaskLine,
    /// Its document.
    pub doc_id: &'a str,
    /// Bytes of its document.
    pub bytes: usize,
    /// See [`Outcome::length`].
    pub length: Option<usize>,
}

/// What a system gave.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The text.
    pub prediction: String,
    /// Log-likelihoods of the choices, in nats, where they were scored.
    pub choices: Vec<f64>,
    /// What it took.
    pub usage: Usage,
    /// See [`Outcome::prompt`].
    pub prompt: String,
}

impl Outcome {
    /// Judges an answer.
    pub fn new(asked: Asked<'_>, system: &str, answer: Answer) -> Self {
        let Asked { suite, task, doc_id, bytes, length } = asked;
        let (score, metrics) = score(task, &answer);
        let Answer { prediction, choices, usage, prompt } = answer;
        let depth = task.evidence.first().map(|evidence| evidence.start as f64 / bytes.max(1) as f64);
        Self {
            suite: suite.to_owned(),
            id: task.id.clone(),
            task: task.task.clone(),
            doc_id: doc_id.to_owned(),
            tokens: task.tokens,
            length,
            labels: task.labels.clone(),
            depth,
            evidence_read: evidence_read(&task.evidence, &usage),
            system: system.to_owned(),
            prompt,
            instruction: task.prompt.clone(),
            references: if task.answers.is_empty() {
                task.answer.iter().cloned().collect()
            } else {
                task.answers.clone()
            },
            prediction,
            choices,
            score,
            metrics,
            positions: usage.soft_positions + usage.text_positions,
            soft_positions: usage.soft_positions,
            chunks_left_out: usage.chunks_left_out,
            first_token_us: usage.first_token_us,
            total_us: usage.total_us,
        }
    }

    /// What it is called in tables: the suite, and the kind of task where a suite has several.
    pub fn name(&self) -> String {
        match (self.suite.as_str(), self.task.as_str()) {
            ("", task) => task.to_owned(),
            (suite, "qa" | "choice" | "summary") => suite.to_owned(),
            (suite, task) => format!("{suite} {task}"),
        }
    }
}

fn evidence_read(evidence: &[Range<usize>], usage: &Usage) -> Option<f64> {
    let bytes: usize = evidence.iter().map(ExactSizeIterator::len).sum();
    let chunk = |chunk: &ExpandedChunk| chunk.text_start as usize..chunk.text_end as usize;
    let common = |a: &Range<usize>, b: Range<usize>| a.end.min(b.end).saturating_sub(a.start.max(b.start));
    let read = |range: &Range<usize>| usage.expanded.iter().map(|of| common(range, chunk(of))).sum::<usize>();
    (bytes > 0).then(|| evidence.iter().map(read).sum::<usize>() as f64 / bytes as f64)
}

/// What an answer is worth, by the kind of its task: RULER's string match for needles, variables and words; for questions
/// whether any of the answers is contained; for choices whether the right one is the most likely, else the letter written;
/// for texts G-mean, (ROUGE-1 · ROUGE-2 · ROUGE-L)^⅓ of F1 (E2LLM, arXiv 2409.06679). With all metrics of that kind.
pub fn score(task: &TaskLine, answer: &Answer) -> (f64, BTreeMap<String, f64>) {
    let prediction = answer.prediction.as_str();
    let reference: Vec<String> =
        if task.answers.is_empty() { task.answer.iter().cloned().collect() } else { task.answers.clone() };
    let metrics: Vec<(&str, f64)> = match task.task.as_str() {
        _ if task.asks_for_text() => {
            let rouge = rouge(prediction, task.answer.as_deref().unwrap_or_default());
            let (one, two, longest) = (rouge.rouge1.f1, rouge.rouge2.f1, rouge.rouge_l.f1);
            vec![("g_mean", rouge.g_mean()), ("rouge1", one), ("rouge2", two), ("rougeL", longest)]
        }
        "choice" => accuracies(task, answer),
        kind if kind == "qa" || kind.starts_with("qa_") => vec![
            ("string_match", string_match_any(prediction, &reference)),
            ("f1", f1(prediction, &reference)),
            ("exact_match", exact_match(prediction, &reference)),
        ],
        _ => vec![("string_match", string_match(prediction, &reference))],
    };
    let score = metrics.first().map_or(0.0, |(_, value)| *value);
    (score, metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

fn accuracies(task: &TaskLine, answer: &Answer) -> Vec<(&'static str, f64)> {
    let is_right = |letter: Option<String>| f64::from(u8::from(letter.is_some() && letter == task.answer));
    let written = ("accuracy_written", is_right(chosen(&answer.prediction, task.choices.len())));
    let likeliest = answer.choices.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    match likeliest {
        Some((index, _)) => vec![("accuracy", is_right(letters(task.choices.len()).nth(index))), written],
        None => vec![written],
    }
}

/// The letters of so many choices.
pub fn letters(choices: usize) -> impl Iterator<Item = String> {
    (b'A'..=b'Z').take(choices).map(|letter| char::from(letter).to_string())
}

/// The first letter of a choice that stands alone in an answer.
fn chosen(prediction: &str, choices: usize) -> Option<String> {
    let letters: Vec<String> = letters(choices).collect();
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

    fn said(prediction: &str) -> Answer {
        Answer { prediction: prediction.to_owned(), ..Answer::default() }
    }

    #[test]
    fn needles_count_by_their_share_and_questions_by_any_answer() {
        assert_eq!(score(&task("niah_multivalue", &["12", "34"]), &said("it is 12")).0, 0.5);
        let (any, metrics) = score(&task("qa", &["blue", "azure"]), &said("It is blue."));
        assert_eq!((any, metrics["exact_match"]), (1.0, 0.0));
        assert_eq!(score(&task("qa_1", &["blue", "azure"]), &said("azure")).0, 1.0);
        let untold = TaskLine { task: "qa".to_owned(), answer: Some("blue".to_owned()), ..TaskLine::default() };
        assert_eq!(score(&untold, &said("blue")).1["exact_match"], 1.0, "an answer without alternatives");
    }

    fn choice() -> TaskLine {
        let choices = vec![String::new(); 4];
        TaskLine { task: "choice".to_owned(), answer: Some("C".to_owned()), choices, ..TaskLine::default() }
    }

    #[test]
    fn a_choice_is_the_first_letter_that_stands_alone() {
        let right = |prediction: &str| score(&choice(), &said(prediction)).0;
        assert_eq!(
            (right("C"), right("The correct answer is (C)."), right("B, not C"), right("Cats")),
            (1.0, 1.0, 0.0, 0.0)
        );
        assert_eq!(right("E is the letter; C"), 1.0, "there are four choices");
        let unanswered = TaskLine { answer: None, ..choice() };
        assert_eq!(score(&unanswered, &said("nothing")).0, 0.0);
    }

    #[test]
    fn the_most_likely_choice_counts_where_choices_were_scored() {
        let answer = |choices: [f64; 4]| Answer { choices: choices.to_vec(), ..said("B") };
        let (right, metrics) = score(&choice(), &answer([-3.0, -2.5, -1.0, -9.0]));
        assert_eq!((right, metrics["accuracy"], metrics["accuracy_written"]), (1.0, 1.0, 0.0));
        assert_eq!(score(&choice(), &answer([-0.1, -2.5, -1.0, -9.0])).0, 0.0);
    }

    #[test]
    fn texts_are_judged_by_rouge() {
        let summary =
            TaskLine { task: "summary".to_owned(), answer: Some("a b c d".to_owned()), ..TaskLine::default() };
        let (score_of, metrics) = score(&summary, &said("a b c d"));
        assert!((score_of - 1.0).abs() < 1e-9 && metrics.len() == 4);
        assert_eq!(score(&summary, &said("x")).0, 0.0);
    }

    #[test]
    fn evidence_counts_as_read_by_its_share_in_raw_text() {
        let chunk = |text_start, text_end| ExpandedChunk { text_start, text_end, ..ExpandedChunk::default() };
        let usage = |expanded: &[ExpandedChunk]| Usage { expanded: expanded.to_vec(), ..Usage::default() };
        let read = |expanded: &[ExpandedChunk]| evidence_read(&[10..20, 90..100], &usage(expanded));
        assert_eq!(read(&[chunk(0, 30), chunk(80, 120)]), Some(1.0));
        assert_eq!(read(&[chunk(0, 15), chunk(15, 18), chunk(40, 60)]), Some(0.4));
        assert_eq!(evidence_read(&[], &usage(&[chunk(0, 30)])), None);
    }

    #[test]
    fn an_outcome_says_how_deep_the_needle_was_and_what_it_is_called() {
        let line = TaskLine { evidence: std::iter::once(250..260).collect(), ..task("niah_single_1", &["7"]) };
        let of = |suite, task: TaskLine| {
            Outcome::new(Asked { suite, task: &task, doc_id: "d", bytes: 1_000, length: None }, "soft", said("7"))
        };
        let outcome = of("ruler", line);
        assert_eq!((outcome.depth, outcome.score, outcome.name().as_str()), (Some(0.25), 1.0, "ruler niah_single_1"));
        assert_eq!((outcome.evidence_read, of("", task("qa", &["7"])).evidence_read), (Some(0.0), None));
        assert_eq!(of("qmsum", task("qa", &["7"])).name(), "qmsum");
        assert_eq!(of("", task("qa", &["7"])).name(), "qa");
    }
}
