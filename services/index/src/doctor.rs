//! Compares the view with the log, and says what is damaged and what helps.

use std::collections::BTreeSet;
use std::fmt;

use e2llm_store::manifest::{ManifestError, ManifestLog, Position};
use e2llm_store::{BlobName, ContentHash};
use futures::{StreamExt, TryStreamExt};

use crate::IndexError;
use crate::doc_index::{DocIndex, ListQuery, RecordKey};
use crate::live::Live;
use crate::memory_index::MemoryIndex;
use crate::opening::{Extent, for_each_part};

/// Manifests fetched at once.
const READ_AHEAD: usize = 16;

/// Records compared at once, in bytes.
const PAGE_BYTES: usize = 8 << 20;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// Path of the object, or `collection/document/fingerprint` of the record.
    pub name: String,
    /// What is wrong, and the remedy, in one line.
    pub message: String,
}

/// Kinds of findings, with their remedies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// A manifest is corrupt or missing, and a snapshot covers it: no record depends on it any more.
    ManifestCovered,
    /// A manifest is corrupt or missing, and only the view still has its changes: write a snapshot.
    ManifestAtRisk,
    /// A manifest is corrupt or missing, and nothing has its changes: restore it from a copy of the store.
    ManifestLost,
    /// A snapshot cannot be read. It is derived: repair moves the corrupt object to quarantine and deletes the rest.
    Snapshot,
    /// A record of the view is missing, different or one too many: rebuild the view.
    Record,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Finding {
    fn manifest(kind: FindingKind, name: String, error: &ManifestError) -> Self {
        let note = match kind {
            FindingKind::ManifestCovered => "a snapshot covers it",
            FindingKind::ManifestAtRisk => "the view still has its changes, repair writes a snapshot",
            _ => "its changes are lost unless it is restored",
        };
        Self { kind, name, message: format!("{error} ({note})") }
    }

    fn snapshot(head: String, error: &ManifestError) -> Self {
        let name = match error {
            ManifestError::Corrupt { object, .. } => object.clone(),
            _ => head,
        };
        let message = format!("{error} (snapshots are derived, repair sets it aside)");
        Self { kind: FindingKind::Snapshot, name, message }
    }

    fn record(key: &RecordKey, problem: &str) -> Self {
        let name = format!("{}/{}/{}", key.collection, key.doc_id, key.fingerprint);
        let message = format!("record {name} {problem}; repair rebuilds the index");
        Self { kind: FindingKind::Record, name, message }
    }
}

/// Everything live records refer to: what garbage collection must keep.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct References {
    /// Soft-prompt blobs.
    pub blobs: BTreeSet<BlobName>,
    /// Texts, of records that keep theirs.
    pub texts: BTreeSet<ContentHash>,
}

/// Reads the whole log and compares what it says with the view. The view must not change meanwhile.
pub(crate) async fn verify(log: &ManifestLog, live: &Live) -> Result<Vec<Finding>, IndexError> {
    let extent = Extent::of(log).await?;
    let damaged = damaged_manifests(log, &extent).await?;
    let (sound, mut findings) = check_snapshots(log, &extent).await?;
    let covered = sound.last().copied().unwrap_or(0);
    let applied = live.position().number;
    for (number, error) in &damaged {
        let kind = match *number {
            n if n <= covered => FindingKind::ManifestCovered,
            n if n <= applied => FindingKind::ManifestAtRisk,
            _ => FindingKind::ManifestLost,
        };
        findings.push(Finding::manifest(kind, log.path(*number), error));
    }
    let last_damage = damaged.iter().map(|(n, _)| *n).filter(|n| *n <= applied).max();
    let start = sound.iter().copied().filter(|n| *n <= applied).rfind(|n| Some(*n) >= last_damage);
    match (last_damage, start) {
        (None, _) => findings.extend(compare(live, &replayed(log, 0, applied).await?)?),
        (Some(_), Some(start)) => findings.extend(compare(live, &replayed(log, start, applied).await?)?),
        // nothing to compare with: the findings above say so
        (Some(_), None) => {}
    }
    Ok(findings)
}

/// Fails, by object name, if the log alone could not give a complete view.
pub(crate) async fn check_rebuildable(log: &ManifestLog) -> Result<(), IndexError> {
    let extent = Extent::of(log).await?;
    let (sound, _) = check_snapshots(log, &extent).await?;
    let from = match sound.last() {
        Some(number) => log.read_snapshot(*number).await?.map_or(Position::default(), |s| s.position),
        None => Position::default(),
    };
    let mut manifests = Box::pin(log.replay(from, extent.head()));
    while manifests.try_next().await?.is_some() {}
    Ok(())
}

/// The manifests up to the head that are missing, corrupt or do not follow the one before.
async fn damaged_manifests(log: &ManifestLog, extent: &Extent) -> Result<Vec<(u64, ManifestError)>, IndexError> {
    let reads = futures::stream::iter(1..=extent.head())
        .map(|number| async move { (number, log.read(number).await) })
        .buffered(READ_AHEAD);
    let mut reads = Box::pin(reads);
    let mut damaged = Vec::new();
    let mut last = Some(Position::default());
    while let Some((number, read)) = reads.next().await {
        let manifest = match read {
            Ok(Some(manifest)) => manifest,
            Ok(None) => {
                damaged.push((number, log.missing(number, extent.head())));
                last = None;
                continue;
            }
            Err(error) if error.is_damage() => {
                damaged.push((number, error));
                last = None;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if let Some(Err(error)) = last.map(|last| log.check_follows(last, &manifest)) {
            damaged.push((number, error));
        }
        last = Some(manifest.position);
    }
    Ok(damaged)
}

/// Numbers of the snapshots that can be read in full, and findings for the others.
async fn check_snapshots(log: &ManifestLog, extent: &Extent) -> Result<(Vec<u64>, Vec<Finding>), IndexError> {
    let (mut sound, mut findings) = (Vec::new(), Vec::new());
    for number in &extent.snapshots {
        match read_snapshot(log, *number, &MemoryIndex::default()).await {
            Ok(()) => sound.push(*number),
            Err(IndexError::Log(error)) if error.is_damage() => {
                findings.push(Finding::snapshot(log.snapshot_path(*number, "head"), &error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((sound, findings))
}

async fn read_snapshot(log: &ManifestLog, number: u64, into: &MemoryIndex) -> Result<(), IndexError> {
    let Some(snapshot) = log.read_snapshot(number).await? else { return Ok(()) };
    for_each_part(log, &snapshot, |records| std::future::ready(into.load(records))).await?;
    into.finish_load(snapshot.position)
}

/// The records as of manifest `to`, from the snapshot at `start` (0: none) and the manifests after it.
async fn replayed(log: &ManifestLog, start: u64, to: u64) -> Result<MemoryIndex, IndexError> {
    let index = MemoryIndex::default();
    if start > 0 {
        read_snapshot(log, start, &index).await?;
    }
    let mut manifests = Box::pin(log.replay(index.position(), to));
    while let Some(manifest) = manifests.try_next().await? {
        index.apply(&manifest)?;
    }
    Ok(index)
}

fn compare(live: &Live, expected: &MemoryIndex) -> Result<Vec<Finding>, IndexError> {
    let mut findings = Vec::new();
    for_each_record(live.index(), |key, record| {
        match expected.get(&key)? {
            None => findings.push(Finding::record(&key, "is in the index but not in the log")),
            Some(other) if other != record => {
                findings.push(Finding::record(&key, "differs from what the log says"));
            }
            Some(_) => {}
        }
        Ok(())
    })?;
    for_each_record(expected, |key, _| {
        if live.index().get(&key)?.is_none() {
            findings.push(Finding::record(&key, "is in the log but not in the index"));
        }
        Ok(())
    })?;
    Ok(findings)
}

/// Reads all records of the view for what they refer to.
pub(crate) fn referenced(live: &Live) -> Result<References, IndexError> {
    let mut references = References::default();
    for_each_record(live.index(), |_, record| {
        for segment in &record.segments {
            references.blobs.insert(BlobName::new(&segment.input_key, &segment.content_hash)?);
        }
        if record.text_stored {
            references.texts.insert(ContentHash::parse(&record.text_hash)?);
        }
        Ok(())
    })?;
    Ok(references)
}

fn for_each_record(
    index: &dyn DocIndex,
    mut each: impl FnMut(RecordKey, e2llm_api::v1::DocRecord) -> Result<(), IndexError>,
) -> Result<(), IndexError> {
    let mut query = ListQuery { limit: usize::MAX, max_bytes: PAGE_BYTES, ..ListQuery::default() };
    loop {
        let page = index.list(&query)?;
        query.after = page.last.clone();
        for record in page.records {
            each(RecordKey::of(&record), record)?;
        }
        if !page.more {
            return Ok(());
        }
    }
}
