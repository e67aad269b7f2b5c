//! What the committer does besides committing: refresh, reopen, rebuild, verify, snapshot, close.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use e2llm_runtime::failpoint::reach;
use e2llm_store::manifest::Position;
use tracing::{error, info, warn};

use super::{Closed, Committer, Reply, SweepBatch, Swept};
use crate::IndexError;
use crate::doc_index::ListQuery;
use crate::doctor::{self, Finding};
use crate::live::{Live, blocking};
use crate::opening::{Extent, catch_up, open_view};

/// Bytes of manifests after which a snapshot is due, whatever their number.
const SNAPSHOT_BYTES: u64 = 64 << 20;

/// Bytes of records in one part of a snapshot.
const PART_BYTES: usize = 8 << 20;

/// Snapshots kept: the newest, and the one before in case the newest is damaged.
const KEPT_SNAPSHOTS: usize = 2;

/// How long reads that began before may keep a view from being closed.
const READERS_LEAVE: Duration = Duration::from_secs(30);

/// Requests that need the view to themselves.
#[derive(Debug)]
pub(crate) enum Admin {
    /// Apply what other writers appended.
    Refresh(Reply<u64>),
    /// A read found no view, or one that failed: open it again if that is still so.
    Reopen(Reply<()>),
    Rebuild(Reply<u64>),
    Verify(Reply<Vec<Finding>>),
    Snapshot(Reply<u64>),
    /// From now on note what commits refer to.
    TrackCommits(Reply<()>),
    /// Delete garbage.
    Sweep(SweepBatch, Reply<Vec<Swept>>),
    /// Stop noting what commits refer to.
    ForgetCommits(Reply<()>),
    Close(Reply<()>),
}

/// When the next snapshot is due.
#[derive(Debug)]
pub(crate) struct SinceSnapshot {
    every: u64,
    manifests: u64,
    bytes: u64,
    /// Size of the last one. Small manifests on a large index wait until they are worth writing it again.
    last_bytes: u64,
}

impl SinceSnapshot {
    pub(crate) fn new(every: u64, manifests: u64) -> Self {
        Self { every, manifests, bytes: 0, last_bytes: 0 }
    }

    pub(super) fn count(&mut self, bytes: u64) {
        self.manifests += 1;
        self.bytes += bytes;
    }

    fn is_due(&self) -> bool {
        let enough = self.manifests >= self.every || self.bytes >= SNAPSHOT_BYTES;
        let worth_it = self.bytes >= self.last_bytes / 4 || self.manifests >= 16 * self.every;
        enough && worth_it
    }

    fn restart(&mut self, last_bytes: u64) {
        *self = Self { last_bytes, ..Self::new(self.every, 0) };
    }
}

impl Committer {
    pub(super) async fn administer(&mut self, admin: Admin) -> ControlFlow<Closed> {
        match admin {
            Admin::Refresh(reply) => drop(reply.send(self.refresh().await)),
            Admin::Reopen(reply) => {
                self.shared.reopen_begins();
                drop(reply.send(self.live().await.map(drop)));
            }
            Admin::Rebuild(reply) => drop(reply.send(self.rebuild().await)),
            Admin::Verify(reply) => drop(reply.send(self.verify().await)),
            Admin::Snapshot(reply) => drop(reply.send(self.snapshot().await)),
            Admin::TrackCommits(reply) => {
                self.guard.start_tracking();
                drop(reply.send(Ok(())));
            }
            Admin::Sweep(batch, reply) => drop(reply.send(self.sweep(batch).await)),
            Admin::ForgetCommits(reply) => {
                self.guard.stop_tracking();
                drop(reply.send(Ok(())));
            }
            Admin::Close(reply) => {
                let outcome = self.release("closed").await;
                return ControlFlow::Break((reply, outcome));
            }
        }
        ControlFlow::Continue(())
    }

    pub(super) async fn snapshot_if_due(&mut self) {
        if !self.since_snapshot.is_due() {
            return;
        }
        if let Err(error) = self.snapshot().await {
            warn!(%error, "snapshot failed, it will be tried again later");
            self.since_snapshot.restart(self.since_snapshot.last_bytes);
        }
    }

    /// Closes the view and opens it as if the process had just started.
    pub(super) async fn reopen(&mut self) -> Result<Arc<Live>, IndexError> {
        self.guard.lose_track();
        self.release("being reopened").await?;
        match self.open().await {
            Ok(live) => {
                self.shared.put(live.clone());
                Ok(live)
            }
            Err(error) => {
                error!(%error, "index view could not be opened");
                self.shared.fail(error.clone());
                Err(error)
            }
        }
    }

    async fn open(&self) -> Result<Arc<Live>, IndexError> {
        let extent = Extent::of(&self.log).await?;
        open_view(&self.log, &self.dir, &extent).await
    }

    /// Takes the view away and waits until sled has closed it.
    async fn release(&mut self, why: &'static str) -> Result<(), IndexError> {
        let Some(mut live) = self.shared.take(why) else { return Ok(()) };
        let deadline = tokio::time::Instant::now() + READERS_LEAVE;
        loop {
            match Arc::try_unwrap(live) {
                Ok(last) => return blocking(move || last.close()).await,
                Err(shared) if tokio::time::Instant::now() > deadline => {
                    self.shared.put(shared);
                    return Err(IndexError::Down("busy with long reads"));
                }
                Err(shared) => live = shared,
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(super) async fn refresh(&mut self) -> Result<u64, IndexError> {
        self.guard.lose_track();
        let live = self.live().await?;
        let head = Extent::of(&self.log).await?.head();
        let caught_up = catch_up(&self.log, &live, head).await;
        if let Err(IndexError::View(_) | IndexError::DiskFull { .. }) = &caught_up {
            self.shared.suspect();
        }
        caught_up.map(|()| live.position().number)
    }

    /// Throws the view away and makes a new one from the log, if the log can give it.
    async fn rebuild(&mut self) -> Result<u64, IndexError> {
        doctor::check_rebuildable(&self.log).await?;
        self.release("being rebuilt").await?;
        let dir = self.dir.clone();
        blocking(move || if dir.has_view() { dir.set_aside("a rebuild was asked for") } else { Ok(()) }).await?;
        let live = self.reopen().await?;
        Ok(live.position().number)
    }

    async fn verify(&mut self) -> Result<Vec<Finding>, IndexError> {
        // a damaged log cannot be caught up with; the findings will say why
        match self.refresh().await {
            Err(IndexError::Log(error)) if error.is_damage() => {}
            other => drop(other?),
        }
        let live = self.shared.live()?;
        doctor::verify(&self.log, &live).await
    }

    /// Writes all records as of now, so that a rebuild need not replay what came before.
    async fn snapshot(&mut self) -> Result<u64, IndexError> {
        let live = self.live().await?;
        let position = live.position();
        if position == Position::default() {
            return Ok(0);
        }
        let mut writer = self.log.snapshot_writer(position);
        let mut query = ListQuery { limit: usize::MAX, max_bytes: PART_BYTES, ..ListQuery::default() };
        let mut bytes = 0;
        loop {
            let (live, next) = (live.clone(), query.clone());
            let page = blocking(move || live.index().list(&next)).await?;
            query.after = page.last.clone();
            bytes += page.records.iter().map(|r| prost::Message::encoded_len(r) as u64).sum::<u64>();
            writer.part(page.records).await?;
            if !page.more {
                break;
            }
        }
        reach("index.snapshot_parts_written");
        let created = writer.finish().await?;
        reach("index.snapshot_written");
        self.log.prune_snapshots(KEPT_SNAPSHOTS).await?;
        self.since_snapshot.restart(bytes);
        info!(manifest = position.number, bytes, ?created, "snapshot written");
        Ok(position.number)
    }
}
