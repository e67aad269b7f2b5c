//! SHA-256 of files, and the ledger that remembers which file had which hash.

use crate::Result;
use crate::error::IoContext;
use serde::{Deserialize, Serialize};
use sha2::Digest;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

/// A SHA-256 as 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256(String);

impl Sha256 {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(sha2::Sha256::new_with_prefix(bytes))
    }

    /// Hash of everything `reader` yields.
    pub(crate) fn of_reader(mut reader: impl Read) -> io::Result<Self> {
        let mut hasher = sha2::Sha256::new();
        io::copy(&mut io::BufReader::with_capacity(1 << 20, &mut reader), &mut hasher)?;
        Ok(Self::finish(hasher))
    }

    pub(crate) fn of_file(path: &Path) -> Result<Self> {
        File::open(path).and_then(Self::of_reader).at("read", path)
    }

    pub(crate) fn finish(hasher: sha2::Sha256) -> Self {
        Self(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl TryFrom<String> for Sha256 {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        let valid = text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(text)) } else { Err(format!("'{text}' is not 64 lower-case hexadecimal digits")) }
    }
}

impl From<Sha256> for String {
    fn from(hash: Sha256) -> Self {
        hash.0
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Hashes remembered by file name, each valid as long as size and modification time stay what they were.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    files: BTreeMap<String, Seen>,
    changed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    bytes: u64,
    mtime_ns: u64,
    sha256: Sha256,
}

impl Ledger {
    /// The ledger at `path`; an absent or unreadable one is empty, which only costs hashing again.
    pub(crate) fn load(path: &Path) -> Self {
        let files = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { path: path.to_path_buf(), files, changed: false }
    }

    /// The hash of `file`: remembered if the file looks unchanged, else computed and remembered under `name`.
    pub(crate) fn sha256(&mut self, name: &str, file: &Path, metadata: &Metadata, rehash: bool) -> Result<Sha256> {
        let (bytes, mtime_ns) = (metadata.len(), mtime_ns(metadata));
        if let Some(seen) = self.files.get(name)
            && !rehash
            && seen.bytes == bytes
            && seen.mtime_ns == mtime_ns
        {
            return Ok(seen.sha256.clone());
        }
        let sha256 = Sha256::of_file(file)?;
        let seen = Seen { bytes, mtime_ns, sha256: sha256.clone() };
        self.changed |= self.files.get(name) != Some(&seen);
        self.files.insert(name.to_owned(), seen);
        Ok(sha256)
    }

    /// Writes what changed, by rename. A cache that cannot be written (read-only mount) is no error: it only means
    /// hashing again next time.
    pub(crate) fn save(self) {
        if !self.changed {
            return;
        }
        if let Err(error) = self.write() {
            tracing::debug!(path = %self.path.display(), %error, "hashes not remembered");
        }
    }

    fn write(&self) -> io::Result<()> {
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let unique = format!("{}-{}.tmp", std::process::id(), WRITES.fetch_add(1, Ordering::Relaxed));
        let temporary = self.path.with_extension(unique);
        if let Some(parent) = self.path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&temporary, serde_json::to_vec_pretty(&self.files)?)?;
        fs::rename(&temporary, &self.path)
    }
}

fn mtime_ns(metadata: &Metadata) -> u64 {
    let since_epoch = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since_epoch.map_or(0, |age| u64::try_from(age.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_agree_with_the_published_test_vector() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Sha256::of(b"abc").as_str(), abc);
        assert_eq!(Sha256::of_reader(&b"abc"[..]).unwrap().as_str(), abc);
    }

    #[test]
    fn only_64_lower_case_digits_are_a_hash() {
        assert!(Sha256::try_from("ab".repeat(32)).is_ok());
        assert!(Sha256::try_from("AB".repeat(32)).is_err());
        assert!(Sha256::try_from("ab".repeat(31)).is_err());
    }

    #[test]
    fn a_remembered_hash_is_used_until_size_or_time_changes_or_a_rehash_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let (file, path) = (dir.path().join("f"), dir.path().join("ledger.json"));
        let time = std::time::SystemTime::now();
        let put = |text: &str, when| {
            fs::write(&file, text).unwrap();
            File::options().append(true).open(&file).unwrap().set_modified(when).unwrap();
        };
        let ask = |rehash| {
            let mut ledger = Ledger::load(&path);
            let hash = ledger.sha256("f", &file, &fs::metadata(&file).unwrap(), rehash).unwrap();
            ledger.save();
            hash
        };
        put("one", time);
        assert_eq!(ask(false), Sha256::of(b"one"));
        put("two", time);
        assert_eq!(ask(false), Sha256::of(b"one"), "same size and time: remembered");
        assert_eq!(ask(true), Sha256::of(b"two"), "asked to look");
        put("six", time + std::time::Duration::from_secs(1));
        assert_eq!(ask(false), Sha256::of(b"six"), "another time");
    }
}
