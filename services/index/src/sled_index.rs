//! The view in sled 0.34.7, distrusted.
//!
//! One tree holds one entry per record and one `meta` entry. A manifest's changes and the new `meta` are one
//! batch. `meta` carries, beside schema, store and position, the number of records and a digest over all of them
//! (a sum of hashes, so that it is kept up to date change by change). [`SledIndex::reopen`] reads everything and
//! compares: sled drops damaged segments without a word, and this is how the loss is found.

mod keys;
mod meta;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2llm_api::v1::DocRecord;
use e2llm_store::manifest::{Change, Manifest, Position};
use parking_lot::Mutex;
use prost::Message;

use crate::IndexError;
use crate::doc_index::{DocIndex, Effects, ListQuery, Page, RecordKey, age, key_of_summary, succeed, summarised};
use crate::error::is_full;
use meta::Meta;

pub(crate) use meta::Owner;

/// Memory for sled's page cache, in bytes.
const CACHE_BYTES: u64 = 64 << 20;

/// How often and how long to wait for sled's own lock.
const LOCK_TRIES: u32 = 200;
const LOCK_WAIT: Duration = Duration::from_millis(10);

/// New values by key; `None` removes.
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A view in one sled directory. Not to be opened twice: the caller holds a lock.
#[derive(Debug)]
pub(crate) struct SledIndex {
    db: sled::Db,
    path: PathBuf,
    meta: Mutex<Meta>,
}

/// Why an existing view was not opened.
#[derive(Debug)]
pub(crate) enum NotOpened {
    /// It cannot be trusted: set it aside and rebuild.
    Doubt(String),
    /// It may be sound, but cannot be opened now.
    Failed(IndexError),
}

impl SledIndex {
    /// An empty view at `path`, where nothing may be yet. It has no position until `finish_load`.
    pub(crate) fn create(path: &Path, owner: &Owner) -> Result<Self, IndexError> {
        let db = guarded(path, || open_sled(path))?;
        Ok(Self { db, path: path.to_owned(), meta: Mutex::new(Meta::new(owner)) })
    }

    /// Opens the view at `path` and proves that it is whole. `each` sees every record.
    pub(crate) fn reopen(path: &Path, owner: &Owner, each: &mut dyn FnMut(&DocRecord)) -> Result<Self, NotOpened> {
        let doubted = |error| match error {
            IndexError::View(reason) => NotOpened::Doubt(reason),
            other => NotOpened::Failed(other),
        };
        let db = guarded(path, || open_sled(path)).map_err(doubted)?;
        let proof = guarded(path, || prove(&db, owner, each)).map_err(doubted)?;
        match proof {
            Ok(meta) => Ok(Self { db, path: path.to_owned(), meta: Mutex::new(meta) }),
            Err(reason) => {
                drop_quietly(db);
                Err(NotOpened::Doubt(reason))
            }
        }
    }

    /// Lets go of the files.
    pub(crate) fn close(self) {
        drop_quietly(self.db);
    }

    fn guarded<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
        guarded(&self.path, call)
    }

    fn value(&self, key: &[u8]) -> Result<Option<sled::IVec>, IndexError> {
        self.guarded(|| self.db.get(key))
    }

    /// The record as `changes` leave it.
    fn pending(&self, key: &[u8], changes: &Changes) -> Result<Option<DocRecord>, IndexError> {
        match changes.get(key) {
            Some(change) => change.as_deref().map(decode).transpose(),
            None => self.value(key)?.map(|value| decode(&value)).transpose(),
        }
    }

    /// Keys of the document's records: those stored, then those only in `changes`; removed ones left out.
    fn keys_of(&self, document: &[u8], changes: &Changes) -> Result<Vec<Vec<u8>>, IndexError> {
        let scan = || self.db.scan_prefix(document).keys().collect::<sled::Result<Vec<_>>>();
        let mut keys: Vec<Vec<u8>> = self.guarded(scan)?.iter().map(|key| key.to_vec()).collect();
        keys.retain(|key| !matches!(changes.get(key), Some(None)));
        let pending = changes.range(document.to_vec()..);
        for (key, value) in pending.take_while(|(key, _)| key.starts_with(document)) {
            if value.is_some() && !keys.contains(key) {
                keys.push(key.clone());
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    fn changes_of(&self, manifest: &Manifest) -> Result<(Changes, Effects), IndexError> {
        let mut changes = Changes::new();
        let mut effects = Effects::default();
        for change in &manifest.changes {
            match change {
                Change::Put(record) => {
                    let key = keys::of_record(&RecordKey::of(record));
                    let old = self.pending(&key, &changes)?;
                    let record = succeed(old, record, manifest.position.number);
                    changes.insert(key, Some(record.encode_to_vec()));
                }
                Change::Summary(of) => {
                    let key = keys::of_record(&key_of_summary(of));
                    let record = self.pending(&key, &changes)?.and_then(|record| summarised(record, of));
                    effects.kept.push(record.is_some());
                    record.map(|record| changes.insert(key, Some(record.encode_to_vec())));
                }
                Change::HandOver { .. } => {}
                Change::Delete { collection, doc_id } => {
                    let doomed = self.keys_of(&keys::of_document(collection, doc_id), &changes)?;
                    effects.removed.push(doomed.iter().filter_map(|key| keys::parse(key)).collect());
                    changes.extend(doomed.into_iter().map(|key| (key, None)));
                }
            }
        }
        Ok((changes, effects))
    }

    /// Writes `changes` and the meta entry that `update` makes of the present one, as one batch.
    fn write(&self, changes: Changes, position: Option<Position>) -> Result<(), IndexError> {
        let mut meta = self.meta.lock().clone();
        let mut batch = sled::Batch::default();
        for (key, new) in changes {
            if let Some(old) = self.value(&key)? {
                meta.forget(&key, &old);
            }
            match new {
                Some(value) => {
                    meta.count(&key, &value);
                    batch.insert(key, value);
                }
                None => batch.remove(key),
            }
        }
        if let Some(position) = position {
            meta.set_position(position);
            batch.insert(keys::META, meta.encode_to_vec());
        }
        self.guarded(|| self.db.apply_batch(batch))?;
        *self.meta.lock() = meta;
        Ok(())
    }
}

impl DocIndex for SledIndex {
    fn position(&self) -> Position {
        self.meta.lock().position()
    }

    fn apply(&self, manifest: &Manifest) -> Result<Effects, IndexError> {
        let (changes, effects) = self.changes_of(manifest)?;
        self.write(changes, Some(manifest.position))?;
        Ok(effects)
    }

    fn load(&self, records: Vec<DocRecord>) -> Result<(), IndexError> {
        let keyed = |record: DocRecord| (keys::of_record(&RecordKey::of(&record)), Some(record.encode_to_vec()));
        self.write(records.into_iter().map(keyed).collect(), None)
    }

    fn finish_load(&self, position: Position) -> Result<(), IndexError> {
        self.write(Changes::new(), Some(position))?;
        self.flush()
    }

    fn get(&self, key: &RecordKey) -> Result<Option<DocRecord>, IndexError> {
        let value = self.value(&keys::of_record(key))?;
        value.map(|value| decode(&value)).transpose()
    }

    fn newest(&self, collection: &str, doc_id: &str) -> Result<Option<DocRecord>, IndexError> {
        let document = keys::of_document(collection, doc_id);
        let scan = || self.db.scan_prefix(document).values().collect::<sled::Result<Vec<_>>>();
        let records = self.guarded(scan)?.iter().map(|value| decode(value)).collect::<Result<Vec<_>, _>>()?;
        Ok(records.into_iter().max_by(|a, b| age(a).cmp(&age(b))))
    }

    fn list(&self, query: &ListQuery) -> Result<Page, IndexError> {
        let prefix = keys::prefix(query.collection.as_deref(), &query.id_prefix);
        let start = match &query.after {
            Some(after) if keys::of_record(after) >= prefix => Bound::Excluded(keys::of_record(after)),
            _ => Bound::Included(prefix.clone()),
        };
        let mut page = Page::default();
        let (mut bytes, mut seen) = (0, 0);
        let mut entries = self.db.range((start, Bound::Unbounded));
        while let Some((key, value)) = self.guarded(|| entries.next().transpose())? {
            if !key.starts_with(&prefix) {
                break;
            }
            let Some(key) = keys::parse(&key).filter(|key| query.selects(key)) else { continue };
            if query.is_full(page.records.len(), bytes, seen) {
                page.more = true;
                break;
            }
            seen += 1;
            page.last = Some(key);
            let Some(record) = query.shown(decode(&value)?) else { continue };
            bytes += record.encoded_len();
            page.records.push(record);
        }
        Ok(page)
    }

    fn flush(&self) -> Result<(), IndexError> {
        self.guarded(|| self.db.flush()).map(|_| ())
    }
}

fn open_sled(path: &Path) -> sled::Result<sled::Db> {
    // no flusher thread: everything is flushed by the one who applied it, before it is acknowledged
    let config = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(None);
    let mut tries = 0;
    loop {
        match config.open() {
            // the directory is ours: a view that was just closed may keep its lock for a moment
            Err(sled::Error::Io(error)) if is_locked(&error) && tries < LOCK_TRIES => {
                tries += 1;
                std::thread::sleep(LOCK_WAIT);
            }
            opened => return opened,
        }
    }
}

/// sled wraps the refusal into a message.
fn is_locked(error: &std::io::Error) -> bool {
    error.to_string().contains("could not acquire lock")
}

/// Reads everything; the meta entry if all fits together, else what does not.
fn prove(db: &sled::Db, owner: &Owner, each: &mut dyn FnMut(&DocRecord)) -> sled::Result<Result<Meta, String>> {
    let Some(bytes) = db.get(keys::META)? else {
        return Ok(Err("it has no meta entry".to_owned()));
    };
    let meta = match Meta::decode(bytes.as_ref()) {
        Ok(meta) => meta,
        Err(error) => return Ok(Err(format!("its meta entry cannot be decoded: {error}"))),
    };
    if let Err(reason) = meta.check_owner(owner) {
        return Ok(Err(reason));
    }
    let mut seen = Meta::new(owner);
    for entry in db.scan_prefix(keys::prefix(None, "")) {
        let (key, value) = entry?;
        let Ok(record) = DocRecord::decode(value.as_ref()) else {
            return Ok(Err(format!("record {key:?} cannot be decoded")));
        };
        seen.count(&key, &value);
        each(&record);
    }
    Ok(meta.check_contents(&seen).map(|()| meta))
}

/// Runs a call into sled, whose errors and panics both mean that the view cannot go on.
fn guarded<T>(path: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
    let error = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(error)) => error,
        Err(panic) => return Err(IndexError::View(format!("sled panicked: {}", panic_text(&*panic)))),
    };
    match error {
        sled::Error::Io(io) if is_full(io.kind()) => Err(IndexError::DiskFull { path: path.display().to_string() }),
        sled::Error::Io(io) if is_locked(&io) => Err(IndexError::InUse {
            dir: path.display().to_string(),
            holder: "a view that is still being closed".to_owned(),
        }),
        other => Err(IndexError::View(other.to_string())),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

fn drop_quietly(db: sled::Db) {
    // a damaged database may panic once more when it closes; it is set aside either way
    drop(catch_unwind(AssertUnwindSafe(|| drop(db))));
}

fn decode(value: &[u8]) -> Result<DocRecord, IndexError> {
    DocRecord::decode(value).map_err(|error| IndexError::View(format!("a record cannot be decoded: {error}")))
}
