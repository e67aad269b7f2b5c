//! From a directory and a log to an open view: trusted, brought up to date, or rebuilt.

use std::collections::BTreeSet;
use std::sync::Arc;

use e2llm_api::v1::DocRecord;
use e2llm_store::manifest::{ManifestLog, Position, Snapshot};
use futures::TryStreamExt;
use tracing::{info, warn};

use crate::IndexError;
use crate::dir::IndexDir;
use crate::live::{Live, blocking};
use crate::sled_index::{NotOpened, Owner, SledIndex};
use crate::vectors::VectorTable;

/// What the log holds, from its object names alone.
#[derive(Debug)]
pub(crate) struct Extent {
    pub(crate) manifests: BTreeSet<u64>,
    /// Ascending.
    pub(crate) snapshots: Vec<u64>,
}

impl Extent {
    pub(crate) async fn of(log: &ManifestLog) -> Result<Self, IndexError> {
        // snapshots first: one that is written meanwhile is then not ahead of the manifests seen
        let snapshots = log.snapshots().await?;
        Ok(Self { manifests: log.numbers().await?, snapshots })
    }

    /// Number of the last manifest, as far as manifests or snapshots know of it.
    pub(crate) fn head(&self) -> u64 {
        self.manifests.last().copied().unwrap_or(0).max(self.covered())
    }

    /// Number of the last manifest that a snapshot contains.
    fn covered(&self) -> u64 {
        self.snapshots.last().copied().unwrap_or(0)
    }

    /// How many manifests a rebuild would have to replay.
    pub(crate) fn uncovered(&self) -> u64 {
        self.head() - self.covered()
    }
}

/// Opens the view in `dir`, or makes a new one from the log when there is none or it cannot be trusted.
///
/// # Errors
/// Damage of the log that is needed, by object name; an unreachable store; an unusable directory.
pub(crate) async fn open_view(
    log: &ManifestLog,
    dir: &Arc<IndexDir>,
    extent: &Extent,
) -> Result<Arc<Live>, IndexError> {
    if let Some(live) = open_trusted(log, dir, extent).await? {
        match catch_up(log, &live, extent.head()).await {
            Ok(()) => return know_end(log, live).await,
            Err(IndexError::View(reason)) => set_aside(live, dir, reason).await?,
            Err(error) => return Err(error),
        }
    }
    let live = build(log, dir, extent).await?;
    catch_up(log, &live, extent.head()).await?;
    know_end(log, live).await
}

/// The view, knowing who has the documents. A last manifest that is lost or damaged says nothing: the view is the better copy.
async fn know_end(log: &ManifestLog, live: Arc<Live>) -> Result<Arc<Live>, IndexError> {
    match log.read(live.position().number).await {
        Ok(Some(manifest)) => live.ends_with(&manifest),
        Err(error) if !error.is_damage() => return Err(error.into()),
        _ => {}
    }
    Ok(live)
}

/// The existing view if there is one and nothing speaks against it. Otherwise there is none afterwards.
async fn open_trusted(
    log: &ManifestLog,
    dir: &Arc<IndexDir>,
    extent: &Extent,
) -> Result<Option<Arc<Live>>, IndexError> {
    let (owner, here) = (owner_of(log), dir.clone());
    let Some(live) = blocking(move || reopen(&owner, &here)).await? else { return Ok(None) };
    match doubt_by_log(log, live.position(), extent).await? {
        None => Ok(Some(live)),
        Some(doubt) => set_aside(live, dir, doubt).await.map(|()| None),
    }
}

async fn set_aside(live: Arc<Live>, dir: &Arc<IndexDir>, reason: String) -> Result<(), IndexError> {
    let dir = dir.clone();
    blocking(move || {
        drop(live);
        dir.set_aside(&reason)
    })
    .await
}

fn reopen(owner: &Owner, dir: &Arc<IndexDir>) -> Result<Option<Arc<Live>>, IndexError> {
    if !dir.has_view() {
        dir.discard_view()?;
        dir.end_opening()?;
        return Ok(None);
    }
    if dir.begin_opening()? {
        dir.set_aside("an earlier attempt to open it never ended")?;
        dir.end_opening()?;
        return Ok(None);
    }
    let mut vectors = VectorTable::default();
    let opened = SledIndex::reopen(&dir.view(), owner, &mut |record| vectors.put(record));
    dir.end_opening()?;
    match opened {
        Ok(index) => Ok(Some(Arc::new(Live::new(index, vectors, dir.clone())))),
        Err(NotOpened::Failed(error)) => Err(error),
        Err(NotOpened::Doubt(reason)) => dir.set_aside(&reason).map(|()| None),
    }
}

/// Why the log contradicts a view at `position`, if it does.
async fn doubt_by_log(log: &ManifestLog, position: Position, extent: &Extent) -> Result<Option<String>, IndexError> {
    if position.number == 0 {
        return Ok(None);
    }
    if position.number > extent.head() {
        return Ok(Some(format!("it is ahead of the log: {} > {}", position.number, extent.head())));
    }
    match log.read(position.number).await {
        Ok(Some(manifest)) if manifest.position != position => {
            Ok(Some(format!("manifest {} is not the one it applied", position.number)))
        }
        Ok(Some(_)) => Ok(None),
        // the log lost what the view still has: the view is the better copy
        Ok(None) => {
            warn!(manifest = log.path(position.number), "manifest is missing, the view is kept");
            Ok(None)
        }
        Err(error) if error.is_damage() => {
            warn!(%error, "manifest is corrupt, the view is kept");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// A new view from the newest snapshot that can be read, or an empty one.
async fn build(log: &ManifestLog, dir: &Arc<IndexDir>, extent: &Extent) -> Result<Arc<Live>, IndexError> {
    for number in extent.snapshots.iter().rev() {
        let live = create(log, dir).await?;
        match load_snapshot(log, &live, *number).await {
            Ok(Some(position)) => {
                info!(snapshot = number, "index view loaded");
                return finish(live, position).await;
            }
            Ok(None) => {}
            Err(IndexError::Log(error)) if error.is_damage() => {
                warn!(%error, "snapshot passed over, it is derived and doctor can remove it");
            }
            Err(error) => return Err(error),
        }
    }
    finish(create(log, dir).await?, Position::default()).await
}

async fn create(log: &ManifestLog, dir: &Arc<IndexDir>) -> Result<Arc<Live>, IndexError> {
    let (owner, dir) = (owner_of(log), dir.clone());
    blocking(move || {
        dir.discard_view()?;
        let index = SledIndex::create(&dir.view(), &owner)?;
        Ok(Arc::new(Live::new(index, VectorTable::default(), dir)))
    })
    .await
}

async fn finish(live: Arc<Live>, position: Position) -> Result<Arc<Live>, IndexError> {
    blocking(move || live.finish_load(position).map(|()| live)).await
}

async fn load_snapshot(log: &ManifestLog, live: &Arc<Live>, number: u64) -> Result<Option<Position>, IndexError> {
    let Some(snapshot) = log.read_snapshot(number).await? else { return Ok(None) };
    for_each_part(log, &snapshot, |records| {
        let live = live.clone();
        blocking(move || live.load(records))
    })
    .await?;
    Ok(Some(snapshot.position))
}

/// Reads the parts of a snapshot one after the other.
pub(crate) async fn for_each_part<F>(
    log: &ManifestLog,
    snapshot: &Snapshot,
    mut each: impl FnMut(Vec<DocRecord>) -> F,
) -> Result<(), IndexError>
where
    F: Future<Output = Result<(), IndexError>>,
{
    for part in 0..snapshot.parts() {
        each(log.read_part(snapshot, part).await?).await?;
    }
    Ok(())
}

/// Applies the manifests after the view's position up to number `head`, then flushes.
pub(crate) async fn catch_up(log: &ManifestLog, live: &Arc<Live>, head: u64) -> Result<(), IndexError> {
    let from = live.position();
    if from.number >= head {
        return Ok(());
    }
    let mut manifests = Box::pin(log.replay(from, head));
    while let Some(manifest) = manifests.try_next().await? {
        let live = live.clone();
        blocking(move || live.apply(&manifest).map(drop)).await?;
    }
    let flushed = live.clone();
    blocking(move || flushed.flush()).await?;
    info!(from = from.number, to = head, "manifests applied");
    Ok(())
}

fn owner_of(log: &ManifestLog) -> Owner {
    Owner { store_id: log.store().id().to_owned(), shard: log.shard().to_owned() }
}
