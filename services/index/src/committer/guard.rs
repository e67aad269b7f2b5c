//! What commits and the deletion of garbage have to know of each other; see [`crate::gc`].

use std::collections::HashSet;

use e2llm_api::ErrorCode;
use e2llm_store::Store;
use e2llm_store::garbage::{ObjectKey, ObjectName};
use e2llm_store::manifest::Change;
use futures::{StreamExt, TryStreamExt};

use super::{Committer, Write};
use crate::IndexError;
use crate::gc::names_of;

/// Objects looked up at the same time.
const PARALLEL: usize = 64;

/// Objects to delete in one turn.
#[derive(Debug)]
pub(crate) struct SweepBatch {
    pub(crate) names: Vec<ObjectName>,
    /// The time of the run, in milliseconds since 1970.
    pub(crate) now: u64,
    /// Younger texts are left alone, in milliseconds.
    pub(crate) min_age: u64,
}

/// What became of an object of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Swept {
    Deleted,
    /// A record that was committed during the run refers to it.
    Committed,
    /// It was written again during the run.
    Young,
}

/// The committer's side of garbage collection.
#[derive(Debug)]
pub(crate) struct Guard {
    /// Something was deleted once: what a commit refers to may be gone.
    swept_once: bool,
    tracking: Tracking,
}

#[derive(Debug)]
enum Tracking {
    Off,
    /// What manifests refer to that were applied since the run began.
    On(HashSet<ObjectKey>),
    /// Manifests may have been applied unseen.
    Lost,
}

impl Guard {
    pub(crate) fn new(swept_once: bool) -> Self {
        Self { swept_once, tracking: Tracking::Off }
    }

    pub(super) fn start_tracking(&mut self) {
        self.tracking = Tracking::On(HashSet::new());
    }

    pub(super) fn stop_tracking(&mut self) {
        self.tracking = Tracking::Off;
    }

    /// The view is opened or brought up to date otherwise than by applying manifests one by one.
    pub(super) fn lose_track(&mut self) {
        if matches!(self.tracking, Tracking::On(_)) {
            self.tracking = Tracking::Lost;
        }
    }

    /// Notes what a manifest refers to: before it is written, for it may be there although writing it failed, and
    /// before another writer's is applied.
    pub(super) fn track(&mut self, changes: &[Change]) {
        if let Tracking::On(keys) = &mut self.tracking {
            keys.extend(names_in(changes).map(|name| name.key()));
        }
    }
}

impl Committer {
    /// Answers the writes that refer to what is not there, and returns the others.
    pub(super) async fn refuse_dangling(&mut self, group: Vec<Write>) -> Vec<Write> {
        group.iter().for_each(|write| self.guard.track(&write.changes));
        if !self.guard.swept_once {
            return group;
        }
        let names: HashSet<ObjectName> = group.iter().flat_map(|write| names_in(&write.changes)).collect();
        let missing = missing(self.log.store(), names).await;
        let mut sound = Vec::with_capacity(group.len());
        for write in group {
            let problem = match &missing {
                Ok(missing) => names_in(&write.changes).find(|name| missing.contains(name)).map(|name| gone(&name)),
                Err(error) => Some(error.clone()),
            };
            match problem {
                None => sound.push(write),
                Some(error) => {
                    drop(write.admitted);
                    // whoever stopped waiting has nothing committed
                    drop(write.reply.send(Err(error)));
                }
            }
        }
        sound
    }

    /// Deletes those of the batch that are still unused.
    pub(super) async fn sweep(&mut self, batch: SweepBatch) -> Result<Vec<Swept>, IndexError> {
        let Tracking::On(committed) = &self.guard.tracking else {
            return Err(IndexError::Down("no longer sure of what it found unused, its view was opened again"));
        };
        self.check_still_owns().await?;
        let store = self.log.store();
        let (now, min_age) = (batch.now, batch.min_age);
        let judge = |name: ObjectName| async move {
            if committed.contains(&name.key()) {
                return Ok(Swept::Committed);
            }
            let is_young =
                name.is_text() && store.info(&name.path()).await?.is_some_and(|text| text.age_ms(now) < min_age);
            Ok::<_, IndexError>(if is_young { Swept::Young } else { Swept::Deleted })
        };
        let judged = futures::stream::iter(batch.names.clone()).map(judge);
        let outcomes: Vec<Swept> = judged.buffered(PARALLEL).try_collect().await?;
        let doomed = batch.names.iter().zip(&outcomes).filter(|(_, swept)| **swept == Swept::Deleted);
        let doomed: Vec<String> = doomed.map(|(name, _)| name.path()).collect();
        if !self.guard.swept_once {
            store.note_sweep().await?;
            self.guard.swept_once = true;
        }
        self.log.store().delete_all(&doomed).await?;
        Ok(outcomes)
    }
}

impl Committer {
    /// Fails if the documents were handed over: other shards may use what this one does not know.
    async fn check_still_owns(&self) -> Result<(), IndexError> {
        let live = self.shared.live()?;
        live.check_owns()?;
        let mut number = live.position().number + 1;
        while let Some(manifest) = self.log.read(number).await? {
            if let Some(shards) = manifest.hand_over() {
                return Err(IndexError::HandedOver { shards });
            }
            number += 1;
        }
        Ok(())
    }
}

async fn missing(store: &Store, names: HashSet<ObjectName>) -> Result<HashSet<ObjectName>, IndexError> {
    let looked = futures::stream::iter(names).map(|name| async move {
        let exists = store.exists(&name.path()).await?;
        Ok::<_, IndexError>((!exists).then_some(name))
    });
    looked.buffer_unordered(PARALLEL).try_filter_map(|name| std::future::ready(Ok(name))).try_collect().await
}

fn names_in(changes: &[Change]) -> impl Iterator<Item = ObjectName> + '_ {
    let records = changes.iter().filter_map(|change| match change {
        Change::Put(record) => Some(record),
        Change::Delete { .. } | Change::Summary(_) | Change::HandOver { .. } => None,
    });
    records.flat_map(names_of)
}

fn gone(name: &ObjectName) -> IndexError {
    let path = name.path();
    let message = format!("{path} is not in the store, it may have been deleted as garbage; encode the document again");
    IndexError::refused(ErrorCode::ObjectGone, message)
}
