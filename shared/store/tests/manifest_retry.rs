//! An append whose first put was written while its answer was lost, and whose retry met its own object.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use e2llm_store::Store;
use e2llm_store::manifest::{Append, Change, ManifestLog, Position};
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};

/// Answers every put of a manifest as a client does that retried by itself: written, then "already exists".
#[derive(Debug, Default)]
struct Retrying(InMemory);

#[async_trait]
impl ObjectStore for Retrying {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let result = self.0.put_opts(at, payload, options).await?;
        if at.as_ref().contains("manifests") {
            let source = "412 PreconditionFailed".into();
            return Err(object_store::Error::AlreadyExists { path: at.to_string(), source });
        }
        Ok(result)
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(at, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

impl fmt::Display for Retrying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Retrying")
    }
}

#[tokio::test]
async fn an_append_that_finds_its_own_manifest_succeeded() {
    let store = Store::from_object_store(Arc::new(Retrying::default()), "memory://").await.unwrap();
    let log = ManifestLog::new(store, "main").unwrap();
    let change = Change::Delete { collection: "c".into(), doc_id: "a".into() };
    let mut last = Position::default();
    for number in 1..=3 {
        let Append::Mine(manifest) = log.append(last, std::slice::from_ref(&change)).await.unwrap() else {
            panic!("our own manifest was taken for another's");
        };
        assert_eq!(manifest.position.number, number);
        last = manifest.position;
    }
    assert_eq!(log.numbers().await.unwrap().len(), 3);
}
