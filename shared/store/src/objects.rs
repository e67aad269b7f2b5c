//! Objects by path: create-only put, read, list, delete, quarantine.

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStoreExt, PutMode, PutOptions};
use tracing::{debug, warn};

use crate::error::{Result, StoreError};
use crate::names::{self, PROBES, QUARANTINE};
use crate::store::Store;

/// What became of a create-only put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "an existing object was not replaced"]
pub enum Created {
    /// This call wrote the object.
    New,
    /// The object was there already, or another writer was first. Its bytes may differ.
    Exists,
}

/// One listed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Path below the store's root.
    pub path: String,
    /// Size.
    pub bytes: u64,
    /// When it was last written, in milliseconds since 1970, by the clock of whatever stores it.
    pub modified_unix_ms: u64,
}

impl ObjectInfo {
    fn of(meta: &ObjectMeta) -> Self {
        let modified_unix_ms = u64::try_from(meta.last_modified.timestamp_millis()).unwrap_or_default();
        Self { path: meta.location.to_string(), bytes: meta.size, modified_unix_ms }
    }

    /// How old it is at `now`; zero if the clocks disagree.
    pub fn age_ms(&self, now_unix_ms: u64) -> u64 {
        now_unix_ms.saturating_sub(self.modified_unix_ms)
    }
}

/// An object as read: its bytes and which version of it they were.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) meta: ObjectMeta,
    pub(crate) bytes: Bytes,
}

/// Attempts of one create-only put, the first included.
const ATTEMPTS: u32 = 8;
/// A local disk gives clear answers: only a delete in between, or a directory in the object's place, needs another.
const LOCAL_ATTEMPTS: u32 = 3;
/// Large enough that a full disk refuses it, small enough to be written every few seconds.
const PROBE_BYTES: usize = 64 << 10;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);

impl Store {
    /// Writes `bytes` as the object `path` unless it exists. Atomic: no reader sees a part of it.
    ///
    /// When an attempt ends without an answer, the object is read back: equal bytes count as [`Created::New`],
    /// other bytes as [`Created::Exists`], none as "not written" and it tries again, a bounded number of times.
    /// Bodies that must have exactly one writer therefore carry the writer's name and a nonce.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::PermissionDenied`] and the like: nothing was written.
    /// [`StoreError::Unavailable`]: the object may appear later.
    pub async fn create(&self, path: &str, bytes: impl Into<Bytes>) -> Result<Created> {
        let location = location(path)?;
        let bytes = bytes.into();
        let attempts = if self.directory().is_some() { LOCAL_ATTEMPTS } else { ATTEMPTS };
        let mut attempt = 1;
        // Whether an earlier attempt may have written the object after all.
        let mut unknown = false;
        loop {
            let problem = match self.put_once(&location, &bytes).await {
                Ok(()) => return Ok(Created::New),
                Err(object_store::Error::AlreadyExists { .. }) => None,
                Err(error) => Some(StoreError::from_object_store(path, error)),
            };
            if let Some(error) = problem.as_ref().filter(|error| !has_unknown_outcome(error)) {
                return Err(error.clone());
            }
            unknown |= problem.is_some();
            let settled = self.settle(&location, &bytes, unknown).await;
            if let Ok(Some(created)) = settled {
                return Ok(created);
            }
            if attempt == attempts || matches!(problem, Some(StoreError::Io { .. })) {
                return Err(problem.or(settled.err()).unwrap_or_else(|| contended(path)));
            }
            debug!(path, attempt, "create-only put has no outcome yet, trying again");
            tokio::time::sleep(delay(attempt)).await;
            attempt += 1;
        }
    }

    /// Whether the store takes writes now: writes a small object, `probes/<holder>`, and deletes it. One left by a
    /// probe that was given up is deleted first.
    ///
    /// # Errors
    /// Those of [`Store::create`] and [`Store::delete`].
    pub async fn probe(&self, holder: &str) -> Result<()> {
        let path = format!("{PROBES}/{holder}");
        self.delete(&path).await?;
        // Bytes that no file system can squeeze.
        let mut bytes = vec![0; PROBE_BYTES];
        blake3::Hasher::new().update(path.as_bytes()).finalize_xof().fill(&mut bytes);
        let written = self.create(&path, bytes).await;
        let deleted = self.delete(&path).await;
        let _created = written?;
        deleted
    }

    /// The object's bytes; `None` if it does not exist.
    pub async fn get(&self, path: &str) -> Result<Option<Bytes>> {
        Ok(self.fetch(path).await?.map(|fetched| fetched.bytes))
    }

    /// Whether the object exists.
    pub async fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.head(&location(path)?).await?.is_some())
    }

    /// What a listing would say of the object; `None` if it does not exist.
    pub async fn info(&self, path: &str) -> Result<Option<ObjectInfo>> {
        Ok(self.head(&location(path)?).await?.map(|meta| ObjectInfo::of(&meta)))
    }

    /// The paths of all objects below the folder `prefix`, in order. Uploads in progress and leftovers of
    /// crashed ones are not objects.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let mut paths: Vec<String> = self.list_stream(prefix).map_ok(|object| object.path).try_collect().await?;
        paths.sort_unstable();
        Ok(paths)
    }

    /// Like [`Store::list`] for folders of any size, in no particular order.
    pub fn list_stream(&self, prefix: &str) -> BoxStream<'static, Result<ObjectInfo>> {
        let folder = match folder(prefix) {
            Ok(folder) => folder,
            Err(error) => return futures::stream::once(async { Err(error) }).boxed(),
        };
        let name = prefix.to_owned();
        self.inner
            .backend
            .objects
            .list(Some(&folder))
            .map_ok(|meta| ObjectInfo::of(&meta))
            .map_err(move |error| StoreError::from_object_store(&name, error))
            .boxed()
    }

    /// The names of the folders in a folder, sorted; one listing however much they hold.
    pub async fn list_folders(&self, prefix: &str) -> Result<Vec<String>> {
        let listed = self.inner.backend.objects.list_with_delimiter(Some(&folder(prefix)?)).await;
        let listed = listed.map_err(|error| StoreError::from_object_store(prefix, error))?;
        let mut names: Vec<String> = listed
            .common_prefixes
            .iter()
            .filter_map(|path| Some(path.parts().next_back()?.as_ref().to_owned()))
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Deletes the object if it exists.
    pub async fn delete(&self, path: &str) -> Result<()> {
        match self.inner.backend.objects.delete(&location(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(StoreError::from_object_store(path, error)),
        }
    }

    /// Deletes objects, many in one request where the store can; those that do not exist count as deleted.
    ///
    /// # Errors
    /// The first failure. What was not reached is still there: call again.
    pub async fn delete_all(&self, paths: &[String]) -> Result<()> {
        let locations: Vec<ObjectPath> = paths.iter().map(|path| location(path)).collect::<Result<_>>()?;
        let first = paths.first().cloned().unwrap_or_default();
        let locations = futures::stream::iter(locations.into_iter().map(Ok)).boxed();
        let mut deleted = self.inner.backend.objects.delete_stream(locations);
        while let Some(outcome) = deleted.next().await {
            match outcome {
                Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(StoreError::from_object_store(&first, error)),
            }
        }
        Ok(())
    }

    /// Writes an object whether or not it exists: for contents that its name determines, to make it young.
    pub(crate) async fn overwrite(&self, path: &str, bytes: Bytes) -> Result<()> {
        let written = self.inner.backend.objects.put(&location(path)?, bytes.into()).await;
        written.map(drop).map_err(|error| StoreError::from_object_store(path, error))
    }

    /// Moves an object out of the way, to `quarantine/<path>.<random>`; returns the new path, or `None` if the
    /// object is not there.
    pub async fn quarantine(&self, path: &str) -> Result<Option<String>> {
        let random = uuid::Uuid::new_v4().simple().to_string();
        let target = format!("{QUARANTINE}/{path}.{}", &random[..8]);
        let objects = &self.inner.backend.objects;
        match objects.copy(&location(path)?, &location(&target)?).await {
            Ok(()) => {}
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(StoreError::from_object_store(path, error)),
        }
        self.delete(path).await?;
        Ok(Some(target))
    }

    /// Sets a corrupt object aside and says so. `read` is what was found corrupt: if the object was replaced
    /// since, the new one stays.
    pub(crate) async fn set_aside(&self, path: &str, read: &ObjectMeta, reason: String) -> StoreError {
        let quarantined = match self.move_if_unchanged(path, read).await {
            Ok(moved) => moved,
            Err(error) => {
                warn!(path, %error, "corrupt object could not be moved to quarantine");
                None
            }
        };
        warn!(path, reason, quarantined, "corrupt object");
        StoreError::Corrupt { object: path.to_owned(), reason, quarantined }
    }

    pub(crate) async fn fetch(&self, path: &str) -> Result<Option<Fetched>> {
        let failed = |error| StoreError::from_object_store(path, error);
        let result = match self.inner.backend.objects.get(&location(path)?).await {
            Ok(result) => result,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let meta = result.meta.clone();
        let bytes = result.bytes().await.map_err(failed)?;
        Ok(Some(Fetched { meta, bytes }))
    }

    async fn head(&self, location: &ObjectPath) -> Result<Option<ObjectMeta>> {
        match self.inner.backend.objects.head(location).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError::from_object_store(location.as_ref(), error)),
        }
    }

    async fn put_once(&self, location: &ObjectPath, bytes: &Bytes) -> object_store::Result<()> {
        let options = PutOptions::from(PutMode::Create);
        self.inner.backend.creates.put_opts(location, bytes.clone().into(), options).await.map(drop)
    }

    /// What a put without a clear answer did; `None` if the object is not there.
    async fn settle(&self, location: &ObjectPath, ours: &Bytes, unknown: bool) -> Result<Option<Created>> {
        let Some(meta) = self.head(location).await? else { return Ok(None) };
        if !unknown || meta.size != ours.len() as u64 {
            return Ok(Some(Created::Exists));
        }
        let stored = self.get(location.as_ref()).await?;
        Ok(stored.map(|stored| if stored == *ours { Created::New } else { Created::Exists }))
    }

    async fn move_if_unchanged(&self, path: &str, read: &ObjectMeta) -> Result<Option<String>> {
        let now = self.head(&location(path)?).await?;
        let same = now.is_some_and(|now| (now.e_tag, now.size) == (read.e_tag.clone(), read.size));
        if same { self.quarantine(path).await } else { Ok(None) }
    }
}

/// Checks a path; the same paths are allowed on every backend.
fn location(path: &str) -> Result<ObjectPath> {
    let invalid = |reason: String| StoreError::InvalidName { value: path.to_owned(), reason };
    if path.is_empty() {
        return Err(invalid("is not an object path (it is empty)".to_owned()));
    }
    if names::is_staging_name(path) {
        return Err(invalid("is not an object path (a local store keeps \"#<digits>\" for itself)".to_owned()));
    }
    folder(path)
}

fn folder(path: &str) -> Result<ObjectPath> {
    ObjectPath::parse(path).map_err(|error| StoreError::InvalidName {
        value: path.to_owned(),
        reason: format!("is not an object path ({error})"),
    })
}

/// `Io` counts: on a local disk the directory's fsync can fail after the object got its name.
fn has_unknown_outcome(error: &StoreError) -> bool {
    matches!(error, StoreError::Unavailable { .. } | StoreError::Io { .. })
}

/// The store answers "exists" or "conflict", and yet there is nothing to read.
fn contended(path: &str) -> StoreError {
    let detail = "conflicting writers, or a directory in its place".to_owned();
    StoreError::Unavailable { object: path.to_owned(), detail }
}

fn delay(attempt: u32) -> Duration {
    let longest = FIRST_DELAY.saturating_mul(1 << attempt.min(10)).min(LONGEST_DELAY);
    longest.mul_f64(rand::random_range(0.5..1.0))
}
