//! `store.json`: which store this is, and whether this program may use it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::names::ContentHash;

/// The layout this program reads and writes.
pub const LAYOUT_VERSION: u32 = 1;

/// Path of the identity in every store.
pub(crate) const STORE_FILE: &str = "store.json";

const FORMAT: &str = "e2llm-store";

/// Far more than a `store.json` needs: a foreign file of that name is not read into memory.
const MAX_BYTES: usize = 64 << 10;

/// The contents of `store.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    format: String,
    layout: u32,
    /// Random; the index compares it before it trusts its own files.
    pub(crate) id: String,
    /// Hash of the other fields: a damaged id must not pass for another store.
    check: String,
}

impl Identity {
    /// A new random identity.
    pub(crate) fn random() -> Self {
        Self::with(LAYOUT_VERSION, uuid::Uuid::new_v4().simple().to_string())
    }

    fn with(layout: u32, id: String) -> Self {
        let check = check(layout, &id);
        Self { format: FORMAT.to_owned(), layout, id, check }
    }

    /// The bytes of `store.json`.
    pub(crate) fn to_bytes(&self) -> Result<Bytes> {
        let mut json =
            serde_json::to_vec_pretty(self).map_err(|error| StoreError::Internal(format!("{STORE_FILE}: {error}")))?;
        json.push(b'\n');
        Ok(json.into())
    }

    /// Reads `store.json` of the store at `url`.
    pub(crate) fn parse(url: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = |reason: String| StoreError::WrongStore { url: url.to_owned(), reason };
        if bytes.len() > MAX_BYTES {
            return Err(wrong(format!("its {STORE_FILE} was not written by e2llm; choose another store")));
        }
        let identity = Self::deserialize_checked(bytes).map_err(wrong)?;
        if identity.to_bytes()? != bytes {
            return Err(wrong(damaged("has bytes that do not belong to it")));
        }
        Ok(identity)
    }

    fn deserialize_checked(bytes: &[u8]) -> Result<Self, String> {
        let json: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| damaged(&format!("is not JSON ({error})")))?;
        if json.get("format").and_then(|f| f.as_str()) != Some(FORMAT) {
            return Err(format!("its {STORE_FILE} was not written by e2llm; choose another store"));
        }
        match json.get("layout").and_then(serde_json::Value::as_u64) {
            Some(layout) if layout == u64::from(LAYOUT_VERSION) => {}
            Some(layout) => {
                return Err(format!(
                    "it has layout {layout} and this program knows layout {LAYOUT_VERSION}; \
                     use the e2llm version that wrote it, or another store"
                ));
            }
            None => return Err(damaged("names no layout")),
        }
        let identity: Self = serde_json::from_value(json).map_err(|error| damaged(&error.to_string()))?;
        if identity.check != check(identity.layout, &identity.id) {
            return Err(damaged("does not match its check value"));
        }
        Ok(identity)
    }
}

fn check(layout: u32, id: &str) -> String {
    ContentHash::of(format!("{FORMAT} {layout} {id}").as_bytes()).as_str()[..16].to_owned()
}

fn damaged(problem: &str) -> String {
    format!("its {STORE_FILE} {problem}; restore the file from a backup")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(bytes: &[u8]) -> String {
        match Identity::parse("memory://", bytes) {
            Err(StoreError::WrongStore { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_identity_survives_storage() {
        let identity = Identity::random();
        assert_eq!(Identity::parse("memory://", &identity.to_bytes().unwrap()), Ok(identity));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = Identity::random().to_bytes().unwrap().to_vec();
        for position in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[position] ^= 1 << bit;
                assert!(Identity::parse("memory://", &bad).is_err(), "byte {position}, bit {bit}");
            }
        }
    }

    #[test]
    fn another_layout_names_both_versions() {
        let bytes = Identity::with(7, "x".into()).to_bytes().unwrap();
        assert!(reason(&bytes).contains("layout 7 and this program knows layout 1"), "{}", reason(&bytes));
    }

    #[test]
    fn files_of_other_programs_are_told_from_damaged_ones() {
        assert!(reason(b"{\"name\":\"shop\"}").contains("not written by e2llm"));
        assert!(reason(&vec![b' '; 1 << 20]).contains("not written by e2llm"));
        assert!(reason(b"").contains("is not JSON"));
        assert!(reason(b"{\"format\":\"e2llm-st").contains("restore the file"));
    }
}
