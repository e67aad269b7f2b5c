//! The one entry that says what all the others should be.

use e2llm_store::manifest::{Checksum, Position};

/// Layout of keys and values. A view of another schema is rebuilt, never converted.
const SCHEMA: u32 = 1;

/// Whose records a view holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    /// Id of the store.
    pub(crate) store_id: String,
    /// Name of the shard.
    pub(crate) shard: String,
}

/// State of the view, written in the same batch as the records it speaks of.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Meta {
    #[prost(uint32, tag = "1")]
    schema: u32,
    #[prost(string, tag = "2")]
    store_id: String,
    #[prost(string, tag = "3")]
    shard: String,
    #[prost(uint64, tag = "4")]
    applied_manifest: u64,
    #[prost(bytes = "vec", tag = "5")]
    applied_checksum: Vec<u8>,
    #[prost(uint64, tag = "6")]
    records: u64,
    /// Sum of the entries' hashes, as four wrapping lanes.
    #[prost(fixed64, repeated, tag = "7")]
    digest: Vec<u64>,
}

impl Meta {
    pub(super) fn new(owner: &Owner) -> Self {
        let (store_id, shard) = (owner.store_id.clone(), owner.shard.clone());
        Self { schema: SCHEMA, store_id, shard, digest: vec![0; 4], ..Self::default() }
    }

    pub(super) fn position(&self) -> Position {
        let checksum = Checksum::try_from(self.applied_checksum.as_slice()).unwrap_or_default();
        Position { number: self.applied_manifest, checksum }
    }

    pub(super) fn set_position(&mut self, position: Position) {
        self.applied_manifest = position.number;
        self.applied_checksum = position.checksum.as_bytes().to_vec();
    }

    /// An entry is there.
    pub(super) fn count(&mut self, key: &[u8], value: &[u8]) {
        self.records = self.records.wrapping_add(1);
        for (lane, hash) in self.digest.iter_mut().zip(lanes(key, value)) {
            *lane = lane.wrapping_add(hash);
        }
    }

    /// An entry is no longer there.
    pub(super) fn forget(&mut self, key: &[u8], value: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        for (lane, hash) in self.digest.iter_mut().zip(lanes(key, value)) {
            *lane = lane.wrapping_sub(hash);
        }
    }

    pub(super) fn check_owner(&self, owner: &Owner) -> Result<(), String> {
        if self.schema != SCHEMA {
            return Err(format!("it has schema {} instead of {SCHEMA}", self.schema));
        }
        if self.store_id != owner.store_id || self.shard != owner.shard {
            return Err(format!("it belongs to shard {:?} of store {:?}", self.shard, self.store_id));
        }
        Ok(())
    }

    pub(super) fn check_contents(&self, seen: &Meta) -> Result<(), String> {
        if seen.records != self.records {
            return Err(format!("it has {} records instead of {}", seen.records, self.records));
        }
        if seen.digest != self.digest {
            return Err("its records are not those that were written".to_owned());
        }
        Ok(())
    }
}

fn lanes(key: &[u8], value: &[u8]) -> [u64; 4] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(value);
    let hash = hasher.finalize();
    let mut lanes = [0; 4];
    for (lane, bytes) in lanes.iter_mut().zip(hash.as_bytes().as_chunks::<8>().0) {
        *lane = u64::from_le_bytes(*bytes);
    }
    lanes
}
