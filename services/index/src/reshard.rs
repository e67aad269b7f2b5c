//! From an index of some number of shards to one of another: a replay of the old logs into new ones.
//!
//! 1. Each new log is closed with a hand-over to nobody, so that no index opens a log that is not complete.
//! 2. Each old log is closed with a hand-over to the new number of shards. An index that still runs on it goes on answering and commits nothing
//!    any more: its next append finds that manifest.
//! 3. The records are read from views of the old logs and written to the new ones, each manifest with a hand-over to nobody.
//! 4. A manifest without changes opens each new log.
//!
//! It may be stopped at any point and run again: old logs that are closed do not change, and new logs that are closed are
//! emptied and written again. Logs of earlier generations are never deleted; documents that such a log still has are removed first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use e2llm_api::v1::{DocRecord, SummaryOf};
use e2llm_runtime::failpoint::reach;
use e2llm_store::Store;
use e2llm_store::manifest::{Append, Change, Manifest, ManifestLog, Position};
use prost::Message;
use tracing::info;

use crate::dir::IndexDir;
use crate::doc_index::{ListQuery, age};
use crate::live::{Live, blocking};
use crate::opening::{Extent, open_view};
use crate::shard::shard_of;
use crate::{IndexError, Shard};

/// Bytes of records that wait for their manifests, of all shards together.
const WAITING_BYTES: usize = 256 << 20;
/// Bytes and changes of one manifest, at most.
const BATCH_BYTES: usize = 8 << 20;
const BATCH_CHANGES: usize = 4096;
/// Bytes of records read at a time.
const PAGE_BYTES: usize = 8 << 20;

/// Ends a manifest of a log that is being written.
const INCOMPLETE: Change = Change::HandOver { shards: 0 };

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resharded {
    /// Records in the new shards.
    pub records: u64,
    /// Manifests they were written with.
    pub manifests: u64,
}

/// What a log says about who has its documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Empty,
    Open,
    HandedOver(u32),
}

/// Makes an index of `to` shards of the one of `from`, with views in `directory` that are deleted afterwards. `progress` is
/// called with the records moved so far.
///
/// Nothing is done if an earlier run has ended.
///
/// # Errors
/// When the store has no index of `from` shards, or already another of `to`; damage of a log; an unreachable store.
pub async fn reshard(
    store: &Store,
    directory: &Path,
    (from, to): (u32, u32),
    mut progress: impl FnMut(u64),
) -> Result<Resharded, IndexError> {
    let (old, new) = (logs(store, from)?, logs(store, to)?);
    if !is_due(&old, &new, to).await? {
        return Ok(Resharded::default());
    }
    let mut writers = Vec::new();
    for log in new {
        writers.push(Writer::begin(log, BATCH_BYTES.min(WAITING_BYTES / to as usize)).await?);
    }
    for log in &old {
        close(log, to).await?;
    }
    reach("index.handed_over");
    for (number, writer) in writers.iter_mut().enumerate() {
        writer.empty(&directory.join(format!("new-{number}"))).await?;
    }
    let mut done = Resharded::default();
    for (number, log) in old.iter().enumerate() {
        move_records(log, &directory.join(format!("old-{number}")), &mut writers, &mut done, &mut progress).await?;
    }
    for writer in &mut writers {
        writer.finish().await?;
        done.manifests += writer.manifests;
    }
    info!(from, to, records = done.records, "resharded");
    Ok(done)
}

fn logs(store: &Store, shards: u32) -> Result<Vec<ManifestLog>, IndexError> {
    let log = |number| Ok(ManifestLog::new(store.clone(), &Shard::new(number, shards)?.log())?);
    (0..shards.max(1)).map(log).collect()
}

impl State {
    fn after(last: Option<&Manifest>) -> Self {
        match last {
            None => Self::Empty,
            Some(manifest) => manifest.hand_over().map_or(Self::Open, Self::HandedOver),
        }
    }
}

async fn state(log: &ManifestLog) -> Result<State, IndexError> {
    Ok(State::after(log.last().await?.as_ref()))
}

/// Whether there is something to do. Refuses what would lose documents or mix two indexes.
async fn is_due(old: &[ManifestLog], new: &[ManifestLog], to: u32) -> Result<bool, IndexError> {
    let (from, mut is_begun, mut is_empty) = (old.len(), false, true);
    if from == new.len() {
        return Err(IndexError::invalid(format!("the index would have {to} shards as before; give another number")));
    }
    for log in old {
        match state(log).await? {
            State::HandedOver(shards) if shards == to => is_begun = true,
            State::HandedOver(shards) => return Err(IndexError::HandedOver { shards }),
            State::Open => is_empty = false,
            State::Empty => {}
        }
    }
    if is_empty && !is_begun {
        return Err(IndexError::invalid(format!("the store has no index of {from} shards; check the number")));
    }
    let mut open = 0;
    for log in new {
        match state(log).await? {
            State::Open => open += 1,
            // What was begun closed all new logs before it closed an old one.
            State::HandedOver(0) => {}
            State::Empty if !is_begun => {}
            State::HandedOver(_) if !is_begun => {}
            State::Empty => return Err(IndexError::invalid(format!("{} is gone; restore it", log.path(1)))),
            State::HandedOver(shards) => return Err(IndexError::HandedOver { shards }),
        }
    }
    if open > 0 && !is_begun {
        return Err(IndexError::invalid(format!(
            "the store has another index of {to} shards, which is not made from that of {from}; give another number"
        )));
    }
    Ok(open < new.len())
}

/// Ends an old log, whoever else writes to it.
async fn close(log: &ManifestLog, to: u32) -> Result<(), IndexError> {
    let mut last = log.last().await?;
    loop {
        match last.as_ref().and_then(Manifest::hand_over) {
            Some(shards) if shards == to => return Ok(()),
            Some(shards) => return Err(IndexError::HandedOver { shards }),
            None => {}
        }
        let position = last.map_or(Position::default(), |last| last.position);
        match log.append(position, &[Change::HandOver { shards: to }]).await? {
            Append::Mine(_) => return Ok(()),
            Append::Theirs(theirs) => last = Some(theirs),
        }
    }
}

/// Writes the records of an old log to the new ones, those of one document from the oldest to the newest.
async fn move_records(
    log: &ManifestLog,
    directory: &Path,
    writers: &mut [Writer],
    done: &mut Resharded,
    progress: &mut impl FnMut(u64),
) -> Result<(), IndexError> {
    let view = View::open(log, directory).await?;
    let mut document: Vec<DocRecord> = Vec::new();
    let mut pages = view.pages();
    while let Some(page) = pages.next().await? {
        for record in page {
            let is_same = document.first().is_none_or(|first| name(first) == name(&record));
            if !is_same {
                move_document(std::mem::take(&mut document), writers, done).await?;
            }
            document.push(record);
        }
        progress(done.records);
    }
    move_document(document, writers, done).await?;
    progress(done.records);
    drop(pages);
    view.delete().await
}

fn name(record: &DocRecord) -> (&str, &str) {
    (&record.collection, &record.doc_id)
}

async fn move_document(
    mut records: Vec<DocRecord>,
    writers: &mut [Writer],
    done: &mut Resharded,
) -> Result<(), IndexError> {
    let Some(first) = records.first() else { return Ok(()) };
    let owner = shard_of(&first.collection, &first.doc_id, writers.len());
    done.records += records.len() as u64;
    let writer = &mut writers[owner];
    if writer.is_complete {
        return Ok(());
    }
    records.sort_by(|a, b| age(a).cmp(&age(b)));
    let mut before: Option<(u64, String)> = None;
    for record in records {
        // Which of a document's records is newest follows from their manifests; in one manifest, from these two.
        let own = (record.encoded_unix_ms, record.fingerprint.clone());
        if before.is_some_and(|before| before > own) {
            writer.flush().await?;
        }
        before = Some(own);
        writer.put(record).await?;
    }
    Ok(())
}

/// A view of a log for reading.
struct View {
    live: Arc<Live>,
    directory: PathBuf,
}

impl View {
    async fn open(log: &ManifestLog, directory: &Path) -> Result<Self, IndexError> {
        let directory = directory.to_owned();
        let root = directory.clone();
        let dir = Arc::new(blocking(move || IndexDir::acquire(&root)).await?);
        let extent = Extent::of(log).await?;
        Ok(Self { live: open_view(log, &dir, &extent).await?, directory })
    }

    fn pages(&self) -> Pages {
        let query = ListQuery { limit: usize::MAX, max_bytes: PAGE_BYTES, ..ListQuery::default() };
        Pages { live: self.live.clone(), query: Some(query) }
    }

    async fn delete(self) -> Result<(), IndexError> {
        let Self { live, directory } = self;
        blocking(move || {
            drop(live);
            std::fs::remove_dir_all(&directory).map_err(|error| IndexError::io(&directory, &error))
        })
        .await
    }
}

/// All records in key order.
struct Pages {
    live: Arc<Live>,
    /// None after the last page.
    query: Option<ListQuery>,
}

impl Pages {
    async fn next(&mut self) -> Result<Option<Vec<DocRecord>>, IndexError> {
        let Some(query) = self.query.take() else { return Ok(None) };
        let (live, asked) = (self.live.clone(), query.clone());
        let page = blocking(move || live.index().list(&asked)).await?;
        self.query = page.more.then_some(ListQuery { after: page.last, ..query });
        Ok(Some(page.records))
    }
}

/// The end of a new shard's log.
struct Writer {
    log: ManifestLog,
    /// By an earlier attempt.
    is_complete: bool,
    position: Position,
    changes: Vec<Change>,
    bytes: usize,
    most_bytes: usize,
    manifests: u64,
}

impl Writer {
    /// Closes the log, unless it is complete.
    async fn begin(log: ManifestLog, most_bytes: usize) -> Result<Self, IndexError> {
        let last = log.last().await?;
        let state = State::after(last.as_ref());
        let position = last.map_or(Position::default(), |last| last.position);
        let is_complete = state == State::Open;
        let mut writer = Self { log, is_complete, position, changes: Vec::new(), bytes: 0, most_bytes, manifests: 0 };
        if !is_complete && state != State::HandedOver(0) {
            writer.append(&[INCOMPLETE]).await?;
        }
        Ok(writer)
    }

    /// Removes what the log has from an earlier generation or an attempt that was stopped.
    async fn empty(&mut self, directory: &Path) -> Result<(), IndexError> {
        if self.is_complete || self.position.number <= 1 {
            return Ok(());
        }
        let view = View::open(&self.log, directory).await?;
        let mut pages = view.pages();
        while let Some(page) = pages.next().await? {
            let names: BTreeMap<_, _> = page.iter().map(|record| (name(record), record)).collect();
            for record in names.into_values() {
                let DocRecord { collection, doc_id, .. } = record.clone();
                self.push(Change::Delete { collection, doc_id }, 0).await?;
            }
        }
        drop(pages);
        view.delete().await
    }

    async fn put(&mut self, mut record: DocRecord) -> Result<(), IndexError> {
        let bytes = record.encoded_len();
        let summary = record.summary.take();
        let DocRecord { collection, doc_id, fingerprint, text_hash, .. } = record.clone();
        self.push(Change::Put(record), bytes).await?;
        match summary {
            Some(_) => {
                let of = SummaryOf { collection, doc_id, fingerprint, text_hash, summary };
                self.push(Change::Summary(of), 0).await
            }
            None => Ok(()),
        }
    }

    async fn push(&mut self, change: Change, bytes: usize) -> Result<(), IndexError> {
        self.changes.push(change);
        self.bytes += bytes;
        if self.changes.len() < BATCH_CHANGES && self.bytes < self.most_bytes { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<(), IndexError> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let mut changes = std::mem::take(&mut self.changes);
        changes.push(INCOMPLETE);
        self.bytes = 0;
        self.append(&changes).await?;
        reach("index.reshard_batch_written");
        Ok(())
    }

    /// Writes the rest and opens the log.
    async fn finish(&mut self) -> Result<(), IndexError> {
        self.flush().await?;
        if !self.is_complete {
            self.append(&[]).await?;
            reach("index.reshard_shard_complete");
        }
        Ok(())
    }

    async fn append(&mut self, changes: &[Change]) -> Result<(), IndexError> {
        match self.log.append(self.position, changes).await? {
            Append::Mine(manifest) => {
                self.position = manifest.position;
                self.manifests += 1;
                Ok(())
            }
            Append::Theirs(manifest) => Err(IndexError::invalid(format!(
                "{} was written by somebody else; let one `e2llm reshard` run at a time",
                self.log.path(manifest.position.number)
            ))),
        }
    }
}
