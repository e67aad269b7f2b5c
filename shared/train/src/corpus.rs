//! Documents and tasks to train and evaluate on.

use std::io::BufRead;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Result, TrainError};

/// A document: one line `{"id", "text", "abstract"?}` of a JSONL corpus.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its name.
    pub id: String,
    /// The body; its abstract is not in it.
    pub text: String,
    /// A reference summary, where the source has one.
    pub summary: Option<String>,
}

/// A question or an instruction about a context: one line `{"id", "context", "prompt", "answer"}`.
#[derive(Debug, Clone)]
pub struct Task {
    /// Its name.
    pub id: String,
    /// The text that holds the answer.
    pub context: String,
    /// The whole instruction, as it stands after the document.
    pub prompt: String,
    /// What shall be said.
    pub answer: String,
    /// Bytes of the context that it can be read from, where that is known.
    pub evidence: Vec<Range<usize>>,
}

/// Documents and tasks held in memory.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// In file order.
    pub documents: Vec<Document>,
    /// In file order.
    pub tasks: Vec<Task>,
    /// Id of the first line that is marked as test.
    test: Option<String>,
}

/// Either kind of line; both may stand in one file.
#[derive(Deserialize)]
struct Line {
    id: String,
    text: Option<String>,
    #[serde(rename = "abstract")]
    summary: Option<String>,
    context: Option<String>,
    prompt: Option<String>,
    answer: Option<String>,
    #[serde(default)]
    evidence: Vec<Range<usize>>,
    split: Option<String>,
}

impl Corpus {
    /// Reads JSONL; a line that cannot be used is an error that names it.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_all(&[path.to_owned()])
    }

    /// Reads several files as one corpus, in their order.
    pub fn read_all(paths: &[PathBuf]) -> Result<Self> {
        let mut corpus = Self::default();
        for path in paths {
            let before = corpus.documents.len() + corpus.tasks.len();
            corpus.append(path)?;
            if corpus.documents.len() + corpus.tasks.len() == before {
                return Err(TrainError::Invalid(format!(
                    "{} holds no documents; give a JSONL file of {{\"id\", \"text\"}}",
                    path.display()
                )));
            }
        }
        Ok(corpus)
    }

    fn append(&mut self, path: &Path) -> Result<()> {
        let file = std::fs::File::open(path).map_err(TrainError::io(path))?;
        self.append_lines(&path.display().to_string(), std::io::BufReader::new(file))
    }

    /// Adds JSONL from anywhere; `name` is what errors call it.
    pub fn append_lines(&mut self, name: &str, lines: impl BufRead) -> Result<()> {
        for (number, line) in lines.lines().enumerate() {
            let line = line.map_err(TrainError::io(Path::new(name)))?;
            if line.trim().is_empty() {
                continue;
            }
            self.push(&line).map_err(|problem| {
                TrainError::Invalid(format!(
                    "{name} line {}: {problem}; a line is {{\"id\", \"text\", \"abstract\"?}} or {{\"id\", \"context\", \"prompt\", \"answer\"}}",
                    number + 1
                ))
            })?;
        }
        Ok(())
    }

    /// Adds one line; what is wrong with it otherwise.
    pub fn push(&mut self, line: &str) -> std::result::Result<(), String> {
        let line: Line = serde_json::from_str(line).map_err(|error| error.to_string())?;
        if line.split.as_deref() == Some("test") {
            self.test.get_or_insert_with(|| line.id.clone());
        }
        match line {
            Line { id, text: Some(text), summary, .. } => self.documents.push(Document { id, text, summary }),
            Line { id, context: Some(context), prompt: Some(prompt), answer: Some(answer), evidence, .. } => {
                if let Some(range) = evidence.iter().find(|range| context.get((*range).clone()).is_none()) {
                    return Err(format!("{id:?} has evidence at bytes {range:?}, which are no text of its context"));
                }
                self.tasks.push(Task { id, context, prompt, answer, evidence });
            }
            Line { id, .. } => return Err(format!("{id:?} is neither a document nor a task")),
        }
        Ok(())
    }

    /// Training must not see what it will be judged by.
    ///
    /// # Errors
    /// Names the first line whose split is test.
    pub fn refuse_test(&self) -> Result<()> {
        match &self.test {
            None => Ok(()),
            Some(id) => Err(TrainError::Invalid(format!(
                "{id:?} is marked as test (\"split\": \"test\") and must not be trained on; leave it out"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_tasks_stand_in_one_file_or_in_several() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mixed = write(
            "mixed.jsonl",
            "{\"id\":\"a\",\"text\":\"one\",\"abstract\":\"short\"}\n\n{\"id\":\"q\",\"context\":\"c\",\"prompt\":\"p\",\"answer\":\"x\"}\n",
        );
        let plain = write("plain.jsonl", "{\"id\":\"b\",\"text\":\"two\",\"source\":\"ignored\"}\n");
        let corpus = Corpus::read_all(&[mixed, plain]).unwrap();
        assert_eq!(corpus.documents.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(corpus.documents[0].summary.as_deref(), Some("short"));
        assert_eq!(corpus.tasks.iter().map(|t| t.answer.as_str()).collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn lines_marked_as_test_are_not_trained_on() {
        let mut corpus = Corpus::default();
        corpus.push(r#"{"id":"a","text":"t","split":"train"}"#).unwrap();
        corpus.refuse_test().unwrap();
        corpus.push(r#"{"id":"b","context":"c","prompt":"p","answer":"x","split":"test"}"#).unwrap();
        let error = corpus.refuse_test().unwrap_err().to_string();
        assert!(error.contains("\"b\""), "{error}");
    }

    #[test]
    fn a_line_of_neither_kind_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bad.jsonl");
        std::fs::write(&path, "{\"id\":\"a\",\"text\":\"t\"}\n{\"id\":\"q\",\"context\":\"c\"}\n").unwrap();
        let error = Corpus::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("\"prompt\""), "{error}");
    }
}
