//! What is read again does not come from the store again, and is never served unverified.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;
use std::sync::Arc;

use e2llm_api::ErrorCode;
use e2llm_store::{BlobName, CacheLimits, ReadCache, Store};
use support::soft_prompt;

fn limits(memory: u64, disk: Option<&Path>) -> CacheLimits {
    CacheLimits { memory, disk: disk.map(|directory| (directory.to_owned(), 1 << 30)) }
}

/// A store in memory with one soft prompt, and how to take it away.
async fn stored() -> (Store, e2llm_api::v1::Segment, String) {
    let store = Store::open("memory://").await.unwrap();
    let segment = store.put_blob(&soft_prompt("a", 3, 1)).await.unwrap();
    let path = BlobName::new(&segment.input_key, &segment.content_hash).unwrap().path();
    (store, segment, path)
}

#[tokio::test]
async fn the_second_read_is_from_memory() {
    let (store, segment, path) = stored().await;
    let text = store.put_text("a text").await.unwrap();
    let cache = ReadCache::new(store.clone(), limits(1 << 20, None));
    let first = cache.soft_prompt(&segment).await.unwrap();
    assert_eq!(*first, store.get_blob(&segment).await.unwrap());
    assert_eq!(&*cache.text(&text.hash).await.unwrap(), "a text");
    store.delete(&path).await.unwrap();
    assert_eq!(store.get_blob(&segment).await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(cache.soft_prompt(&segment).await.unwrap(), first);
}

#[tokio::test]
async fn readers_at_the_same_time_share_one_fetch() {
    let (store, segment, _) = stored().await;
    let cache = ReadCache::new(store, limits(1 << 20, None));
    let read = futures::future::try_join_all((0..8).map(|_| cache.soft_prompt(&segment))).await.unwrap();
    assert!(read.iter().all(|prompt| Arc::ptr_eq(prompt, &read[0])));
}

#[tokio::test]
async fn a_failed_read_is_tried_again() {
    let (store, segment, path) = stored().await;
    let cache = ReadCache::new(store.clone(), limits(1 << 20, None));
    store.delete(&path).await.unwrap();
    assert_eq!(cache.soft_prompt(&segment).await.unwrap_err().code(), ErrorCode::NotFound);
    store.put_blob(&soft_prompt("a", 3, 1)).await.unwrap();
    assert_eq!(cache.soft_prompt(&segment).await.unwrap().input_key, segment.input_key);
}

#[tokio::test]
async fn a_record_that_differs_is_refused_from_memory_too() {
    let (store, segment, _) = stored().await;
    let cache = ReadCache::new(store, limits(1 << 20, None));
    cache.soft_prompt(&segment).await.unwrap();
    let wrong = e2llm_api::v1::Segment { chunks: segment.chunks + 1, ..segment };
    let error = cache.soft_prompt(&wrong).await.unwrap_err();
    assert!(error.to_string().contains("differs from the record"), "{error}");
}

#[tokio::test]
async fn the_disk_outlives_the_process_and_is_verified() {
    let (store, segment, path) = stored().await;
    let folder = tempfile::tempdir().unwrap();
    // Nothing fits this memory.
    let open = || ReadCache::new(store.clone(), limits(0, Some(folder.path())));
    let first = open().soft_prompt(&segment).await.unwrap();
    store.delete(&path).await.unwrap();
    assert_eq!(open().soft_prompt(&segment).await.unwrap(), first, "the next process has it");
    let file = folder.path().join(&segment.content_hash);
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(open().soft_prompt(&segment).await.unwrap_err().code(), ErrorCode::NotFound, "damaged, and gone");
    assert!(!file.exists());
    store.put_blob(&soft_prompt("a", 3, 1)).await.unwrap();
    assert_eq!(open().soft_prompt(&segment).await.unwrap(), first);
    assert!(file.exists());
}

#[tokio::test]
async fn a_store_in_a_directory_needs_no_copies() {
    let (folder, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(folder.path().to_str().unwrap()).await.unwrap();
    let segment = store.put_blob(&soft_prompt("a", 3, 1)).await.unwrap();
    let cache = ReadCache::new(store, limits(0, Some(copies.path())));
    cache.soft_prompt(&segment).await.unwrap();
    assert_eq!(std::fs::read_dir(copies.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn without_a_directory_for_copies_the_store_is_read() {
    let (store, segment, _) = stored().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let cache = ReadCache::new(store, limits(0, Some(file.path())));
    assert_eq!(cache.soft_prompt(&segment).await.unwrap().input_key, segment.input_key);
}
