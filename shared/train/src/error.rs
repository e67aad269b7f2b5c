use std::path::PathBuf;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A model could not be built or run.
    #[error(transparent)]
    Model(#[from] e2llm_model::ModelError),
    /// A tensor operation failed.
    #[error("tensor: {0}")]
    Candle(#[from] candle_core::Error),
    /// A file could not be read or written.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A corpus line, recipe or checkpoint that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// Whoever wanted the work does not want it any more.
    #[error("stopped before its end")]
    Stopped,
    /// The other side of a training pair.
    #[error("the encoder side: {message}")]
    Session {
        /// What it said.
        message: String,
        /// Whether the same may succeed later, with another session.
        is_retriable: bool,
    },
    /// The loss is no longer a number.
    #[error("the loss became {loss} at step {step}; lower the learning rates or resume from an earlier checkpoint")]
    Diverged {
        /// Optimizer step.
        step: usize,
        /// The loss.
        loss: f32,
    },
}

/// This crate's results.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

impl TrainError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), source }
    }
}
