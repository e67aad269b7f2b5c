//! The texts that tasks are built on, and the words that their keys are made of.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::error::{DataError, Result};
use crate::hash;
use crate::io::Lines;
use crate::line::{Line, PlainLine, TaskLine};

/// Bytes of text held; of larger files, documents chosen by a hash of their ids.
pub const MAX_BYTES: u64 = 64 << 20;
/// What gzip and zstd make of text, roughly.
const COMPRESSION: u64 = 4;
/// Bytes of text whose words are counted.
const COUNTED_BYTES: usize = 8 << 20;
/// Words in use, at most.
const MOST_WORDS: usize = 6000;
/// Of the most frequent words, those left out if enough others are there: they are in every sentence.
const TOO_COMMON: usize = 100;
/// Distinct words without which no task can be made.
const FEWEST_WORDS: usize = 100;

/// Texts to hide needles in, in memory.
#[derive(Debug, Clone, Default)]
pub struct Haystack {
    pub(super) documents: Vec<PlainLine>,
    pub(super) questions: Vec<TaskLine>,
    pub(super) words: Vec<String>,
}

impl Haystack {
    /// Reads a data file; at most [`MAX_BYTES`] of its text are held.
    ///
    /// # Errors
    /// [`DataError::TestSplit`] if a line is of the test split, unless `allow_test`; [`DataError::Haystack`] for a file of too
    /// few words; [`DataError::Io`] and [`DataError::Line`].
    pub fn read(path: &Path, allow_test: bool) -> Result<Self> {
        let bytes = std::fs::metadata(path).map_err(DataError::io(path))?.len();
        let is_compressed = path.extension().is_some_and(|e| ["gz", "zst", "zstd"].iter().any(|known| e == *known));
        let bytes = if is_compressed { bytes * COMPRESSION } else { bytes };
        let share = MAX_BYTES as f64 / bytes.max(1) as f64;
        let (mut lines, mut kept, mut held) = (Lines::open(path)?, Vec::new(), 0);
        while let Some(line) = lines.next() {
            let line = line?;
            if line.is_test() && !allow_test {
                let (path, id) = (path.to_owned(), line.id().to_owned());
                return Err(DataError::TestSplit { path, line: lines.number(), id });
            }
            let chosen = hash::text(line.id()) as f64 / u64::MAX as f64 <= share;
            if chosen && held < MAX_BYTES {
                held += line.text().len() as u64;
                kept.push(line);
            }
        }
        Self::new(kept).map_err(|error| match error {
            DataError::Haystack(problem) => DataError::Haystack(format!("{}: {problem}", path.display())),
            other => other,
        })
    }

    /// A haystack of these lines, of whichever split.
    ///
    /// # Errors
    /// [`DataError::Haystack`] for too few words.
    pub fn new(lines: impl IntoIterator<Item = Line>) -> Result<Self> {
        let mut haystack = Self::default();
        for line in lines {
            match line {
                Line::Plain(line) => haystack.documents.push(line),
                Line::Task(line) if line.task == "qa" && line.answer.is_some() => haystack.questions.push(line),
                Line::Task(line) => {
                    let TaskLine { id, context: text, split, .. } = line;
                    haystack.documents.push(PlainLine { id, text, summary: None, split });
                }
            }
        }
        haystack.words = words(haystack.documents.iter().map(|document| document.text.as_str()));
        if haystack.words.len() < FEWEST_WORDS {
            let found = haystack.words.len();
            let problem = format!(
                "the haystack has only {found} distinct words of four to nine letters; give a file of texts with more"
            );
            return Err(DataError::Haystack(problem));
        }
        Ok(haystack)
    }

    /// A haystack of questions whose distractors are the paragraphs of all of them; made-up names are of the words of `texts`.
    ///
    /// # Errors
    /// [`DataError::Haystack`] if there is no question.
    pub fn of_questions(lines: impl IntoIterator<Item = Line>, texts: &Self) -> Result<Self> {
        let (mut haystack, mut seen) = (Self { words: texts.words.clone(), ..Self::default() }, HashSet::new());
        for line in lines {
            let Line::Task(line) = line else { continue };
            for paragraph in line.context.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
                if seen.insert(hash::text(paragraph)) {
                    let text = paragraph.to_owned();
                    haystack.documents.push(PlainLine { id: line.id.clone(), text, summary: None, split: line.split });
                }
            }
            haystack.questions.push(line);
        }
        if haystack.questions.is_empty() {
            return Err(DataError::Haystack("there is no question among the lines; give qa tasks".to_owned()));
        }
        Ok(haystack)
    }

    /// Whether there is something to ask about that takes so many passages to answer: an abstract, or a question.
    pub fn has_questions(&self, passages: usize) -> bool {
        let is_told =
            |document: &PlainLine| document.summary.as_ref().is_some_and(|s| s.len() >= super::questions::FEWEST);
        self.questions.iter().any(|question| passages < 2 || question.evidence.len() >= passages)
            || self.documents.iter().any(is_told)
    }

    /// Documents held.
    pub fn len(&self) -> usize {
        self.documents.len() + self.questions.len()
    }

    /// Whether it holds nothing; a haystack that could be made never does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The most frequent lower-case words of four to nine letters, in alphabetical order.
fn words<'t>(texts: impl Iterator<Item = &'t str>) -> Vec<String> {
    let (mut counts, mut read) = (HashMap::<&str, u32>::new(), 0);
    for text in texts {
        for word in text.split(|c: char| !c.is_ascii_alphabetic()) {
            if (4..=9).contains(&word.len()) && word.bytes().all(|byte| byte.is_ascii_lowercase()) {
                *counts.entry(word).or_default() += 1;
            }
        }
        read += text.len();
        if read >= COUNTED_BYTES {
            break;
        }
    }
    let mut ranked: Vec<(u32, &str)> = counts.into_iter().map(|(word, count)| (count, word)).collect();
    ranked.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(b.1)));
    let skipped = if ranked.len() >= 10 * TOO_COMMON { TOO_COMMON } else { 0 };
    let mut words: Vec<String> =
        ranked.into_iter().skip(skipped).take(MOST_WORDS).map(|(_, word)| word.to_owned()).collect();
    words.sort_unstable();
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::tests::haystack_text;
    use std::fs;

    #[test]
    fn lines_of_the_test_split_are_refused_unless_they_are_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hay.jsonl");
        let line = |id: &str, text: &str| serde_json::json!({"id": id, "text": text}).to_string();
        fs::write(&path, [line("rfc1", &haystack_text(0)), line("rfc9001", "text")].join("\n")).unwrap();
        let error = Haystack::read(&path, false).unwrap_err().to_string();
        assert!(error.contains("hay.jsonl line 2: rfc9001") && error.contains("--allow-test"), "{error}");
        assert_eq!(Haystack::read(&path, true).unwrap().len(), 2);
    }

    #[test]
    fn a_haystack_of_few_words_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hay.jsonl");
        fs::write(&path, "{\"id\":\"a\",\"text\":\"hardly anything here\"}").unwrap();
        let error = Haystack::read(&path, false).unwrap_err().to_string();
        assert!(error.contains("hay.jsonl: the haystack has only 3"), "{error}");
    }

    #[test]
    fn words_are_chosen_by_frequency_and_not_by_order_of_documents() {
        let texts = ["beta alpha Gamma delta4 beta", "alpha epsilon verylongword one"];
        assert_eq!(words(texts.into_iter()), ["alpha", "beta", "delta", "epsilon"]);
        assert_eq!(words(texts.into_iter().rev()), words(texts.into_iter()));
    }
}
