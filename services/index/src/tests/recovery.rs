//! A view that fails while in use is opened again, by whoever comes next.

use std::time::Duration;

use e2llm_api::v1::index_server::Index;
use e2llm_api::v1::{CommitRequest, DocKey, DocRecord, GetRequest};
use e2llm_store::Store;
use tonic::{Code, Request, Status};

use super::support::record;
use crate::{IndexError, IndexService};

struct Running {
    index: IndexService,
    dir: tempfile::TempDir,
}

impl Running {
    async fn with_document(doc_id: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open("memory://").await.unwrap();
        let running = Self { index: IndexService::open(store, dir.path(), "main").await.unwrap(), dir };
        running.commit(doc_id).await.unwrap();
        running
    }

    async fn commit(&self, doc_id: &str) -> Result<(), Status> {
        let records = vec![record("c", doc_id, "f", 1)];
        self.index.commit(Request::new(CommitRequest { records })).await.map(drop)
    }

    async fn get(&self, doc_id: &str) -> Result<DocRecord, Status> {
        let key = DocKey { collection: "c".into(), doc_id: doc_id.into(), ..Default::default() };
        let response = self.index.get(Request::new(GetRequest { key: Some(key) })).await?;
        Ok(response.into_inner().record.unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_finds_no_view_has_it_reopened() {
    let running = Running::with_document("a").await;
    drop(running.index.shared.take("gone"));
    assert_eq!(running.get("a").await.unwrap_err().code(), Code::Unavailable);
    for _ in 0..500 {
        if running.get("a").await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the view did not come back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_after_a_failure_meets_a_view_that_caught_up() {
    let running = Running::with_document("a").await;
    let before = running.index.shared.live().unwrap();
    let failing = std::sync::Arc::downgrade(&before);
    drop(before);
    let failed: Result<(), IndexError> = running.index.read(|_| Err(IndexError::View("a test says so".into()))).await;
    assert!(failed.is_err());
    running.commit("b").await.unwrap();
    assert!(failing.upgrade().is_none(), "the view that failed is still in use");
    assert_eq!(running.get("a").await.unwrap().version, 1);
    assert_eq!(running.get("b").await.unwrap().version, 2);
    assert_eq!(std::fs::read_dir(running.dir.path()).unwrap().count(), 2, "lock and view");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_read_is_a_failure_of_the_view_and_no_more() {
    let running = Running::with_document("a").await;
    let failed: Result<(), IndexError> = running.index.read(|_| panic!("as sled does on damaged pages")).await;
    assert!(matches!(failed, Err(IndexError::View(_))), "{failed:?}");
    running.commit("b").await.unwrap();
    assert!(running.get("a").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_writes_are_bounded_by_their_bytes() {
    let running = Running::with_document("a").await;
    let waiting: Vec<_> = (0..4).map(|_| running.index.shared.admit(16 << 20).unwrap()).collect();
    let refused = running.commit("b").await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("67108864 bytes"), "{refused}");
    drop(waiting);
    running.commit("b").await.unwrap();
}
