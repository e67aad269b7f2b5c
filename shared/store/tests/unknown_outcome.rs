//! Create-only puts whose answer is lost: the object store did something, nobody knows what.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use e2llm_api::ErrorCode;
use e2llm_store::{Created, Store};
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What happens to one put.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Written, and the answer lost.
    AnswerLost,
    /// Not written, and no answer.
    RequestLost,
    /// Another writer's object is written meanwhile, and no answer.
    OvertakenAndLost,
    /// 409 although there is nothing, as S3 answers while another writer is at it.
    Conflict,
}

/// An object store whose next puts fail in the given ways.
#[derive(Debug, Default)]
struct Faulty {
    inner: InMemory,
    faults: Mutex<VecDeque<Fault>>,
}

const THEIRS: &str = "writer b, nonce 1";
const OURS: &str = "writer a, nonce 1";

fn timeout() -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: "operation timed out".into() }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let fault = self.faults.lock().unwrap().pop_front();
        match fault {
            None => self.inner.put_opts(at, payload, options).await,
            Some(Fault::RequestLost) => Err(timeout()),
            Some(Fault::AnswerLost) => {
                self.inner.put_opts(at, payload, options).await?;
                Err(timeout())
            }
            Some(Fault::OvertakenAndLost) => {
                self.inner.put(at, PutPayload::from_static(THEIRS.as_bytes())).await?;
                Err(timeout())
            }
            Some(Fault::Conflict) => {
                let source = "409 ConditionalRequestConflict".into();
                Err(object_store::Error::AlreadyExists { path: at.to_string(), source })
            }
        }
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

/// The outcome of creating an object under these faults, and the object's bytes afterwards.
async fn create(faults: &[Fault]) -> (Result<Created, e2llm_store::StoreError>, Option<String>) {
    let objects = Arc::new(Faulty::default());
    let store = Store::from_object_store(objects.clone(), "memory://").await.unwrap();
    objects.faults.lock().unwrap().extend(faults);
    let outcome = store.create("commits/1", OURS).await;
    let stored = store.get("commits/1").await.unwrap();
    (outcome, stored.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()))
}

#[tokio::test(start_paused = true)]
async fn a_put_that_was_written_is_ours_although_its_answer_was_lost() {
    let (outcome, stored) = create(&[Fault::AnswerLost]).await;
    assert_eq!((outcome.unwrap(), stored.as_deref()), (Created::New, Some(OURS)));
}

#[tokio::test(start_paused = true)]
async fn a_put_that_was_not_written_is_tried_again() {
    let (outcome, stored) = create(&[Fault::RequestLost, Fault::Conflict, Fault::RequestLost]).await;
    assert_eq!((outcome.unwrap(), stored.as_deref()), (Created::New, Some(OURS)));
}

#[tokio::test(start_paused = true)]
async fn a_put_overtaken_by_another_writer_is_theirs() {
    let (outcome, stored) = create(&[Fault::RequestLost, Fault::OvertakenAndLost]).await;
    assert_eq!((outcome.unwrap(), stored.as_deref()), (Created::Exists, Some(THEIRS)));
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded_and_the_last_failure_is_retriable() {
    for fault in [Fault::RequestLost, Fault::Conflict] {
        let (outcome, stored) = create(&[fault; 100]).await;
        let error = outcome.unwrap_err();
        assert_eq!((error.code(), stored), (ErrorCode::Unavailable, None), "{error}");
    }
}
