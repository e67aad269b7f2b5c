//! The one task that writes: group commit, snapshots, and whatever needs the view to itself.

mod admin;
mod guard;

use std::ops::ControlFlow;
use std::sync::Arc;

use e2llm_runtime::failpoint::reach;
use e2llm_store::manifest::{Append, Change, Manifest, ManifestLog};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::debug;

use crate::IndexError;
use crate::dir::IndexDir;
use crate::doc_index::{Effects, RecordKey};
use crate::live::{Live, blocking};
use crate::shared::Shared;

pub(crate) use admin::{Admin, SinceSnapshot};
pub(crate) use guard::{Guard, SweepBatch, Swept};

/// Most changes in one manifest of several requests. One request is never split.
const GROUP_CHANGES: usize = 4096;

/// Bytes of records at which a group is closed.
const GROUP_BYTES: usize = 8 << 20;

/// Who asked the index to close, and how it went.
type Closed = (Reply<()>, Result<(), IndexError>);

pub(crate) type Reply<T> = oneshot::Sender<Result<T, IndexError>>;

/// What callers send to the committer.
#[derive(Debug)]
pub(crate) enum Request {
    Write(Write),
    Admin(Admin),
}

/// Changes that become durable together, and who waits for them.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) changes: Vec<Change>,
    pub(crate) bytes: usize,
    pub(crate) reply: Reply<Written>,
    pub(crate) admitted: OwnedSemaphorePermit,
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) manifest: u64,
    /// For each delete, in order, the records it removed.
    pub(crate) removed: Vec<Vec<RecordKey>>,
    /// For each summary, in order, whether it was kept.
    pub(crate) kept: Vec<bool>,
}

/// Owns the log's end. Requests that arrive while a manifest is being written form the next group.
#[derive(Debug)]
pub(crate) struct Committer {
    log: ManifestLog,
    dir: Arc<IndexDir>,
    shared: Arc<Shared>,
    requests: mpsc::Receiver<Request>,
    /// Met while gathering a group, to be handled after it.
    stashed: Option<Request>,
    since_snapshot: SinceSnapshot,
    guard: Guard,
}

impl Committer {
    pub(crate) fn new(
        log: ManifestLog,
        dir: Arc<IndexDir>,
        shared: Arc<Shared>,
        requests: mpsc::Receiver<Request>,
        since_snapshot: SinceSnapshot,
        guard: Guard,
    ) -> Self {
        Self { log, dir, shared, requests, stashed: None, since_snapshot, guard }
    }

    /// Serves requests until the last sender is gone or the index is closed.
    pub(crate) async fn run(mut self) {
        while let Some(request) = self.next().await {
            match request {
                Request::Write(first) => {
                    let group = self.gather(first);
                    let group = self.refuse_dangling(group).await;
                    if !group.is_empty() {
                        self.commit(group).await;
                        self.snapshot_if_due().await;
                    }
                }
                Request::Admin(admin) => {
                    if let ControlFlow::Break(closed) = self.administer(admin).await {
                        return self.end(closed);
                    }
                }
            }
        }
    }

    /// Unlocks the directory, then says so.
    fn end(self, (reply, outcome): Closed) {
        drop(self);
        drop(reply.send(outcome));
    }

    async fn next(&mut self) -> Option<Request> {
        match self.stashed.take() {
            Some(request) => Some(request),
            None => self.requests.recv().await,
        }
    }

    /// All writes that wait already, up to a bounded size.
    fn gather(&mut self, first: Write) -> Vec<Write> {
        let (mut changes, mut bytes) = (first.changes.len(), first.bytes);
        let mut group = vec![first];
        while changes < GROUP_CHANGES && bytes < GROUP_BYTES {
            match self.requests.try_recv() {
                Ok(Request::Write(write)) => {
                    changes += write.changes.len();
                    bytes += write.bytes;
                    group.push(write);
                }
                Ok(other) => {
                    self.stashed = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        group
    }

    /// Makes a group durable as one manifest, applies it, and only then answers.
    async fn commit(&mut self, mut group: Vec<Write>) {
        let counts: Vec<_> = group.iter().map(|write| count(&write.changes)).collect();
        let changes: Vec<Change> = group.iter_mut().flat_map(|write| std::mem::take(&mut write.changes)).collect();
        let mut outcome = self.write(&changes).await;
        for (write, (deletes, summaries)) in group.into_iter().zip(counts) {
            let answer = match &mut outcome {
                Ok(Written { manifest, removed, kept }) => Ok(Written {
                    manifest: *manifest,
                    removed: removed.drain(..deletes).collect(),
                    kept: kept.drain(..summaries).collect(),
                }),
                Err(error) => Err(error.clone()),
            };
            // room for more before the answer, on which more may come
            drop(write.admitted);
            // whoever stopped waiting has its records committed all the same
            drop(write.reply.send(answer));
        }
    }

    async fn write(&mut self, changes: &[Change]) -> Result<Written, IndexError> {
        let live = self.live().await?;
        if live.check_owns().is_err() {
            // It may have been handed back since.
            self.refresh().await?;
        }
        loop {
            live.check_owns()?;
            match self.log.append(live.position(), changes).await? {
                Append::Mine(manifest) => {
                    reach("index.manifest_appended");
                    metrics::counter!("e2llm_manifest_commits_total").increment(1);
                    return self.apply(&live, manifest).await;
                }
                Append::Theirs(manifest) => {
                    debug!(manifest = manifest.position.number, "another writer was first");
                    self.apply(&live, manifest).await?;
                }
            }
        }
    }

    async fn apply(&mut self, live: &Arc<Live>, manifest: Manifest) -> Result<Written, IndexError> {
        self.since_snapshot.count(manifest.bytes);
        self.guard.track(&manifest.changes);
        let (live, number) = (live.clone(), manifest.position.number);
        let applied = blocking(move || {
            let effects = live.apply(&manifest)?;
            live.flush().map(|()| effects)
        });
        match applied.await {
            Ok(Effects { removed, kept }) => {
                reach("index.applied");
                Ok(Written { manifest: number, removed, kept })
            }
            Err(error) => {
                // the log is ahead of the view now: whoever comes next opens the view again
                self.shared.suspect();
                Err(error)
            }
        }
    }

    /// The view; opened again if it failed or could not be opened before.
    async fn live(&mut self) -> Result<Arc<Live>, IndexError> {
        // a view that failed must not be held while it is closed
        let sound = if self.shared.take_suspicion() { None } else { self.shared.live().ok() };
        match sound {
            Some(live) => Ok(live),
            None => self.reopen().await,
        }
    }
}

/// How many of the changes are deletes, and how many summaries.
fn count(changes: &[Change]) -> (usize, usize) {
    let deletes = changes.iter().filter(|change| matches!(change, Change::Delete { .. })).count();
    let summaries = changes.iter().filter(|change| matches!(change, Change::Summary(_))).count();
    (deletes, summaries)
}
