//! What the records of the view refer to.

use std::collections::{HashMap, HashSet};

use e2llm_api::v1::DocKey;
use e2llm_store::garbage::{ObjectKey, ObjectName};

use super::names_of;
use crate::doc_index::ListQuery;
use crate::{IndexError, IndexService};

/// Records read at once, in bytes: other readers and a reopening of the view come in between.
const PAGE_BYTES: usize = 8 << 20;

/// What is used.
#[derive(Debug, Default)]
pub(super) enum Used {
    /// Nothing was looked at yet.
    #[default]
    Nothing,
    /// All there is, by key.
    All(HashSet<ObjectKey>),
    /// Of the objects asked about those that are used, each with one of its users.
    Of(HashMap<ObjectKey, DocKey>),
}

impl Used {
    /// Reads all records; where `only` names objects, takes note of these alone.
    pub(super) async fn read(index: &IndexService, only: &[ObjectName]) -> Result<Self, IndexError> {
        let asked: HashSet<ObjectKey> = only.iter().map(ObjectName::key).collect();
        let mut used = if only.is_empty() { Self::All(HashSet::new()) } else { Self::Of(HashMap::new()) };
        let mut query =
            ListQuery { limit: usize::MAX, max_bytes: PAGE_BYTES, without_summaries: true, ..ListQuery::default() };
        loop {
            let next = query.clone();
            let page = index.read(move |live| live.index().list(&next)).await?;
            for record in &page.records {
                for name in names_of(record) {
                    let key = name.key();
                    match &mut used {
                        Self::All(keys) => drop(keys.insert(key)),
                        Self::Of(users) if asked.contains(&key) => {
                            users.entry(key).or_insert_with(|| DocKey {
                                collection: record.collection.clone(),
                                doc_id: record.doc_id.clone(),
                                fingerprint: record.fingerprint.clone(),
                            });
                        }
                        Self::Of(_) | Self::Nothing => {}
                    }
                }
            }
            if !page.more {
                return Ok(used);
            }
            query.after = page.last;
        }
    }

    pub(super) fn contains(&self, name: &ObjectName) -> bool {
        match self {
            Self::Nothing => false,
            Self::All(keys) => keys.contains(&name.key()),
            Self::Of(users) => users.contains_key(&name.key()),
        }
    }

    /// One of the documents that need the object, as far as known.
    pub(super) fn user(&self, name: &ObjectName) -> Option<DocKey> {
        match self {
            Self::Of(users) => users.get(&name.key()).cloned(),
            Self::Nothing | Self::All(_) => None,
        }
    }
}
