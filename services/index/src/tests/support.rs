//! Records and manifests for tests.

use std::path::Path;

use e2llm_api::v1::{DocRecord, Segment, Summary, SummaryOf};
use e2llm_store::Store;
use e2llm_store::manifest::{Append, Change, Manifest, ManifestLog, Position};

/// A valid record whose contents depend on `salt`.
pub(super) fn record(collection: &str, doc_id: &str, fingerprint: &str, salt: u64) -> DocRecord {
    let hash = |what: &str| blake3_hex(&format!("{what} {salt}"));
    let vector = [1.0, salt as f32, (salt % 7) as f32 - 3.0];
    DocRecord {
        collection: collection.into(),
        doc_id: doc_id.into(),
        fingerprint: fingerprint.into(),
        ratio: 4,
        text_hash: hash("text"),
        text_bytes: 1000,
        text_stored: true,
        segments: vec![Segment {
            input_key: hash("input"),
            content_hash: hash("content"),
            text_end: 1000,
            ..Segment::default()
        }],
        mean_vector: vector.iter().flat_map(|value| value.to_le_bytes()).collect(),
        encoded_unix_ms: salt,
        ..DocRecord::default()
    }
}

fn blake3_hex(text: &str) -> String {
    e2llm_store::ContentHash::of(text.as_bytes()).to_string()
}

/// A log whose manifests are made for one test.
pub(super) struct Script {
    log: ManifestLog,
    last: Position,
}

impl Script {
    pub(super) async fn new() -> Self {
        let store = Store::open("memory://").await.unwrap();
        Self { log: ManifestLog::new(store, "main").unwrap(), last: Position::default() }
    }

    pub(super) async fn manifest(&mut self, changes: Vec<Change>) -> Manifest {
        let Append::Mine(manifest) = self.log.append(self.last, &changes).await.unwrap() else {
            panic!("the script has one writer");
        };
        self.last = manifest.position;
        manifest
    }
}

pub(super) fn delete(collection: &str, doc_id: &str) -> Change {
    Change::Delete { collection: collection.into(), doc_id: doc_id.into() }
}

/// The summary `text` of a record made with `salt`.
pub(super) fn summary(collection: &str, doc_id: &str, fingerprint: &str, salt: u64, text: &str) -> SummaryOf {
    let DocRecord { collection, doc_id, fingerprint, text_hash, .. } = record(collection, doc_id, fingerprint, salt);
    let summary = Some(Summary { text: text.to_owned(), created_unix_ms: salt, ..Summary::default() });
    SummaryOf { collection, doc_id, fingerprint, text_hash, summary }
}

pub(super) fn open_sled(path: &Path) -> crate::sled_index::SledIndex {
    let owner = crate::sled_index::Owner { store_id: "s".into(), shard: "main".into() };
    crate::sled_index::SledIndex::create(path, &owner).unwrap()
}
