//! A store and an index directory for one test.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use e2llm_api::v1::index_server::Index;
use e2llm_api::v1::{self, DocRecord, Segment};
use e2llm_index::{IndexError, IndexOptions, IndexService, UnixClock};
use e2llm_store::{ChunkMeta, ContentHash, SoftPrompt, Store};
use half::f16;
use tonic::{Request, Status};

pub(crate) const COLLECTION: &str = "c";
pub(crate) const FINGERPRINT: &str = "bundle-4x";

/// A local store and an index directory, gone with the value.
pub(crate) struct Site {
    root: tempfile::TempDir,
    options: IndexOptions,
    /// How far the index's clock is ahead, in milliseconds.
    ahead: Arc<AtomicU64>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let ahead = Arc::new(AtomicU64::new(0));
        let shown = ahead.clone();
        let clock = UnixClock::new(move || unix_ms(SystemTime::now()) + shown.load(Ordering::SeqCst));
        Self { root: tempfile::tempdir().unwrap(), options: IndexOptions { clock, ..IndexOptions::default() }, ahead }
    }

    /// Has the index believe that so much time has passed.
    pub(crate) fn wait(&self, hours: u64) {
        self.ahead.fetch_add(hours * 3_600_000, Ordering::SeqCst);
    }

    pub(crate) fn with_snapshots_every(manifests: u64) -> Self {
        let site = Self::new();
        Self { options: IndexOptions { snapshot_every: manifests, ..site.options.clone() }, ..site }
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.root.path().to_owned()
    }

    pub(crate) fn index_dir(&self) -> PathBuf {
        self.root().join("index")
    }

    /// Where sled keeps its files.
    pub(crate) fn view(&self) -> PathBuf {
        self.index_dir().join("view")
    }

    pub(crate) fn set_aside(&self) -> usize {
        let entries = std::fs::read_dir(self.index_dir()).unwrap();
        entries.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with("set-aside-")).count()
    }

    /// Path of manifest `number` on disk.
    pub(crate) fn manifest(&self, number: u64) -> PathBuf {
        self.root().join(format!("store/index/main/manifests/{number:020}"))
    }

    pub(crate) fn manifests(&self) -> usize {
        std::fs::read_dir(self.root().join("store/index/main/manifests")).unwrap().count()
    }

    pub(crate) async fn store(&self) -> Store {
        Store::open(self.root().join("store").to_str().unwrap()).await.unwrap()
    }

    pub(crate) async fn try_open(&self) -> Result<IndexService, IndexError> {
        IndexService::open_with(self.store().await, &self.index_dir(), "main", self.options.clone()).await
    }

    pub(crate) async fn open(&self) -> IndexService {
        self.try_open().await.unwrap()
    }
}

/// A valid record; its vector points into a direction of its own.
pub(crate) fn record(doc_id: &str) -> DocRecord {
    let hash = |what: &str| ContentHash::of(format!("{what} {doc_id}").as_bytes()).to_string();
    let seed = ContentHash::of(doc_id.as_bytes());
    let vector = seed.as_str().bytes().take(16).map(|digit| f32::from(digit) - 70.0);
    DocRecord {
        collection: COLLECTION.into(),
        doc_id: doc_id.into(),
        fingerprint: FINGERPRINT.into(),
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
        mean_vector: vector.flat_map(f32::to_le_bytes).collect(),
        ..DocRecord::default()
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A record whose text and soft prompt are stored, as an encoder would have it: documents of one text share both.
pub(crate) async fn stored(store: &Store, doc_id: &str, text: &str) -> DocRecord {
    let text_ref = store.put_text(text).await.unwrap();
    let segment = store.put_blob(&soft_prompt(text)).await.unwrap();
    DocRecord { text_hash: text_ref.hash, text_bytes: text_ref.bytes, segments: vec![segment], ..record(doc_id) }
}

pub(crate) fn soft_prompt(text: &str) -> SoftPrompt {
    let end = text.len() as u64;
    SoftPrompt {
        fingerprint: FINGERPRINT.into(),
        ratio: 4,
        input_key: ContentHash::of(format!("input {text}").as_bytes()).to_string(),
        text_hash: ContentHash::of(text.as_bytes()).to_string(),
        text_start: 0,
        text_end: end,
        d_model: 2,
        d_enc: 2,
        chunks: vec![ChunkMeta { text_start: 0, text_end: end, tokens: 4, soft_tokens: 1 }],
        soft: vec![f16::from_f32(text.len() as f32); 2],
        vectors: vec![f16::ONE; 2],
    }
}

pub(crate) async fn commit(index: &IndexService, records: Vec<DocRecord>) -> Result<u64, Status> {
    let response = index.commit(Request::new(v1::CommitRequest { records })).await?;
    Ok(response.into_inner().manifest)
}

/// Commits documents one by one, each in a manifest of its own.
pub(crate) async fn commit_each(index: &IndexService, ids: impl IntoIterator<Item = String>) {
    for id in ids {
        commit(index, vec![record(&id)]).await.unwrap();
    }
}

pub(crate) async fn delete(index: &IndexService, ids: &[&str]) -> v1::DeleteResponse {
    let doc_ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let request = v1::DeleteRequest { collection: COLLECTION.into(), doc_ids };
    index.delete(Request::new(request)).await.unwrap().into_inner()
}

pub(crate) async fn get(index: &IndexService, doc_id: &str) -> Result<DocRecord, Status> {
    let key = v1::DocKey { collection: COLLECTION.into(), doc_id: doc_id.into(), ..Default::default() };
    let response = index.get(Request::new(v1::GetRequest { key: Some(key) })).await?;
    Ok(response.into_inner().record.unwrap())
}

/// All records of the collection, in order.
pub(crate) async fn all(index: &IndexService) -> Vec<DocRecord> {
    let mut request = v1::ListRequest { collection: COLLECTION.into(), page_size: 1000, ..Default::default() };
    let mut records = Vec::new();
    loop {
        let page = index.list(Request::new(request.clone())).await.unwrap().into_inner();
        records.extend(page.records);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return records;
        }
    }
}

pub(crate) async fn search(index: &IndexService, like: &str, limit: u32) -> Vec<(String, f32)> {
    let vector = record(like).mean_vector.as_chunks::<4>().0.iter().map(|f| f32::from_le_bytes(*f)).collect();
    let request = v1::SearchRequest { collection: COLLECTION.into(), fingerprint: FINGERPRINT.into(), vector, limit };
    let hits = index.search(Request::new(request)).await.unwrap().into_inner().hits;
    hits.into_iter().map(|hit| (hit.record.unwrap().doc_id, hit.score)).collect()
}

/// Everything a caller can see: records and a search.
pub(crate) async fn answers(index: &IndexService) -> (Vec<DocRecord>, Vec<(String, f32)>) {
    (all(index).await, search(index, "d7", 20).await)
}
