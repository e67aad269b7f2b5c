use std::fmt;

use serde::{Deserialize, Serialize};

/// Longest document id or collection name, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 255;

/// Why a text is not an id. The message names the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The id is the empty string.
    #[error("{kind} is empty; give it at least one character")]
    Empty {
        /// "document id" or "collection".
        kind: &'static str,
    },
    /// The id is longer than [`MAX_ID_BYTES`].
    #[error("{kind} \"{start}…\" has {bytes} bytes; at most {MAX_ID_BYTES} are allowed, shorten it")]
    TooLong {
        /// "document id" or "collection".
        kind: &'static str,
        /// The first characters of the id.
        start: String,
        /// Its length.
        bytes: usize,
    },
    /// The id contains a character that is not allowed, or is `.` or `..`.
    #[error("{kind} {value:?} {problem}; rename it")]
    Forbidden {
        /// "document id" or "collection".
        kind: &'static str,
        /// The id.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

fn check(kind: &'static str, value: &str) -> Result<(), IdError> {
    if value.is_empty() {
        return Err(IdError::Empty { kind });
    }
    if value.len() > MAX_ID_BYTES {
        let start = value.chars().filter(|c| !c.is_control()).take(24).collect();
        return Err(IdError::TooLong { kind, start, bytes: value.len() });
    }
    let forbidden = |problem| Err(IdError::Forbidden { kind, value: value.to_owned(), problem });
    if value == "." || value.contains("..") {
        return forbidden("is or contains a path step (\".\", \"..\")");
    }
    if value.contains(['/', '\\']) {
        return forbidden("contains a slash or backslash");
    }
    if value.chars().any(char::is_control) {
        return forbidden("contains a control character");
    }
    if value.trim() != value {
        return forbidden("begins or ends with white space");
    }
    Ok(())
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `value` and wraps it.
            pub fn new(value: impl Into<String>) -> Result<Self, IdError> {
                let value = value.into();
                check($kind, &value)?;
                Ok(Self(value))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(value: &str) -> Result<Self, IdError> {
                Self::new(value)
            }
        }
    };
}

id_type!(
    /// A document's name, chosen by the user: 1 to 255 bytes, no slashes, no `..`, no control characters.
    DocId,
    "document id"
);
id_type!(
    /// A named set of documents; same rules as [`DocId`].
    Collection,
    "collection"
);

impl Default for Collection {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_ids() {
        for name in ["rfc9000", "notes.md", "Ünïcode 文書", "a", "report (final).txt"] {
            assert_eq!(DocId::new(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn names_that_could_escape_or_confuse_are_refused() {
        for name in ["", ".", "..", "a/b", "a\\b", "../x", "a\nb", "a\0b", "\u{7f}", " a", "a "] {
            assert!(DocId::new(name).is_err(), "{name:?}");
        }
        assert!(DocId::new("x".repeat(MAX_ID_BYTES)).is_ok());
        let error = DocId::new("x".repeat(300)).unwrap_err().to_string();
        assert!(error.contains("300 bytes"), "{error}");
    }
}
