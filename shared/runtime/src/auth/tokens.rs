use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::TryRngCore;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};

use super::Role;
use super::limit::RateLimit;
use crate::RuntimeError;
use crate::reload::Reloading;

/// Every token begins so, so that scanners for leaked secrets find it.
const PREFIX: &str = "e2llm_";
const SECRET_BYTES: usize = 32;

/// What a server knows of a token.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenEntry {
    /// Who has it; appears in logs.
    pub name: String,
    /// BLAKE3 of the token, 64 hex digits.
    #[serde(with = "hex")]
    hash: blake3::Hash,
    /// What it may do.
    pub role: Role,
    /// The collections it may use; all if absent. Named without any it is refused, lest a file that was cut off open all of them.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "listed")]
    pub collections: Option<Vec<String>>,
    /// Calls per minute; no limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    #[serde(skip)]
    limit: Option<RateLimit>,
}

impl TokenEntry {
    pub(crate) fn allows(&self, collection: &str) -> bool {
        self.collections.as_ref().is_none_or(|names| names.iter().any(|name| name == collection))
    }

    /// Counts a call.
    ///
    /// # Errors
    /// How long to wait.
    pub(crate) fn count(&self, now: Instant) -> Result<(), Duration> {
        self.limit.as_ref().map_or(Ok(()), |limit| limit.take(now))
    }
}

/// A token that was just made: the only time that it is seen.
#[derive(Debug)]
pub struct NewToken {
    /// To be given to the caller.
    pub secret: String,
    /// To be added to the servers' file.
    pub entry: TokenEntry,
}

impl NewToken {
    /// Makes one.
    ///
    /// # Errors
    /// When the operating system has no randomness.
    pub fn generate(
        name: &str,
        role: Role,
        collections: Option<Vec<String>>,
        requests_per_minute: Option<u32>,
    ) -> std::io::Result<Self> {
        let mut random = [0; SECRET_BYTES];
        OsRng.try_fill_bytes(&mut random).map_err(std::io::Error::other)?;
        let secret = format!("{PREFIX}{}", random.map(|byte| format!("{byte:02x}")).concat());
        let hash = blake3::hash(secret.as_bytes());
        let entry = TokenEntry { name: name.to_owned(), hash, role, collections, requests_per_minute, limit: None };
        Ok(Self { secret, entry })
    }
}

/// The tokens that a server takes.
#[derive(Debug)]
pub struct Tokens(Reloading<Vec<Arc<TokenEntry>>>);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tokens: Vec<TokenEntry>,
}

impl Tokens {
    /// Reads a YAML file of `tokens: [{name, hash, role, collections, requests_per_minute}]`, and again when it changes.
    ///
    /// # Errors
    /// [`RuntimeError::BadFile`]
    pub fn load(path: &Path) -> Result<Self, RuntimeError> {
        let file = path.to_owned();
        let bad = |reason| RuntimeError::BadFile { path: path.to_owned(), reason };
        Reloading::new(vec![file.clone()], move || read(&file)).map(Self).map_err(bad)
    }

    /// The entry of a token. Every entry is compared, each in constant time.
    pub(crate) fn find(&self, secret: &str) -> Option<Arc<TokenEntry>> {
        let hash = blake3::hash(secret.as_bytes());
        let entries = self.0.current();
        // `blake3::Hash` compares in constant time.
        entries.iter().fold(None, |found, entry| if entry.hash == hash { Some(Arc::clone(entry)) } else { found })
    }
}

fn read(path: &Path) -> Result<Vec<Arc<TokenEntry>>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let File { tokens } = serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())?;
    let now = Instant::now();
    let mut names = std::collections::HashSet::new();
    let mut entries = Vec::with_capacity(tokens.len());
    for mut token in tokens {
        if !names.insert(token.name.clone()) {
            return Err(format!("two tokens are called {:?}; give each a name of its own", token.name));
        }
        if token.requests_per_minute == Some(0) {
            return Err(format!("token {:?} may make 0 requests; leave it out instead", token.name));
        }
        token.limit = token.requests_per_minute.map(|per_minute| RateLimit::new(per_minute, now));
        entries.push(Arc::new(token));
    }
    Ok(entries)
}

fn listed<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let names = Vec::deserialize(deserializer)?;
    if names.is_empty() {
        return Err(serde::de::Error::custom("collections names none; leave it out if the token is for all"));
    }
    Ok(Some(names))
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(hash: &blake3::Hash, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hash.to_hex())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<blake3::Hash, D::Error> {
        let text = String::deserialize(deserializer)?;
        blake3::Hash::from_hex(text.trim()).map_err(|_| {
            serde::de::Error::custom("hash is not 64 hex digits; `e2llm tokens new` prints the entry of a new token")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.yaml");
        std::fs::write(&path, text).unwrap();
        (directory, path)
    }

    #[test]
    fn a_new_token_is_found_by_its_secret_and_by_nothing_else() {
        let token = NewToken::generate("ci", Role::Write, Some(vec!["reports".into()]), Some(60)).unwrap();
        let text = serde_yaml_ng::to_string(&File { tokens: vec![token.entry] }).unwrap();
        assert!(!text.contains(&token.secret), "the file has no secret: {text}");
        let (_directory, path) = written(&text);
        let tokens = Tokens::load(&path).unwrap();
        let found = tokens.find(&token.secret).unwrap();
        assert_eq!((found.name.as_str(), found.role), ("ci", Role::Write));
        assert!(found.allows("reports") && !found.allows("default"));
        assert!(tokens.find(&token.secret[..token.secret.len() - 1]).is_none());
        assert!(tokens.find("").is_none());
    }

    #[test]
    fn a_bad_file_is_refused_with_its_reason() {
        let hash = "a".repeat(64);
        let entry = |rest: &str| format!("tokens:\n- name: a\n  hash: {hash}\n  role: read\n{rest}");
        for (text, reason) in [
            (entry("  rôle: write\n"), "unknown field"),
            (entry("- name: b\n  hash: xyz\n  role: read\n"), "64 hex digits"),
            (entry(&format!("- name: a\n  hash: {hash}\n  role: admin\n")), "two tokens are called"),
            (entry("  requests_per_minute: 0\n"), "0 requests"),
            (entry("  collections:\n"), "collections names none"),
            ("tokens: 1".to_owned(), "invalid type"),
        ] {
            let (_directory, path) = written(&text);
            let error = Tokens::load(&path).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("tokens.yaml"), "{error}");
        }
    }
}
