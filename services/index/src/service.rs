//! The index as a library: open, close, look after.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use e2llm_api::ErrorCode;
use e2llm_api::v1::DocRecord;
use e2llm_store::Store;
use e2llm_store::manifest::{Change, ManifestLog};
use tokio::sync::{mpsc, oneshot};

use crate::clock::UnixClock;
use crate::committer::{Admin, Committer, Guard, Reply, Request, SinceSnapshot, Write, Written};
use crate::dir::IndexDir;
use crate::doctor::{self, Finding, FindingKind, References};
use crate::live::{Live, blocking};
use crate::opening::{Extent, open_view};
use crate::shared::Shared;
use crate::{IndexError, Shard};

/// The shard of stores that have one index.
pub const DEFAULT_SHARD: &str = "main";

/// Requests that may wait for the committer, whatever their size.
const WAITING_REQUESTS: usize = 4096;

/// The index of one shard of one store. Clones answer from the same view.
///
/// Reads are answered from sled; writes go through one committer task that makes them durable in groups. All
/// calls may be cancelled: a write that was handed over becomes durable all the same.
#[derive(Debug, Clone)]
pub struct IndexService {
    pub(crate) shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    pub(crate) log: ManifestLog,
    pub(crate) clock: UnixClock,
    /// Held by the run that collects garbage.
    pub(crate) collecting: Arc<tokio::sync::Mutex<()>>,
    /// Follows another index, and writes nothing.
    follows: bool,
    pub(crate) shard: Shard,
}

/// Settings with defaults for production.
#[derive(Debug, Clone)]
pub struct IndexOptions {
    /// Manifests after which a snapshot is written.
    pub snapshot_every: u64,
    /// Which documents it has, where there are several indexes. Default: all.
    pub shard: Shard,
    /// By which garbage ages.
    pub clock: UnixClock,
    /// How often a read replica applies what the index has written; such a one refuses writes. None: this is the index.
    pub follow_every: Option<Duration>,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { snapshot_every: 256, shard: Shard::WHOLE, clock: UnixClock::default(), follow_every: None }
    }
}

impl IndexService {
    /// Opens the index of `shard` in `store` with its view in `dir`, which is created, brought up to date or
    /// rebuilt from the manifests as need be.
    ///
    /// # Errors
    /// [`IndexError::InUse`] if another process has `dir` open; damage of the log that is needed, by object name;
    /// an unreachable store; an unusable directory; [`IndexError::HandedOver`] after [`reshard`](crate::reshard).
    pub async fn open(store: Store, dir: &Path, shard: &str) -> Result<Self, IndexError> {
        Self::open_with(store, dir, shard, IndexOptions::default()).await
    }

    /// [`open`](Self::open) with other settings.
    pub async fn open_with(store: Store, dir: &Path, shard: &str, options: IndexOptions) -> Result<Self, IndexError> {
        metrics::counter!("e2llm_manifest_commits_total").increment(0);
        let log = ManifestLog::new(store, shard)?;
        let dir = dir.to_owned();
        let dir = Arc::new(blocking(move || IndexDir::acquire(&dir)).await?);
        let extent = Extent::of(&log).await?;
        let live = open_view(&log, &dir, &extent).await?;
        live.check_owns()?;
        let shared = Arc::new(Shared::new(live));
        let (requests, waiting) = mpsc::channel(WAITING_REQUESTS);
        let since_snapshot = SinceSnapshot::new(options.snapshot_every, extent.uncovered());
        if options.follow_every.is_none() {
            // nobody deletes texts now: what says so is from a process that died
            log.store().end_text_sweep().await?;
        }
        let guard = Guard::new(log.store().has_swept().await?);
        let committer = Committer::new(log.clone(), dir, shared.clone(), waiting, since_snapshot, guard);
        tokio::spawn(committer.run());
        let follows = options.follow_every.is_some();
        let index = Self {
            shared,
            requests,
            log,
            clock: options.clock,
            collecting: Arc::default(),
            follows,
            shard: options.shard,
        };
        if let Some(every) = options.follow_every {
            tokio::spawn(follow(index.clone(), every));
        }
        Ok(index)
    }

    /// Fails where other shards may use what this one does not know.
    pub(crate) fn check_collects(&self) -> Result<(), IndexError> {
        if self.shard == Shard::WHOLE {
            Ok(())
        } else {
            Err(IndexError::invalid(
                "one shard of an index cannot collect garbage: it does not know what the others use",
            ))
        }
    }

    /// Fails on a read replica.
    pub(crate) fn check_writes(&self) -> Result<(), IndexError> {
        if self.follows {
            let message = "this index is a read replica; send what changes something to the index itself";
            return Err(IndexError::refused(ErrorCode::InvalidArgument, message));
        }
        Ok(())
    }

    /// Finishes waiting writes, closes the view and unlocks the directory. Later calls fail as retriable.
    pub async fn close(&self) -> Result<(), IndexError> {
        self.administer(Admin::Close).await
    }

    /// Applies what other writers appended to the log; the number of the last manifest applied.
    pub async fn refresh(&self) -> Result<u64, IndexError> {
        self.administer(Admin::Refresh).await
    }

    /// Writes a snapshot of the present records; the number of the manifest it reaches.
    pub async fn snapshot(&self) -> Result<u64, IndexError> {
        self.administer(Admin::Snapshot).await
    }

    /// Reads the whole log and compares the view with it. Writes wait meanwhile.
    pub async fn verify(&self) -> Result<Vec<Finding>, IndexError> {
        self.administer(Admin::Verify).await
    }

    /// Sets the view aside and makes a new one from the log; the number of the last manifest applied.
    ///
    /// # Errors
    /// The log is damaged, by object name: the view stays as it is.
    pub async fn rebuild(&self) -> Result<u64, IndexError> {
        self.administer(Admin::Rebuild).await
    }

    /// Does for each finding what helps, and returns those that nothing here can help.
    pub async fn repair(&self, findings: &[Finding]) -> Result<Vec<Finding>, IndexError> {
        let has = |kind| findings.iter().any(|finding| finding.kind == kind);
        for finding in findings.iter().filter(|finding| finding.kind == FindingKind::Snapshot) {
            self.log.store().quarantine(&finding.name).await?;
            let number = finding.name.rsplit('/').nth(1).and_then(|number| number.parse().ok());
            self.log.delete_snapshot(number.unwrap_or_default()).await?;
        }
        if has(FindingKind::Record) {
            self.rebuild().await?;
        }
        if has(FindingKind::ManifestAtRisk) {
            self.snapshot().await?;
        }
        let hopeless = findings.iter().filter(|finding| finding.kind == FindingKind::ManifestLost);
        Ok(hopeless.cloned().collect())
    }

    /// The blobs and texts that live records refer to.
    pub async fn referenced(&self) -> Result<References, IndexError> {
        self.read(doctor::referenced).await
    }

    /// Number of the last manifest applied.
    pub fn applied_manifest(&self) -> Result<u64, IndexError> {
        Ok(self.shared.live()?.position().number)
    }

    /// Answers from the view, off the async threads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Live) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, IndexError> {
        let live = self.shared.live().inspect_err(|_| self.ask_reopen())?;
        live.check_complete()?;
        let answer = blocking(move || work(&live)).await;
        if let Err(IndexError::View(_)) = &answer {
            self.shared.suspect();
            self.ask_reopen();
        }
        answer
    }

    /// Waits until there is a view, opening one if need be.
    pub(crate) async fn await_view(&self) -> Result<(), IndexError> {
        match self.shared.live() {
            Ok(_) => Ok(()),
            Err(_) => self.administer(Admin::Reopen).await,
        }
    }

    fn ask_reopen(&self) {
        // nobody waits for the answer: who comes next sees the outcome
        let request = Request::Admin(Admin::Reopen(oneshot::channel().0));
        if self.shared.ask_reopen() && self.requests.try_send(request).is_err() {
            self.shared.reopen_begins();
        }
    }

    /// Makes changes durable and applies them. `bytes` is their approximate size.
    pub(crate) async fn write(&self, changes: Vec<Change>, bytes: usize) -> Result<Written, IndexError> {
        if changes.is_empty() {
            return Ok(Written { manifest: self.applied_manifest()?, removed: Vec::new(), kept: Vec::new() });
        }
        self.check_writes()?;
        let admitted = self.shared.admit(bytes)?;
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Write(Write { changes, bytes, reply, admitted }), answer).await
    }

    /// Puts records as they are: for tests and tools. Services go through `Commit`, which checks them.
    pub(crate) async fn put(&self, records: Vec<DocRecord>) -> Result<Written, IndexError> {
        let bytes = records.iter().map(prost::Message::encoded_len).sum();
        self.write(records.into_iter().map(Change::Put).collect(), bytes).await
    }

    pub(crate) async fn administer<T>(&self, make: impl FnOnce(Reply<T>) -> Admin) -> Result<T, IndexError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Admin(make(reply)), answer).await
    }

    async fn ask<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, IndexError>>,
    ) -> Result<T, IndexError> {
        const CLOSED: IndexError = IndexError::Down("closed");
        self.requests.send(request).await.map_err(|_| CLOSED)?;
        answer.await.map_err(|_| CLOSED)?
    }
}

/// Applies what the index has written, until the replica is closed.
async fn follow(replica: IndexService, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        match replica.refresh().await {
            Ok(_) => {}
            Err(IndexError::Down(_)) if replica.requests.is_closed() => return,
            Err(error) => tracing::warn!(%error, "the replica could not catch up"),
        }
    }
}
