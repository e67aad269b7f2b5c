use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, row_error};
use e2llm_model::ModelError;
use e2llm_runtime::CallError;
use e2llm_store::StoreError;
use tonic::Status;

/// Why a question or summary was not answered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A request field that cannot be used.
    #[error("{0}")]
    Invalid(String),
    /// A document the index does not know under this bundle.
    #[error("document {doc_id:?} is not in collection {collection:?} under this bundle; encode it first")]
    Unknown {
        /// The document.
        doc_id: String,
        /// Where it was looked for.
        collection: String,
    },
    /// A document whose text shall be read, and was not kept.
    #[error(
        "document {doc_id:?} was stored without its text, so that only its soft tokens can be read; encode it with its text"
    )]
    NoText {
        /// The document.
        doc_id: String,
    },
    /// A stored prompt made for another decoder.
    #[error(
        "the soft tokens of document {doc_id:?} have width {found}, the decoder takes {expected}; encode it again with this bundle"
    )]
    Width {
        /// The document.
        doc_id: String,
        /// Width of the stored soft tokens.
        found: usize,
        /// Width of the decoder's embeddings.
        expected: usize,
    },
    /// Too many requests wait.
    #[error("{waiting} requests wait for the decoder already; try again later")]
    Overloaded {
        /// Requests in the queue.
        waiting: usize,
    },
    /// The caller went away.
    #[error("the request was cancelled")]
    Cancelled,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Index or encoder failed.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The decoder's thread is gone.
    #[error("the decoder has stopped")]
    Stopped,
}

impl DecodeError {
    /// The code on the wire.
    pub fn code(&self) -> ErrorCode {
        match self {
            DecodeError::Invalid(_) | DecodeError::NoText { .. } => ErrorCode::InvalidArgument,
            DecodeError::Unknown { .. } => ErrorCode::NotFound,
            DecodeError::Width { .. } => ErrorCode::WrongStore,
            DecodeError::Overloaded { .. } => ErrorCode::ResourceExhausted,
            DecodeError::Cancelled => ErrorCode::Cancelled,
            DecodeError::Store(error) => error.code(),
            DecodeError::Call(error) => error.code(),
            DecodeError::Model(ModelError::QuestionTooLong { .. }) => ErrorCode::QuestionTooLong,
            DecodeError::Model(ModelError::Setting { .. } | ModelError::WindowExceeded { .. }) => {
                ErrorCode::InvalidArgument
            }
            DecodeError::Model(_) => ErrorCode::Internal,
            DecodeError::Stopped => ErrorCode::Unavailable,
        }
    }

    /// The error as a row's result.
    pub fn row(&self) -> RowError {
        row_error(self.code(), self.to_string())
    }

    /// The error as a call's status.
    pub fn status(&self) -> Status {
        match self {
            DecodeError::Overloaded { .. } => {
                e2llm_runtime::overloaded(self.to_string(), std::time::Duration::from_secs(2))
            }
            _ => e2llm_api::status(self.code(), self.to_string()),
        }
    }
}
