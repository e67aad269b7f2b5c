//! What can be wrong with the log; its remedies differ from those for documents' objects.

use e2llm_api::ErrorCode;

use crate::StoreError;

/// Why a log operation failed. Each message is one line with the object's name and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// An object of the log is not what was written. Its contents are never used.
    #[error(
        "{object} is corrupt: {reason}; restore it from a copy of the store, or run doctor, which can write a \
         snapshot past it while an index still holds its records"
    )]
    Corrupt {
        /// Path of the object.
        object: String,
        /// What did not match.
        reason: String,
    },
    /// An object that later ones build on is not there.
    #[error(
        "{object} is missing though {later} exists; restore it from a copy of the store, or run doctor, which can \
         write a snapshot past it while an index still holds its records"
    )]
    Missing {
        /// Path of the object.
        object: String,
        /// Path of one that builds on it.
        later: String,
    },
    /// A shard name that cannot stand in a path.
    #[error("shard name {0:?} is not 1 to 64 of a-z, 0-9 and '-'; rename it")]
    ShardName(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ManifestError {
    /// The code for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Corrupt { .. } | Self::Missing { .. } => ErrorCode::Corrupt,
            Self::ShardName(_) => ErrorCode::InvalidArgument,
            Self::Store(error) => error.code(),
        }
    }

    /// Whether the log itself is damaged, and not merely out of reach.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Missing { .. })
    }

    pub(super) fn corrupt(object: &str, reason: impl Into<String>) -> Self {
        Self::Corrupt { object: object.to_owned(), reason: reason.into() }
    }
}
