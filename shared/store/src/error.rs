use std::error::Error;
use std::io;

use e2llm_api::ErrorCode;

/// Result of a store operation.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why a store operation failed. Each message is one line with the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store URL cannot be used.
    #[error(
        "store {url:?} {reason}; use a directory, file:///dir, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or memory://"
    )]
    InvalidUrl {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// `store.json` is damaged, of another layout version or of another program.
    #[error("store {url} cannot be used: {reason}")]
    WrongStore {
        /// The store.
        url: String,
        /// What is wrong, and the remedy.
        reason: String,
    },
    /// A file stands where the store needs a directory.
    #[error(
        "{path} is or lies under a file where the store needs a directory; move the file away or choose another store"
    )]
    NotADirectory {
        /// The object or directory.
        path: String,
    },
    /// The operating system or the object store refused access.
    #[error("no permission for {object} ({detail}); check the owner of the directory or the credentials")]
    PermissionDenied {
        /// The object or directory.
        object: String,
        /// The refusal.
        detail: String,
    },
    /// No space, or a quota is used up.
    #[error("no space left to write {object}; free some space and try again")]
    DiskFull {
        /// The object.
        object: String,
    },
    /// The object does not exist.
    #[error("{object} is not in the store; encode the document again, or run doctor")]
    NotFound {
        /// The object.
        object: String,
    },
    /// The stored bytes do not match their name. They are never returned.
    #[error("{object} is corrupt: {reason}; {}", kept(.quarantined))]
    Corrupt {
        /// The object.
        object: String,
        /// What did not match.
        reason: String,
        /// Where the bytes were moved.
        quarantined: Option<String>,
    },
    /// A text is not UTF-8.
    #[error("the text is not UTF-8: invalid byte at offset {offset}; convert it to UTF-8 first")]
    NotUtf8 {
        /// 0-based offset of the first byte that does not belong to a code point.
        offset: u64,
    },
    /// Larger than a limit.
    #[error("{what} exceeds the limit of {limit} bytes; split it")]
    TooLarge {
        /// What is too large.
        what: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// Not a hash or an object path.
    #[error("{value:?} {reason}")]
    InvalidName {
        /// As given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A soft prompt whose fields contradict each other.
    #[error("the soft prompt {input_key} cannot be stored: {reason}")]
    InvalidBlob {
        /// Its input key.
        input_key: String,
        /// What contradicts what.
        reason: String,
    },
    /// Another process holds the store.
    #[error("store {path} is in use by {holder}; wait until it ends, or choose another store")]
    Locked {
        /// The store's directory.
        path: String,
        /// Process id and command.
        holder: String,
    },
    /// The object store did not answer, or asked to slow down, for all attempts.
    #[error(
        "the object store did not answer for {object} ({detail}); check that it runs and is reachable, then try again"
    )]
    Unavailable {
        /// The object.
        object: String,
        /// The last failure.
        detail: String,
    },
    /// Reading or writing failed in another way.
    #[error("{object} cannot be read or written: {detail}")]
    Io {
        /// The object or directory.
        object: String,
        /// The failure.
        detail: String,
    },
    /// A fault of ours.
    #[error("internal fault in the store: {0}")]
    Internal(String),
}

impl StoreError {
    /// The code for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::InvalidUrl { .. } | Self::NotADirectory { .. } | Self::InvalidName { .. } => {
                ErrorCode::InvalidArgument
            }
            Self::WrongStore { .. } => ErrorCode::WrongStore,
            Self::PermissionDenied { .. } | Self::Io { .. } => ErrorCode::Unreadable,
            Self::DiskFull { .. } => ErrorCode::ResourceExhausted,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::Corrupt { .. } => ErrorCode::Corrupt,
            Self::NotUtf8 { .. } => ErrorCode::NotUtf8,
            Self::TooLarge { .. } => ErrorCode::TooLarge,
            Self::Locked { .. } | Self::Unavailable { .. } => ErrorCode::Unavailable,
            Self::InvalidBlob { .. } | Self::Internal(_) => ErrorCode::Internal,
        }
    }

    /// Names what failed: an object path or a directory.
    pub(crate) fn from_io(object: &str, error: &io::Error) -> Self {
        use io::ErrorKind as Kind;
        let object = object.to_owned();
        match error.kind() {
            Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => Self::DiskFull { object },
            Kind::PermissionDenied | Kind::ReadOnlyFilesystem => {
                Self::PermissionDenied { object, detail: error.to_string() }
            }
            // `create_dir_all` reports a file in its way as "already exists".
            Kind::NotADirectory | Kind::AlreadyExists => Self::NotADirectory { path: object },
            Kind::NotFound => Self::NotFound { object },
            _ => Self::Io { object, detail: error.to_string() },
        }
    }

    pub(crate) fn from_object_store(object: &str, error: object_store::Error) -> Self {
        use object_store::Error as E;
        let local_io = is_local(&error).then(|| io_error(&error)).flatten();
        if let Some(io) = local_io {
            return Self::from_io(object, io);
        }
        let detail = one_line(&error);
        let object = object.to_owned();
        match error {
            E::NotFound { .. } => Self::NotFound { object },
            E::PermissionDenied { .. } | E::Unauthenticated { .. } => Self::PermissionDenied { object, detail },
            E::InvalidPath { .. } => Self::InvalidName { value: object, reason: detail },
            E::JoinError { .. } | E::NotImplemented { .. } | E::NotSupported { .. } => Self::Internal(detail),
            E::Generic { store: "LocalFileSystem", .. } => Self::Io { object, detail },
            // What is left of the remote stores are transport failures, 5xx, 429 and 408.
            _ => Self::Unavailable { object, detail },
        }
    }
}

fn kept(quarantined: &Option<String>) -> String {
    match quarantined {
        Some(path) => format!("it was moved to {path}, encode the document again"),
        None => "run doctor to set it aside, then encode the document again".to_owned(),
    }
}

fn is_local(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::Generic { store: "LocalFileSystem", .. })
}

fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        current = error.source();
    }
    None
}

/// Remote errors quote whole XML bodies: one line of bounded length is enough to act on.
fn one_line(error: &object_store::Error) -> String {
    const LONGEST: usize = 300;
    let text = error.to_string();
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(kind: io::ErrorKind) -> object_store::Error {
        object_store::Error::Generic { store: "LocalFileSystem", source: Box::new(io::Error::from(kind)) }
    }

    #[test]
    fn a_full_disk_is_resource_exhausted_and_retriable() {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let error = StoreError::from_object_store("texts/ab", local(kind));
            assert_eq!(error, StoreError::DiskFull { object: "texts/ab".into() });
            assert_eq!(error.code(), ErrorCode::ResourceExhausted);
            assert!(error.code().is_retriable());
        }
    }

    #[test]
    fn refused_access_and_files_in_the_way_are_told_apart() {
        let refused = StoreError::from_object_store("a", local(io::ErrorKind::PermissionDenied));
        assert!(matches!(refused, StoreError::PermissionDenied { .. }), "{refused}");
        let blocked = StoreError::from_object_store("a", local(io::ErrorKind::NotADirectory));
        assert!(matches!(blocked, StoreError::NotADirectory { .. }), "{blocked}");
    }

    #[test]
    fn a_remote_failure_is_one_bounded_line_and_retriable() {
        let body = "<Error>\n  <Code>SlowDown</Code>\n".repeat(100);
        let remote = object_store::Error::Generic { store: "S3", source: body.into() };
        let error = StoreError::from_object_store("a", remote);
        assert_eq!(error.code(), ErrorCode::Unavailable);
        let line = error.to_string();
        assert!(!line.contains('\n') && line.chars().count() < 500, "{line}");
    }
}
