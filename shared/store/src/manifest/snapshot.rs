//! Snapshots: all records as of one manifest, in parts, made complete by a head written last.

use bytes::Bytes;
use e2llm_api::v1;

use super::{Checksum, ManifestError, ManifestLog, Position, fresh_id, seal};
use crate::Created;

/// A complete, verified head of a snapshot. Its parts are read one by one with [`ManifestLog::read_part`].
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The manifest up to which it reaches.
    pub position: Position,
    /// Number of records in all parts.
    pub records: u64,
    parts: Vec<v1::PartRef>,
}

impl Snapshot {
    /// How many parts it has.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }
}

/// Writes a snapshot: parts in any number, then [`finish`](Self::finish). Dropped before that, it leaves parts that
/// the next [`ManifestLog::prune_snapshots`] removes.
#[derive(Debug)]
pub struct SnapshotWriter {
    log: ManifestLog,
    position: Position,
    nonce: String,
    parts: Vec<v1::PartRef>,
    records: u64,
}

impl SnapshotWriter {
    /// Writes some records, versions set.
    pub async fn part(&mut self, records: Vec<v1::DocRecord>) -> Result<(), ManifestError> {
        let name = format!("{}-{:06}", self.nonce, self.parts.len());
        let path = self.log.snapshot_path(self.position.number, &name);
        self.records += records.len() as u64;
        let (bytes, checksum) = seal::seal(&v1::SnapshotPart { records });
        let _created = self.log.store.create(&path, Bytes::from(bytes)).await?;
        self.parts.push(v1::PartRef { name, checksum: checksum.as_bytes().to_vec() });
        Ok(())
    }

    /// Makes the snapshot complete. `Exists` means that another writer was first with the same manifest.
    pub async fn finish(self) -> Result<Created, ManifestError> {
        let head = v1::SnapshotHead {
            store_id: self.log.store.id().to_owned(),
            shard: self.log.shard.clone(),
            number: self.position.number,
            manifest: self.position.checksum.as_bytes().to_vec(),
            parts: self.parts,
            records: self.records,
        };
        let path = self.log.snapshot_path(self.position.number, HEAD);
        Ok(self.log.store.create(&path, Bytes::from(seal::seal(&head).0)).await?)
    }
}

const HEAD: &str = "head";

impl ManifestLog {
    fn snapshots_prefix(&self) -> String {
        format!("index/{}/snapshots", self.shard)
    }

    /// Path of the object `name` of the snapshot at manifest `number`; its head is named `head`.
    pub fn snapshot_path(&self, number: u64, name: &str) -> String {
        format!("{}/{number:020}/{name}", self.snapshots_prefix())
    }

    /// Starts a snapshot of the records as of `position`.
    pub fn snapshot_writer(&self, position: Position) -> SnapshotWriter {
        SnapshotWriter { log: self.clone(), position, nonce: fresh_id(), parts: Vec::new(), records: 0 }
    }

    /// Manifest numbers of the complete snapshots, ascending.
    pub async fn snapshots(&self) -> Result<Vec<u64>, ManifestError> {
        let objects = self.snapshot_objects().await?;
        let heads = objects.iter().filter(|(_, path)| path.ends_with(&format!("/{HEAD}")));
        let mut numbers: Vec<u64> = heads.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Reads and verifies the head of the snapshot at manifest `number`; `None` if there is none.
    pub async fn read_snapshot(&self, number: u64) -> Result<Option<Snapshot>, ManifestError> {
        let path = self.snapshot_path(number, HEAD);
        let Some(bytes) = self.store.get(&path).await? else { return Ok(None) };
        let (head, _) = seal::open::<v1::SnapshotHead>(&path, &bytes)?;
        self.check_owner(&path, &head.store_id, &head.shard)?;
        let checksum = Checksum::try_from(head.manifest.as_slice());
        let (true, Ok(checksum)) = (head.number == number, checksum) else {
            return Err(ManifestError::corrupt(&path, format!("says it is number {}", head.number)));
        };
        let position = Position { number, checksum };
        Ok(Some(Snapshot { position, records: head.records, parts: head.parts }))
    }

    /// Reads and verifies part `index` of a snapshot.
    pub async fn read_part(&self, snapshot: &Snapshot, index: usize) -> Result<Vec<v1::DocRecord>, ManifestError> {
        let number = snapshot.position.number;
        let Some(part) = snapshot.parts.get(index) else { return Ok(Vec::new()) };
        let path = self.snapshot_path(number, &part.name);
        let bytes = self.store.get(&path).await?;
        let bytes = bytes.ok_or_else(|| self.missing_part(&path, number))?;
        let (body, checksum) = seal::open::<v1::SnapshotPart>(&path, &bytes)?;
        if checksum.as_bytes() != part.checksum.as_slice() {
            return Err(ManifestError::corrupt(&path, "is not the part its snapshot's head names"));
        }
        Ok(body.records)
    }

    /// Removes the snapshot at manifest `number`, head first.
    pub async fn delete_snapshot(&self, number: u64) -> Result<(), ManifestError> {
        self.store.delete(&self.snapshot_path(number, HEAD)).await?;
        for (other, path) in self.snapshot_objects().await? {
            if other == number {
                self.store.delete(&path).await?;
            }
        }
        Ok(())
    }

    /// Removes all but the newest `keep` complete snapshots, and parts older than those that never got a head.
    pub async fn prune_snapshots(&self, keep: usize) -> Result<(), ManifestError> {
        let complete = self.snapshots().await?;
        let Some(&oldest_kept) = complete.iter().rev().take(keep).next_back() else { return Ok(()) };
        let mut old = self.snapshot_objects().await?;
        old.retain(|(number, _)| *number < oldest_kept);
        // heads first: a snapshot without its head is not there, one without a part is corrupt
        old.sort_by_key(|(_, path)| !path.ends_with(HEAD));
        for (_, path) in old {
            self.store.delete(&path).await?;
        }
        Ok(())
    }

    fn missing_part(&self, path: &str, number: u64) -> ManifestError {
        let later = self.snapshot_path(number, HEAD);
        ManifestError::Missing { object: path.to_owned(), later }
    }

    async fn snapshot_objects(&self) -> Result<Vec<(u64, String)>, ManifestError> {
        let paths = self.store.list(&self.snapshots_prefix()).await?;
        let numbered = paths.into_iter().filter_map(|path| {
            let number = path.rsplit('/').nth(1)?.parse().ok()?;
            Some((number, path))
        });
        Ok(numbered.collect())
    }
}
