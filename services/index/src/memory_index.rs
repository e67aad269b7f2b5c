//! A view in memory: what `verify` compares with, and the oracle of the tests.

use std::collections::BTreeMap;

use e2llm_api::v1::DocRecord;
use e2llm_store::manifest::{Change, Manifest, Position};
use parking_lot::RwLock;
use prost::Message;

use crate::IndexError;
use crate::doc_index::{DocIndex, Effects, ListQuery, Page, RecordKey, age, key_of_summary, succeed, summarised};

/// Records in a `BTreeMap`: obviously right, gone with the process.
#[derive(Debug, Default)]
pub struct MemoryIndex {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    position: Position,
    records: BTreeMap<RecordKey, DocRecord>,
}

impl State {
    fn keys_of(&self, collection: &str, doc_id: &str) -> Vec<RecordKey> {
        let (collection, doc_id) = (collection.to_owned(), doc_id.to_owned());
        let first = RecordKey { collection, doc_id, fingerprint: String::new() };
        let from_first = self.records.range(first.clone()..).map(|(key, _)| key);
        let same = |key: &&RecordKey| key.collection == first.collection && key.doc_id == first.doc_id;
        from_first.take_while(same).cloned().collect()
    }
}

impl DocIndex for MemoryIndex {
    fn position(&self) -> Position {
        self.state.read().position
    }

    fn apply(&self, manifest: &Manifest) -> Result<Effects, IndexError> {
        let mut state = self.state.write();
        let mut effects = Effects::default();
        for change in &manifest.changes {
            match change {
                Change::Put(record) => {
                    let key = RecordKey::of(record);
                    let old = state.records.remove(&key);
                    state.records.insert(key, succeed(old, record, manifest.position.number));
                }
                Change::Summary(of) => {
                    let key = key_of_summary(of);
                    let record = state.records.get(&key).cloned().and_then(|record| summarised(record, of));
                    effects.kept.push(record.is_some());
                    record.map(|record| state.records.insert(key, record));
                }
                Change::HandOver { .. } => {}
                Change::Delete { collection, doc_id } => {
                    let doomed = state.keys_of(collection, doc_id);
                    doomed.iter().for_each(|key| drop(state.records.remove(key)));
                    effects.removed.push(doomed);
                }
            }
        }
        state.position = manifest.position;
        Ok(effects)
    }

    fn load(&self, records: Vec<DocRecord>) -> Result<(), IndexError> {
        let keyed = records.into_iter().map(|record| (RecordKey::of(&record), record));
        self.state.write().records.extend(keyed);
        Ok(())
    }

    fn finish_load(&self, position: Position) -> Result<(), IndexError> {
        self.state.write().position = position;
        Ok(())
    }

    fn get(&self, key: &RecordKey) -> Result<Option<DocRecord>, IndexError> {
        Ok(self.state.read().records.get(key).cloned())
    }

    fn newest(&self, collection: &str, doc_id: &str) -> Result<Option<DocRecord>, IndexError> {
        let state = self.state.read();
        let keys = state.keys_of(collection, doc_id);
        let records = keys.iter().filter_map(|key| state.records.get(key));
        Ok(records.max_by(|a, b| age(a).cmp(&age(b))).cloned())
    }

    fn list(&self, query: &ListQuery) -> Result<Page, IndexError> {
        let state = self.state.read();
        let mut page = Page::default();
        let mut bytes = 0;
        let selected = state.records.iter().filter(|(key, _)| query.selects(key));
        for (seen, (key, record)) in selected.enumerate() {
            if query.is_full(page.records.len(), bytes, seen) {
                page.more = true;
                break;
            }
            page.last = Some(key.clone());
            let Some(record) = query.shown(record.clone()) else { continue };
            bytes += record.encoded_len();
            page.records.push(record);
        }
        Ok(page)
    }

    fn flush(&self) -> Result<(), IndexError> {
        Ok(())
    }
}
