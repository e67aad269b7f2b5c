//! The one error type of this crate: each message names the value and, where there is one, the remedy.

use std::path::{Path, PathBuf};

/// What can go wrong between weight files, text and tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A weight file that is truncated, damaged, or claims more than it holds.
    #[error("bad weights {path}: {problem}; download the file again or check its SHA-256", path = path.display())]
    BadWeights {
        /// The file.
        path: PathBuf,
        /// Field and value that do not fit.
        problem: String,
    },
    /// A tokenizer that cannot be built, or a text that it cannot encode.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A chat template that does not compile or refuses the messages.
    #[error("chat template: {0}")]
    Template(String),
    /// A question that leaves no room for the answer in the decoder's window.
    #[error("question of {tokens} tokens is longer than the {limit} that fit; shorten it")]
    QuestionTooLong {
        /// Tokens of the question.
        tokens: usize,
        /// The most that fit.
        limit: usize,
    },
    /// A setting outside its range.
    #[error("{name} = {value} is out of range: {expected}")]
    Setting {
        /// The setting's name, as the user writes it.
        name: &'static str,
        /// The value given.
        value: String,
        /// What is accepted.
        expected: &'static str,
    },
    /// A model configuration this code cannot compute.
    #[error("model: {problem}")]
    Config {
        /// What does not fit, with its value.
        problem: String,
    },
    /// More positions than the window holds.
    #[error("{positions} positions do not fit the window of {window}; shorten the prompt or the answer")]
    WindowExceeded {
        /// Positions asked for.
        positions: usize,
        /// Positions there are.
        window: usize,
    },
    /// A tensor operation failed.
    #[error("tensor: {0}")]
    Candle(#[from] candle_core::Error),
    /// A file could not be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// This crate's results.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

impl ModelError {
    /// A `map_err` for reading `path`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }

    /// [`ModelError::BadWeights`] for `path`.
    pub fn bad_weights(path: &Path, problem: impl Into<String>) -> Self {
        Self::BadWeights { path: path.to_owned(), problem: problem.into() }
    }
}
