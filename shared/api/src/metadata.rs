use std::fmt;

use serde_json::{Map, Value};

/// Largest metadata of one document, in bytes of JSON.
pub const MAX_METADATA_BYTES: usize = 16 << 10;

/// The user's own facts about a document: a JSON object of at most [`MAX_METADATA_BYTES`].
///
/// Two are equal when they hold the same members, in whatever order or spelling.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata(Map<String, Value>);

/// Why a text is not metadata. The message names the value and the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// Longer than [`MAX_METADATA_BYTES`].
    #[error("metadata has {bytes} bytes; at most {MAX_METADATA_BYTES} are allowed, keep less with the document")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
    /// Not JSON.
    #[error("metadata {start:?} is not JSON ({problem}); write an object such as {{\"year\": 2024}}")]
    NotJson {
        /// The first characters.
        start: String,
        /// What is wrong, with its place.
        problem: String,
    },
    /// JSON, but no object.
    #[error("metadata {start:?} is not a JSON object; write one such as {{\"year\": 2024}}")]
    NotAnObject {
        /// The first characters.
        start: String,
    },
}

impl Metadata {
    /// Reads a JSON object. The empty text is metadata without members, as records without any have it.
    pub fn parse(text: &str) -> Result<Self, MetadataError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        if text.len() > MAX_METADATA_BYTES {
            return Err(MetadataError::TooLarge { bytes: text.len() });
        }
        let start = || text.chars().take(40).collect();
        match serde_json::from_str(text) {
            Ok(Value::Object(members)) => Self(members).within_limit(),
            Ok(_) => Err(MetadataError::NotAnObject { start: start() }),
            Err(error) => Err(MetadataError::NotJson { start: start(), problem: error.to_string() }),
        }
    }

    /// Numbers can be longer when they are written again.
    fn within_limit(self) -> Result<Self, MetadataError> {
        let bytes = self.to_string().len();
        if bytes > MAX_METADATA_BYTES { Err(MetadataError::TooLarge { bytes }) } else { Ok(self) }
    }

    /// What a request says: `None` for the empty text, which leaves the metadata that is stored as it is; `{}` clears it.
    pub fn requested(text: &str) -> Result<Option<Self>, MetadataError> {
        if text.is_empty() { Ok(None) } else { Self::parse(text).map(Some) }
    }

    /// The members.
    pub fn members(&self) -> &Map<String, Value> {
        &self.0
    }
}

/// One line of JSON; nothing when there are no members.
impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str(&serde_json::to_string(&self.0).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_metadata_whatever_its_spelling() {
        let a = Metadata::parse("{ \"year\": 2024, \"lang\": \"en\" }").unwrap();
        assert_eq!(a, Metadata::parse(r#"{"lang":"en","year":2024}"#).unwrap());
        assert_eq!(a.to_string(), r#"{"year":2024,"lang":"en"}"#);
        assert_eq!(a.members()["year"], 2024);
    }

    #[test]
    fn nothing_and_an_empty_object_are_told_apart_in_requests_only() {
        assert_eq!(Metadata::requested("").unwrap(), None);
        assert_eq!(Metadata::requested("{}").unwrap(), Some(Metadata::default()));
        assert_eq!(Metadata::parse("").unwrap().to_string(), Metadata::parse("{}").unwrap().to_string());
    }

    #[test]
    fn what_is_no_object_is_refused_with_its_beginning() {
        for text in ["[1]", "3", "null", "{\"a\":", "{} {}", "year=2024"] {
            let error = Metadata::parse(text).unwrap_err().to_string();
            assert!(error.contains("write") && error.contains(&text[..1]), "{error}");
        }
        // deeper than the parser follows: an error, no overflow
        assert!(Metadata::parse(&format!("{{\"a\":{}", "[".repeat(5000))).is_err());
    }

    #[test]
    fn the_limit_is_16_kib() {
        let of = |bytes: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(bytes - 8));
        assert!(Metadata::parse(&of(MAX_METADATA_BYTES)).is_ok());
        let error = Metadata::parse(&of(MAX_METADATA_BYTES + 1)).unwrap_err().to_string();
        assert!(error.contains("16385 bytes"), "{error}");
    }
}
