use std::path::{Path, PathBuf};

/// What can go wrong with data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// A file could not be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line that cannot be used.
    #[error("{} line {line}: {problem}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Inputs without anything of the kind that was asked for.
    #[error("no {expected} in {inputs}; {remedy}")]
    Nothing {
        /// What was looked for.
        expected: &'static str,
        /// Where.
        inputs: String,
        /// What to give instead.
        remedy: &'static str,
    },
    /// Text of the test split where text to train on is expected.
    #[error(
        "{} line {line}: {id} is of the test split, which nothing may be trained on; give a train file, or --allow-test \
         for data that only evaluates",
        path.display()
    )]
    TestSplit {
        /// The file.
        path: PathBuf,
        /// Number of the line, from 1.
        line: u64,
        /// The document.
        id: String,
    },
    /// A haystack that cannot give what a task needs.
    #[error("{0}")]
    Haystack(String),
    /// An option outside its range.
    #[error("{name} is {value}; it must be {expected}")]
    Setting {
        /// The option.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// The unfinished output of another run stands in the way.
    #[error("{} was begun with another input; delete it or name another output", path.display())]
    OtherRun {
        /// The partial file.
        path: PathBuf,
    },
    /// The tokenizer or the decoder that the caller lent failed.
    #[error(transparent)]
    Model(Box<dyn std::error::Error + Send + Sync>),
}

/// This crate's results.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

impl DataError {
    /// An error of a tokenizer or decoder.
    pub fn model(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Model(error.into())
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
