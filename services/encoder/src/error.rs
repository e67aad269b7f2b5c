use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, IdError, MetadataError, row_error, status};
use e2llm_model::ModelError;
use e2llm_runtime::CallError;
use e2llm_store::StoreError;
use tonic::Status;

/// Why a document was not encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// Its text is empty or white space.
    #[error("document {doc_id:?} has no text; give it some or leave it out")]
    Empty {
        /// The document.
        doc_id: String,
    },
    /// Its id or collection is not allowed.
    #[error(transparent)]
    Id(#[from] IdError),
    /// Its metadata is not what a document may carry.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The index refused or failed.
    #[error(transparent)]
    Index(#[from] CallError),
    /// A worker thread ended unexpectedly.
    #[error("encoding stopped: {0}")]
    Stopped(String),
}

impl EncodeError {
    /// The code on the wire.
    pub fn code(&self) -> ErrorCode {
        match self {
            EncodeError::Empty { .. } => ErrorCode::EmptyDocument,
            EncodeError::Id(_) => ErrorCode::InvalidId,
            EncodeError::Metadata(_) => ErrorCode::InvalidArgument,
            EncodeError::Store(error) => error.code(),
            EncodeError::Index(error) => error.code(),
            EncodeError::Model(_) | EncodeError::Stopped(_) => ErrorCode::Internal,
        }
    }

    /// The error as a row's result.
    pub fn row(&self) -> RowError {
        row_error(self.code(), self.to_string())
    }

    /// The error as a call's status.
    pub fn status(&self) -> Status {
        status(self.code(), self.to_string())
    }
}
