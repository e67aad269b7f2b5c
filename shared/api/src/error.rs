use tonic::{Code, Status};

use crate::v1::RowError;

/// Name of the gRPC metadata entry that carries the [`ErrorCode`].
const METADATA_KEY: &str = "e2llm-code";

/// What went wrong, for programs. Messages are for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// A field or option has a value that cannot be used.
    InvalidArgument,
    /// A document id or collection name that is not allowed.
    InvalidId,
    /// No such document, job or bundle.
    NotFound,
    /// The same id stands twice in one input.
    DuplicateId,
    /// A document with no text.
    EmptyDocument,
    /// Bytes that are not UTF-8.
    NotUtf8,
    /// A PDF, archive, image or other binary format.
    UnsupportedFormat,
    /// Larger than a limit.
    TooLarge,
    /// The question alone does not fit the decoder's window.
    QuestionTooLong,
    /// The file could not be read.
    Unreadable,
    /// The text was not kept, so it cannot be expanded or encoded again.
    TextNotStored,
    /// Stored bytes do not match their name; the object was set aside.
    Corrupt,
    /// A record refers to a blob or text that is not in the store, or no longer: store it again, then commit.
    ObjectGone,
    /// The store's layout or id is not the expected one.
    WrongStore,
    /// The caller did not say who it is, or nobody knows it.
    Unauthenticated,
    /// The caller is known and may not do this.
    PermissionDenied,
    /// No space, no free slot: try again later.
    ResourceExhausted,
    /// A service or the store cannot be reached: try again later.
    Unavailable,
    /// The name is taken by something else.
    AlreadyExists,
    /// Someone else is at it: try again later.
    Busy,
    /// Cancelled by the caller.
    Cancelled,
    /// A fault of ours.
    Internal,
}

impl ErrorCode {
    const ALL: [(ErrorCode, &'static str, Code); 22] = [
        (ErrorCode::InvalidArgument, "INVALID_ARGUMENT", Code::InvalidArgument),
        (ErrorCode::InvalidId, "INVALID_ID", Code::InvalidArgument),
        (ErrorCode::NotFound, "NOT_FOUND", Code::NotFound),
        (ErrorCode::DuplicateId, "DUPLICATE_ID", Code::InvalidArgument),
        (ErrorCode::EmptyDocument, "EMPTY_DOCUMENT", Code::InvalidArgument),
        (ErrorCode::NotUtf8, "NOT_UTF8", Code::InvalidArgument),
        (ErrorCode::UnsupportedFormat, "UNSUPPORTED_FORMAT", Code::InvalidArgument),
        (ErrorCode::TooLarge, "TOO_LARGE", Code::InvalidArgument),
        (ErrorCode::QuestionTooLong, "QUESTION_TOO_LONG", Code::InvalidArgument),
        (ErrorCode::Unreadable, "UNREADABLE", Code::InvalidArgument),
        (ErrorCode::TextNotStored, "TEXT_NOT_STORED", Code::FailedPrecondition),
        (ErrorCode::Corrupt, "CORRUPT", Code::DataLoss),
        (ErrorCode::ObjectGone, "OBJECT_GONE", Code::FailedPrecondition),
        (ErrorCode::WrongStore, "WRONG_STORE", Code::FailedPrecondition),
        (ErrorCode::Unauthenticated, "UNAUTHENTICATED", Code::Unauthenticated),
        (ErrorCode::PermissionDenied, "PERMISSION_DENIED", Code::PermissionDenied),
        (ErrorCode::ResourceExhausted, "RESOURCE_EXHAUSTED", Code::ResourceExhausted),
        (ErrorCode::Unavailable, "UNAVAILABLE", Code::Unavailable),
        (ErrorCode::AlreadyExists, "ALREADY_EXISTS", Code::AlreadyExists),
        (ErrorCode::Busy, "BUSY", Code::Aborted),
        (ErrorCode::Cancelled, "CANCELLED", Code::Cancelled),
        (ErrorCode::Internal, "INTERNAL", Code::Internal),
    ];

    /// The stable name on the wire and in `--json` output.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(code, ..)| *code == self).map_or("INTERNAL", |(_, name, _)| name)
    }

    /// The code with this name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n, _)| *n == name).map(|(code, ..)| *code)
    }

    /// The gRPC status code it travels as.
    pub fn grpc(self) -> Code {
        Self::ALL.iter().find(|(code, ..)| *code == self).map_or(Code::Internal, |(.., grpc)| *grpc)
    }

    /// Whether the same call may succeed later without any change.
    pub fn is_retriable(self) -> bool {
        matches!(self, ErrorCode::ResourceExhausted | ErrorCode::Unavailable | ErrorCode::Busy)
    }

    /// The code a status carries, or the nearest one to its gRPC code.
    pub fn of(status: &Status) -> Self {
        let named = status.metadata().get(METADATA_KEY).and_then(|v| v.to_str().ok());
        if let Some(code) = named.and_then(Self::parse) {
            return code;
        }
        let nearest = Self::ALL.iter().find(|(.., grpc)| *grpc == status.code());
        match (status.code(), nearest) {
            (Code::DeadlineExceeded | Code::Aborted, _) => ErrorCode::Unavailable,
            (_, Some((code, ..))) => *code,
            _ => ErrorCode::Internal,
        }
    }
}

/// A gRPC status that carries `code` by name beside its gRPC code.
pub fn status(code: ErrorCode, message: impl Into<String>) -> Status {
    let mut status = Status::new(code.grpc(), message);
    let value = tonic::metadata::MetadataValue::from_static(code.as_str());
    status.metadata_mut().insert(METADATA_KEY, value);
    status
}

/// The error of one row of a bulk job.
pub fn row_error(code: ErrorCode, message: impl Into<String>) -> RowError {
    RowError { code: code.as_str().to_owned(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_wire() {
        for (code, name, _) in ErrorCode::ALL {
            assert_eq!(ErrorCode::parse(name), Some(code));
            assert_eq!(ErrorCode::of(&status(code, "m")), code);
        }
    }

    #[test]
    fn foreign_statuses_map_to_the_nearest_code() {
        assert_eq!(ErrorCode::of(&Status::deadline_exceeded("")), ErrorCode::Unavailable);
        assert_eq!(ErrorCode::of(&Status::not_found("")), ErrorCode::NotFound);
        assert_eq!(ErrorCode::of(&Status::unknown("")), ErrorCode::Internal);
    }
}
