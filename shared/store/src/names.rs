use std::fmt;

use crate::error::{Result, StoreError};

/// A blake3 hash as 64 lower-case hex digits. Checked, so it can stand in an object path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContentHash(String);

impl ContentHash {
    /// The hash of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from(blake3::hash(bytes))
    }

    /// Checks that `value` is 64 lower-case hex digits.
    pub fn parse(value: &str) -> Result<Self> {
        let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if value.len() == 64 && value.as_bytes().iter().all(is_hex) {
            return Ok(Self(value.to_owned()));
        }
        let value = value.chars().take(80).collect();
        Err(StoreError::InvalidName { value, reason: "is not a blake3 hash (64 lower-case hex digits)".to_owned() })
    }

    /// The hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 bytes that the digits spell.
    pub(crate) fn to_bytes(&self) -> [u8; 32] {
        let (pairs, _) = self.0.as_bytes().as_chunks::<2>();
        let nibble = |digit: u8| if digit.is_ascii_digit() { digit - b'0' } else { digit - b'a' + 10 };
        let mut bytes = [0; 32];
        bytes.iter_mut().zip(pairs).for_each(|(byte, [high, low])| *byte = nibble(*high) << 4 | nibble(*low));
        bytes
    }

    /// The first two digits, which spread objects over directories.
    fn shard(&self) -> &str {
        &self.0[..2]
    }
}

impl From<blake3::Hash> for ContentHash {
    fn from(hash: blake3::Hash) -> Self {
        Self(hash.to_hex().to_string())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one stored soft prompt: what it was made from, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobName {
    /// Hash of model fingerprint, ratio, chunker configuration and text.
    pub input_key: ContentHash,
    /// Hash of the blob's bytes.
    pub content_hash: ContentHash,
}

impl BlobName {
    /// Checks both parts.
    pub fn new(input_key: &str, content_hash: &str) -> Result<Self> {
        let input_key = ContentHash::parse(input_key)?;
        let content_hash = ContentHash::parse(content_hash)?;
        Ok(Self { input_key, content_hash })
    }

    /// `blobs/<2 hex>/<input key>/<blake3>.safetensors`.
    pub fn path(&self) -> String {
        format!("{}/{}.safetensors", Self::folder(&self.input_key), self.content_hash)
    }

    /// The name behind a path, if it is one.
    pub fn from_path(path: &str) -> Option<Self> {
        let mut parts = path.rsplit('/');
        let content_hash = parts.next()?.strip_suffix(".safetensors")?;
        let name = Self::new(parts.next()?, content_hash).ok()?;
        (name.path() == path).then_some(name)
    }

    /// Where all blobs made from the same input lie.
    pub(crate) fn folder(input_key: &ContentHash) -> String {
        format!("{BLOBS}/{}/{input_key}", input_key.shard())
    }
}

/// Root of all blobs.
pub(crate) const BLOBS: &str = "blobs";

/// Root of all texts.
pub(crate) const TEXTS: &str = "texts";

/// Root of what garbage collection notes, see [`crate::garbage`].
pub(crate) const GARBAGE: &str = "gc";

/// Root of what was set aside.
pub(crate) const QUARANTINE: &str = "quarantine";

/// Root of the short-lived objects that show whether the store takes writes.
pub(crate) const PROBES: &str = "probes";

/// `texts/<2 hex>/<blake3>.zst`.
pub(crate) fn text_path(hash: &ContentHash) -> String {
    format!("{TEXTS}/{}/{hash}.zst", hash.shard())
}

/// The text hash behind a path, if it is one.
pub(crate) fn text_hash(path: &str) -> Option<ContentHash> {
    let stem = path.rsplit('/').next()?.strip_suffix(".zst")?;
    let hash = ContentHash::parse(stem).ok()?;
    (text_path(&hash) == path).then_some(hash)
}

/// Whether the path ends like the files in which `object_store` stages local uploads: `<name>#<digits>`.
pub(crate) fn is_staging_name(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split_once('#')
        .is_some_and(|(_, digits)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_paths_convert_both_ways() {
        let name = BlobName { input_key: ContentHash::of(b"in"), content_hash: ContentHash::of(b"out") };
        assert_eq!(BlobName::from_path(&name.path()), Some(name.clone()));
        let hash = ContentHash::of(b"text");
        assert_eq!(text_hash(&text_path(&hash)), Some(hash));
    }

    #[test]
    fn a_blob_in_the_wrong_folder_has_no_name() {
        let name = BlobName { input_key: ContentHash::of(b"in"), content_hash: ContentHash::of(b"out") };
        assert_eq!(BlobName::from_path(&name.path().replacen("blobs/", "blobs/x", 1)), None);
    }

    #[test]
    fn what_is_not_a_hash_never_reaches_a_path() {
        let upper = "A".repeat(64);
        for value in ["", "../../etc/passwd", "ab", upper.as_str()] {
            assert!(ContentHash::parse(value).is_err(), "{value}");
        }
    }
}
