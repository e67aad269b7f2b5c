//! Documents to train and evaluate on.

use std::io::BufRead;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Result, TrainError};

/// One line of a JSONL corpus: `{"id", "text", "abstract"?}`.
#[derive(Debug, Clone, Deserialize)]
pub struct Document {
    /// Its name.
    pub id: String,
    /// The body; its abstract is not in it.
    pub text: String,
    /// A reference summary, where the source has one.
    #[serde(default, rename = "abstract")]
    pub summary: Option<String>,
}

/// Documents held in memory.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// In file order.
    pub documents: Vec<Document>,
}

impl Corpus {
    /// Reads JSONL; a line that cannot be used is an error that names it.
    pub fn read(path: &Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(TrainError::io(path))?;
        Self::from_lines(&path.display().to_string(), std::io::BufReader::new(file))
    }

    /// Reads JSONL from anywhere; `name` is what errors call it.
    pub fn from_lines(name: &str, lines: impl BufRead) -> Result<Self> {
        let mut documents = Vec::new();
        for (number, line) in lines.lines().enumerate() {
            let line = line.map_err(TrainError::io(Path::new(name)))?;
            if line.trim().is_empty() {
                continue;
            }
            let document = serde_json::from_str(&line).map_err(|e| {
                TrainError::Invalid(format!(
                    "{name} line {}: {e}; each line is {{\"id\", \"text\", \"abstract\"?}}",
                    number + 1
                ))
            })?;
            documents.push(document);
        }
        if documents.is_empty() {
            return Err(TrainError::Invalid(format!(
                "{name} holds no documents; give a JSONL file of {{\"id\", \"text\"}}"
            )));
        }
        Ok(Self { documents })
    }
}
