use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, row_error};
use e2llm_store::StoreError;
use e2llm_train::TrainError;

use super::corpus::CorpusError;

/// Why a share was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShareError {
    /// Training itself.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The training data.
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    /// A task without what this kind of job needs.
    #[error("the task cannot be understood: {0}; coordinator and worker may be of different versions")]
    Task(String),
}

impl ShareError {
    /// The error as the share's result.
    pub(super) fn row(&self) -> RowError {
        let code = match self {
            ShareError::Train(TrainError::Stopped) => ErrorCode::Cancelled,
            ShareError::Train(TrainError::Session { is_retriable: true, .. }) => ErrorCode::Unavailable,
            ShareError::Train(TrainError::Invalid(_)) | ShareError::Corpus(CorpusError::Lines(_)) => {
                ErrorCode::InvalidArgument
            }
            ShareError::Store(error) | ShareError::Corpus(CorpusError::Store(error)) => error.code(),
            ShareError::Train(_) | ShareError::Task(_) => ErrorCode::Internal,
        };
        row_error(code, self.to_string())
    }
}
