//! The marks of earlier runs.

use std::collections::{HashMap, HashSet};

use e2llm_store::garbage::{Mark, ObjectKey, ObjectName};
use e2llm_store::{Store, StoreError};
use tracing::warn;

use crate::IndexError;

/// Names in one mark object: a few megabytes.
const NAMES: usize = 50_000;

/// All marks in the store, and which of their names stay marked.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    marks: Vec<Mark>,
    /// When each name was first marked.
    since: HashMap<ObjectKey, u64>,
    stay: HashSet<ObjectKey>,
}

impl Marks {
    /// Reads them. What a damaged one named will be marked anew.
    pub(super) async fn read(store: &Store) -> Result<Self, IndexError> {
        let mut all = Self::default();
        for number in store.marks().await? {
            let mark = match store.read_mark(number).await {
                Ok(Some(mark)) => mark,
                Ok(None) => continue,
                Err(error @ StoreError::Corrupt { .. }) => {
                    warn!(%error, "mark of garbage collection passed over");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            for name in &mark.names {
                let since = all.since.entry(name.key()).or_insert(mark.unix_ms);
                *since = mark.unix_ms.min(*since);
            }
            all.marks.push(mark);
        }
        Ok(all)
    }

    /// When the object was marked, if it is.
    pub(super) fn since(&self, name: &ObjectName) -> Option<u64> {
        self.since.get(&name.key()).copied()
    }

    /// The object stays marked.
    pub(super) fn stays(&mut self, name: &ObjectName) {
        self.stay.insert(name.key());
    }

    /// When the first of those that stay was marked.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.stay.iter().filter_map(|key| self.since.get(key)).min().copied()
    }

    /// Takes out of the stored marks what does not stay. New ones are written before old ones are removed: a crash in
    /// between leaves names that are marked twice.
    pub(super) async fn rewrite(&self, store: &Store) -> Result<(), IndexError> {
        for mark in &self.marks {
            let names: Vec<ObjectName> =
                mark.names.iter().filter(|name| self.stay.contains(&name.key())).copied().collect();
            if names.len() == mark.names.len() {
                continue;
            }
            if !names.is_empty() {
                store.create_mark(mark.unix_ms, &names).await?;
            }
            store.delete_mark(mark.number).await?;
        }
        Ok(())
    }

    /// Marks `names` as of `now`.
    pub(super) async fn add(store: &Store, now: u64, names: &[ObjectName]) -> Result<(), IndexError> {
        for names in names.chunks(NAMES) {
            store.create_mark(now, names).await?;
        }
        Ok(())
    }
}
