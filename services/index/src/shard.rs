//! Which index a document belongs to, where there are several.

use std::fmt;

use crate::{DEFAULT_SHARD, IndexError};

/// One of the shards of a store's index.
///
/// A document's shard follows from the hash of its collection and id, so everybody agrees without asking; each shard has its own sequence of
/// manifests. The number of shards is part of a shard's name: manifests of another number are another index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: u32,
    of: u32,
}

/// More than that many clients could not be asked at once for a page.
const MOST: u32 = 1024;

impl Shard {
    /// The index of a store that has one.
    pub const WHOLE: Self = Self { number: 0, of: 1 };

    /// Number `number`, from 0, of `of`.
    ///
    /// # Errors
    /// When there is no such shard.
    pub fn new(number: u32, of: u32) -> Result<Self, IndexError> {
        if of == 0 || of > MOST || number >= of {
            return Err(IndexError::invalid(format!(
                "shard {number} of {of} cannot be; there may be 1 to {MOST}, numbered from 0"
            )));
        }
        Ok(Self { number, of })
    }

    /// Name of its log in the store.
    pub fn log(self) -> String {
        if self.of == 1 { DEFAULT_SHARD.to_owned() } else { format!("{}-of-{}", self.number, self.of) }
    }

    /// Refuses a document of another shard: who sent it has the addresses in another order, or not all of them.
    pub(crate) fn check(self, collection: &str, doc_id: &str) -> Result<(), IndexError> {
        let owner = shard_of(collection, doc_id, self.of as usize);
        if owner == self.number as usize {
            return Ok(());
        }
        let message = format!(
            "document {doc_id:?} of collection {collection:?} belongs to shard {owner}, this is shard {self}; give all addresses of \
             the index, in the order of their numbers"
        );
        Err(IndexError::invalid(message))
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.number, self.of)
    }
}

/// The shard of a document, of `shards`.
pub(crate) fn shard_of(collection: &str, doc_id: &str, shards: usize) -> usize {
    let hash = blake3::hash([collection, doc_id].join("\0").as_bytes());
    let first = hash.as_bytes().first_chunk::<8>().copied().unwrap_or_default();
    (u64::from_le_bytes(first) % shards.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_spread_evenly_and_stay_where_they_are() {
        let mut counts = [0; 4];
        (0..4000).for_each(|number| counts[shard_of("c", &format!("d{number}"), 4)] += 1);
        assert!(counts.iter().all(|count| (900..1100).contains(count)), "{counts:?}");
        // Part of the layout of stores: must never change.
        assert_eq!(["a", "b", "c", "d"].map(|id| shard_of("default", id, 4)), [0, 3, 2, 2]);
    }

    #[test]
    fn a_shard_has_a_name_and_refuses_what_is_not_its_own() {
        assert_eq!(Shard::WHOLE.log(), "main");
        let shard = Shard::new(0, 4).unwrap();
        assert_eq!(shard.log(), "0-of-4");
        assert!(shard.check("default", "a").is_ok());
        let error = shard.check("default", "b").unwrap_err().to_string();
        assert!(error.contains("shard 3") && error.contains("0 of 4"), "{error}");
        assert!(Shard::new(4, 4).is_err() && Shard::new(0, 0).is_err());
    }
}
