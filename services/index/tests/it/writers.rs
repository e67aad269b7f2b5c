//! Many callers, and several writers on one log.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use e2llm_index::{IndexOptions, IndexService};
use futures::FutureExt;
use futures::future::join_all;

use super::support::{Site, all, commit, delete, get, record};

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_commits_share_manifests() {
    let site = Site::new();
    let index = site.open().await;
    let commits = (0..400).map(|n| {
        let index = index.clone();
        tokio::spawn(async move { commit(&index, vec![record(&format!("d{n}"))]).await.unwrap() })
    });
    let numbers: BTreeSet<u64> = join_all(commits).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(all(&index).await.len(), 400);
    assert_eq!(site.manifests(), numbers.len());
    assert!(numbers.len() < 100, "{} manifests for 400 commits", numbers.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_can_be_read_at_once() {
    let site = Site::new();
    let index = site.open().await;
    let tasks = (0..20).map(|task| {
        let index = index.clone();
        tokio::spawn(async move {
            for n in 0..10 {
                let id = format!("t{task}-{n}");
                let manifest = commit(&index, vec![record(&id)]).await.unwrap();
                assert_eq!(get(&index, &id).await.unwrap().version, manifest);
                let answer = delete(&index, &[&id, "never-there", &id]).await;
                assert_eq!((answer.deleted, answer.unknown), (vec![id.clone()], vec!["never-there".to_owned()]));
                assert_eq!(get(&index, &id).await.unwrap_err().code(), tonic::Code::NotFound);
            }
        })
    });
    join_all(tasks).await.into_iter().for_each(|task| task.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_on_one_log_interleave_without_loss() {
    let site = Site::new();
    let first = site.open().await;
    let other_dir = site.root().join("other-index");
    let second = IndexService::open(site.store().await, &other_dir, "main").await.unwrap();
    let write = |index: &IndexService, name: &'static str| {
        let index = index.clone();
        tokio::spawn(async move {
            for round in 0..15 {
                let commits = (0..4).map(|n| commit(&index, vec![record(&format!("{name}-{round}-{n}"))]).boxed());
                assert!(join_all(commits).await.iter().all(Result::is_ok));
            }
        })
    };
    let (a, b) = tokio::join!(write(&first, "first"), write(&second, "second"));
    a.unwrap();
    b.unwrap();
    assert_eq!(first.refresh().await.unwrap(), second.refresh().await.unwrap());
    let records = all(&first).await;
    assert_eq!(records.len(), 120);
    assert_eq!(all(&second).await, records);
    assert_eq!(first.verify().await.unwrap(), []);
    assert_eq!(second.verify().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_reaches_records_of_another_writer() {
    let site = Site::new();
    let first = site.open().await;
    let second = IndexService::open(site.store().await, &site.root().join("other"), "main").await.unwrap();
    commit(&second, vec![record("a")]).await.unwrap();
    assert_eq!(delete(&first, &["a"]).await.deleted, ["a"]);
    second.refresh().await.unwrap();
    assert!(get(&second, "a").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_index_answers_as_unavailable() {
    let site = Site::new();
    let index = site.open().await;
    index.close().await.unwrap();
    for status in [commit(&index, vec![record("a")]).await.unwrap_err(), get(&index, "a").await.unwrap_err()] {
        assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
    }
    assert_eq!(all(&site.open().await).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_do_not_see_each_other() {
    let site = Site::new();
    let main = site.open().await;
    let other = IndexService::open(site.store().await, &site.root().join("other"), "b").await.unwrap();
    commit(&main, vec![record("a")]).await.unwrap();
    other.refresh().await.unwrap();
    assert_eq!(all(&other).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_follows_the_index_and_refuses_to_write() {
    let site = Site::new();
    let index = site.open().await;
    commit(&index, vec![record("before")]).await.unwrap();
    let follow = IndexOptions { follow_every: Some(Duration::from_millis(20)), ..IndexOptions::default() };
    let directory = site.root().join("replica");
    let replica = IndexService::open_with(site.store().await, &directory, "main", follow).await.unwrap();
    assert_eq!(all(&replica).await, all(&index).await);
    commit(&index, vec![record("after")]).await.unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while get(&replica, "after").await.is_err() {
        assert!(Instant::now() < until, "the replica does not follow");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = commit(&replica, vec![record("other")]).await.unwrap_err();
    assert!(refused.message().contains("read replica"), "{refused:?}");
    assert!(get(&index, "other").await.is_err());
    replica.close().await.unwrap();
    assert_eq!(all(&index).await.len(), 2);
}
