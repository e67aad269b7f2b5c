//! Why the index refuses or fails.

use std::io;
use std::path::Path;

use e2llm_api::{ErrorCode, IdError};
use e2llm_store::StoreError;
use e2llm_store::manifest::ManifestError;
use tonic::Status;

/// Each message is one line with the value and the remedy. Cheap to clone: one failure answers a whole group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Another process has the directory open.
    #[error("index directory {dir} is in use by {holder}; stop it, or give this index another directory")]
    InUse {
        /// The directory.
        dir: String,
        /// Who holds it, as far as known.
        holder: String,
    },
    /// The directory cannot be used.
    #[error("index directory {path}: {detail}; check its owner and the space left, or choose another")]
    Directory {
        /// Directory or file.
        path: String,
        /// The failure.
        detail: String,
    },
    /// No space left for the view.
    #[error("no space left for the index in {path}; free some space and try again")]
    DiskFull {
        /// Directory of the view.
        path: String,
    },
    /// The view failed while in use. It is opened again, and rebuilt if need be.
    #[error("the index view failed ({0}); it is being reopened, try again")]
    View(String),
    /// The view is not open at the moment.
    #[error("the index is {0}; try again")]
    Down(&'static str),
    /// More writes are waiting than memory is set aside for.
    #[error("the index has {waiting} bytes of writes waiting; try again in a second")]
    Overloaded {
        /// Bytes of waiting requests.
        waiting: usize,
    },
    /// The documents belong to an index of another number of shards.
    #[error("{}", handed_over(*.shards))]
    HandedOver {
        /// How many; 0: not yet.
        shards: u32,
    },
    /// A request that cannot be carried out as it is.
    #[error("{message}")]
    Refused {
        /// For programs.
        code: ErrorCode,
        /// Names the value and the remedy.
        message: String,
    },
    /// The manifest log failed or is damaged.
    #[error(transparent)]
    Log(#[from] ManifestError),
}

impl IndexError {
    /// The code for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InUse { .. } | Self::View(_) | Self::Down(_) => ErrorCode::Unavailable,
            Self::Directory { .. } => ErrorCode::Unreadable,
            // For a while nothing can be committed: workers wait as they do for space.
            Self::DiskFull { .. } | Self::Overloaded { .. } | Self::HandedOver { .. } => ErrorCode::ResourceExhausted,
            Self::Refused { code, .. } => *code,
            Self::Log(error) => error.code(),
        }
    }

    pub(crate) fn refused(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Refused { code, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::refused(ErrorCode::InvalidArgument, message)
    }

    pub(crate) fn io(path: &Path, error: &io::Error) -> Self {
        let path = path.display().to_string();
        if is_full(error.kind()) {
            return Self::DiskFull { path };
        }
        Self::Directory { path, detail: error.to_string() }
    }
}

fn handed_over(shards: u32) -> String {
    match shards {
        0 => "this index is being made from one of another number of shards; run `e2llm reshard` again until it has ended".to_owned(),
        1 => "the documents are in an index of one shard now; start it without --shards".to_owned(),
        shards => format!("the documents are in an index of {shards} shards now; start those with --shards {shards}"),
    }
}

/// Whether the disk or a quota is used up.
pub(crate) fn is_full(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<IdError> for IndexError {
    fn from(error: IdError) -> Self {
        Self::refused(ErrorCode::InvalidId, error.to_string())
    }
}

impl From<StoreError> for IndexError {
    fn from(error: StoreError) -> Self {
        Self::Log(error.into())
    }
}

impl From<IndexError> for Status {
    fn from(error: IndexError) -> Self {
        e2llm_api::status(error.code(), error.to_string())
    }
}
