//! The log of record changes: numbered, create-only manifests, and snapshots that shorten their replay.
//!
//! A [`ManifestLog`] belongs to one shard of one store. Manifest `n` is the object
//! `index/<shard>/manifests/<%020d of n>`; numbers start at 1 and have no gaps. Each carries the checksum of the
//! one before it, so that a [`Position`] (number and checksum) names one history and no other.
//!
//! **Appending** is one create-only put of the next number. If that number is taken, the object is read back:
//! it is either our own (the answer to an earlier put was lost) or another writer's, whose changes the caller
//! applies before it tries the next number. Nobody's changes are lost and nobody waits for a lock.
//!
//! **Reading** verifies: checksum, canonical encoding, store id, shard and number. A manifest that fails is an
//! error with the object's name, never skipped, and never moved away either: a hole in the log would be worse.
//!
//! **Snapshots** are derived from manifests and may be deleted at any time.

mod error;
pub(crate) mod seal;
mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use bytes::Bytes;
use e2llm_api::v1;
use futures::{Stream, StreamExt};

use crate::{Created, Store};

pub use error::ManifestError;
pub use seal::Checksum;
pub use snapshot::{Snapshot, SnapshotWriter};

/// How many manifests a replay fetches at once.
const READ_AHEAD: usize = 16;

/// The manifests and snapshots of one shard. Cheap to clone; clones are the same writer.
#[derive(Debug, Clone)]
pub struct ManifestLog {
    store: Store,
    shard: String,
    writer_id: String,
}

/// A point in the log: a manifest number and that manifest's checksum. The default is the start, before number 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Number of the last manifest included.
    pub number: u64,
    /// Its checksum.
    pub checksum: Checksum,
}

/// One verified manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Its own number and checksum.
    pub position: Position,
    /// Checksum of the manifest before it.
    pub previous: Checksum,
    /// The changes, in the order in which they take effect.
    pub changes: Vec<Change>,
    /// Size of the object.
    pub bytes: u64,
    author: Author,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Author {
    writer_id: String,
    nonce: String,
}

/// One change of the records.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Store this record in place of one with the same collection, document and fingerprint.
    Put(v1::DocRecord),
    /// Remove all records of a document.
    Delete {
        /// The document's collection.
        collection: String,
        /// The document's id.
        doc_id: String,
    },
    /// Keep this summary with its record, if the record is there and has the text that was summarised.
    Summary(v1::SummaryOf),
    /// Nothing is committed after this: the documents belong to an index of so many shards; 0: this log is not complete yet. A
    /// manifest that ends otherwise opens the log again.
    HandOver {
        /// Number of shards.
        shards: u32,
    },
}

/// What became of an append.
#[derive(Debug)]
pub enum Append {
    /// The changes are durable as this manifest.
    Mine(Manifest),
    /// Another writer was first. Apply this manifest, then append after it.
    Theirs(Manifest),
}

/// Decodes as far as can be done without knowing whose it is.
#[cfg(fuzzing)]
pub(crate) fn decode(bytes: &[u8]) {
    use prost::Message;
    drop(seal::open::<v1::Manifest>("fuzz", bytes));
    if let Ok(body) = v1::Manifest::decode(bytes) {
        drop(body.deltas.into_iter().map(Change::from_delta).collect::<Option<Vec<_>>>());
    }
}

impl Manifest {
    /// How many shards the documents were handed over to with this manifest, if they were.
    pub fn hand_over(&self) -> Option<u32> {
        match self.changes.last() {
            Some(Change::HandOver { shards }) => Some(*shards),
            _ => None,
        }
    }
}

impl ManifestLog {
    /// The log of `shard` in `store`. Shard names are 1 to 64 of `a-z`, `0-9` and `-`.
    pub fn new(store: Store, shard: &str) -> Result<Self, ManifestError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if shard.is_empty() || shard.len() > 64 || !shard.chars().all(allowed) {
            return Err(ManifestError::ShardName(shard.chars().take(80).collect()));
        }
        Ok(Self { store, shard: shard.to_owned(), writer_id: fresh_id() })
    }

    /// The store the log lives in.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The shard's name.
    pub fn shard(&self) -> &str {
        &self.shard
    }

    /// Path of manifest `number`.
    pub fn path(&self, number: u64) -> String {
        format!("{}/{number:020}", self.manifests())
    }

    fn manifests(&self) -> String {
        format!("index/{}/manifests", self.shard)
    }

    /// The numbers of all manifests present. A complete log holds 1 to its greatest number.
    pub async fn numbers(&self) -> Result<BTreeSet<u64>, ManifestError> {
        let prefix = self.manifests();
        let paths = self.store.list(&prefix).await?;
        Ok(paths.iter().filter_map(|path| path.rsplit('/').next()?.parse().ok()).collect())
    }

    /// The last manifest; `None` of an empty log.
    pub async fn last(&self) -> Result<Option<Manifest>, ManifestError> {
        match self.numbers().await?.last() {
            Some(number) => self.read(*number).await,
            None => Ok(None),
        }
    }

    /// Reads and verifies manifest `number`; `None` if the log has no such number.
    pub async fn read(&self, number: u64) -> Result<Option<Manifest>, ManifestError> {
        let path = self.path(number);
        let Some(bytes) = self.store.get(&path).await? else { return Ok(None) };
        self.decode(number, &path, &bytes).map(Some)
    }

    /// The manifests after `from` up to number `to`, in order, each checked to follow the one before it.
    ///
    /// The stream ends after its first error. A missing manifest is an error with its name.
    pub fn replay(&self, from: Position, to: u64) -> impl Stream<Item = Result<Manifest, ManifestError>> + Send + '_ {
        let reads = futures::stream::iter(from.number + 1..=to)
            .map(move |number| async move { self.read(number).await?.ok_or_else(|| self.missing(number, to)) })
            .buffered(READ_AHEAD);
        let state = (Box::pin(reads), Some(from));
        futures::stream::unfold(state, move |(mut reads, last)| async move {
            // after an error there is nothing to check against
            let last = last?;
            let checked =
                reads.next().await?.and_then(|manifest| self.check_follows(last, &manifest).map(|()| manifest));
            let last = checked.as_ref().ok().map(|manifest| manifest.position);
            Some((checked, (reads, last)))
        })
    }

    /// Tries to make `changes` durable as the manifest after `last`. One attempt.
    pub async fn append(&self, last: Position, changes: &[Change]) -> Result<Append, ManifestError> {
        let number = last.number + 1;
        let author = Author { writer_id: self.writer_id.clone(), nonce: fresh_id() };
        let body = v1::Manifest {
            store_id: self.store.id().to_owned(),
            shard: self.shard.clone(),
            number,
            writer_id: author.writer_id.clone(),
            nonce: author.nonce.clone(),
            previous: last.checksum.as_bytes().to_vec(),
            deltas: changes.iter().cloned().map(Change::into_delta).collect(),
        };
        let (bytes, checksum) = seal::seal(&body);
        let path = self.path(number);
        let mine = Manifest {
            position: Position { number, checksum },
            previous: last.checksum,
            changes: changes.to_vec(),
            bytes: bytes.len() as u64,
            author,
        };
        if matches!(self.store.create(&path, Bytes::from(bytes)).await?, Created::New) {
            return Ok(Append::Mine(mine));
        }
        let stored = self.read(number).await?.ok_or_else(|| self.missing(number, number))?;
        self.check_follows(last, &stored)?;
        Ok(if stored.author == mine.author { Append::Mine(mine) } else { Append::Theirs(stored) })
    }

    /// Fails if `manifest` is not the one right after `last` in the same history.
    pub fn check_follows(&self, last: Position, manifest: &Manifest) -> Result<(), ManifestError> {
        if manifest.position.number == last.number + 1 && manifest.previous == last.checksum {
            return Ok(());
        }
        let problem = format!("does not follow manifest {} ({})", last.number, last.checksum);
        Err(ManifestError::corrupt(&self.path(manifest.position.number), problem))
    }

    /// The error for a manifest that is not there though `later` exists.
    pub fn missing(&self, number: u64, later: u64) -> ManifestError {
        ManifestError::Missing { object: self.path(number), later: self.path(later) }
    }

    fn decode(&self, number: u64, path: &str, bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let (body, checksum) = seal::open::<v1::Manifest>(path, bytes)?;
        self.check_owner(path, &body.store_id, &body.shard)?;
        if body.number != number {
            return Err(ManifestError::corrupt(path, format!("says it is number {}", body.number)));
        }
        let previous = Checksum::try_from(body.previous.as_slice())
            .map_err(|()| ManifestError::corrupt(path, "has no checksum of the manifest before it"))?;
        let changes = body.deltas.into_iter().map(Change::from_delta).collect::<Option<_>>();
        let changes = changes
            .ok_or_else(|| ManifestError::corrupt(path, "holds a change of a kind this version does not know"))?;
        Ok(Manifest {
            position: Position { number, checksum },
            previous,
            changes,
            bytes: bytes.len() as u64,
            author: Author { writer_id: body.writer_id, nonce: body.nonce },
        })
    }

    fn check_owner(&self, path: &str, store_id: &str, shard: &str) -> Result<(), ManifestError> {
        if store_id == self.store.id() && shard == self.shard {
            return Ok(());
        }
        Err(ManifestError::corrupt(path, format!("belongs to shard {shard:?} of store {store_id:?}")))
    }
}

impl Change {
    fn into_delta(self) -> v1::Delta {
        let change = match self {
            Change::Put(mut record) => {
                record.version = 0;
                v1::delta::Change::Put(record)
            }
            Change::Delete { collection, doc_id } => v1::delta::Change::Delete(v1::DocumentName { collection, doc_id }),
            Change::Summary(summary) => v1::delta::Change::Summary(summary),
            Change::HandOver { shards } => v1::delta::Change::HandOver(v1::HandOver { shards }),
        };
        v1::Delta { change: Some(change) }
    }

    fn from_delta(delta: v1::Delta) -> Option<Self> {
        Some(match delta.change? {
            v1::delta::Change::Put(record) => Change::Put(record),
            v1::delta::Change::Delete(name) => Change::Delete { collection: name.collection, doc_id: name.doc_id },
            v1::delta::Change::Summary(summary) => Change::Summary(summary),
            v1::delta::Change::HandOver(v1::HandOver { shards }) => Change::HandOver { shards },
        })
    }
}

fn fresh_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
