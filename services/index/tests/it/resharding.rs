//! From one index to several and back: nothing is lost, whenever it is stopped.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use e2llm_api::v1::index_server::Index;
use e2llm_api::v1::{self, DocRecord, Summary};
use e2llm_index::{GarbageOptions, HeldTexts, IndexError, IndexOptions, IndexService, Shard, reshard};
use e2llm_store::Store;
use tonic::Request;

use super::child::{ROOT, spawn};
use super::support::{COLLECTION, FINGERPRINT, Site, all, commit, delete, get, record, stored};

/// The newest fingerprint of each document, with its summary's text.
type Documents = BTreeMap<String, (String, Option<String>)>;

async fn open(store: Store, root: &Path, number: u32, of: u32) -> Result<IndexService, IndexError> {
    let shard = Shard::new(number, of).unwrap();
    let options = IndexOptions { shard, ..IndexOptions::default() };
    IndexService::open_with(store, &root.join("views").join(shard.log()), &shard.log(), options).await
}

async fn shards(site: &Site, of: u32) -> Vec<IndexService> {
    let mut shards = Vec::new();
    for number in 0..of {
        shards.push(open(site.store().await, &site.root(), number, of).await.unwrap());
    }
    shards
}

/// What the shards have between them; each document from the one that answers for it.
async fn documents(shards: &[IndexService]) -> Documents {
    let mut documents = Documents::new();
    for shard in shards {
        for DocRecord { doc_id, .. } in all(shard).await {
            let newest = get(shard, &doc_id).await.unwrap();
            documents.insert(doc_id, (newest.fingerprint, newest.summary.map(|summary| summary.text)));
        }
    }
    documents
}

async fn close(shards: Vec<IndexService>) {
    for shard in shards {
        shard.close().await.unwrap();
    }
}

/// Documents of one and of two fingerprints, the newer one of which sorts first; with summaries; one deleted again.
async fn fill(index: &IndexService) {
    let newer = |id: &str| DocRecord { fingerprint: "a-newer".into(), ..record(id) };
    let ids: Vec<String> = (0..120).map(|number| format!("d{number:03}")).collect();
    for ids in ids.chunks(20) {
        commit(index, ids.iter().map(|id| record(id)).collect()).await.unwrap();
        commit(index, ids.iter().step_by(3).map(|id| newer(id)).collect()).await.unwrap();
    }
    let summary = |id: &String| {
        let DocRecord { doc_id, text_hash, .. } = record(id);
        let fingerprint = if id.ends_with('0') { "a-newer" } else { FINGERPRINT }.to_owned();
        let summary = Some(Summary { text: format!("on {id}"), ..Summary::default() });
        v1::DocSummary { doc_id, fingerprint, text_hash, summary }
    };
    let summaries = ids.iter().step_by(2).map(summary).collect();
    let request = v1::PutSummariesRequest { collection: COLLECTION.into(), summaries };
    index.put_summaries(Request::new(request)).await.unwrap();
    delete(index, &["d007"]).await;
}

async fn move_to(site: &Site, numbers: (u32, u32)) -> Result<u64, IndexError> {
    let moved = reshard(&site.store().await, &site.root().join("moving"), numbers, |_| {}).await?;
    Ok(moved.records)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_index_becomes_three_and_one_again() {
    let site = Site::new();
    let whole = shards(&site, 1).await;
    fill(&whole[0]).await;
    let before = documents(&whole).await;
    assert!(
        before.len() == 119 && before["d000"] == ("a-newer".into(), Some("on d000".into())),
        "{:?}",
        before["d000"]
    );
    assert_eq!(move_to(&site, (1, 3)).await.unwrap(), 161);

    // Who still runs the old index reads from it and commits nothing.
    let refused = commit(&whole[0], vec![record("late")]).await.unwrap_err();
    assert!(refused.message().contains("index of 3 shards"), "{refused:?}");
    assert_eq!(documents(&whole).await, before);
    close(whole).await;
    let refused = open(site.store().await, &site.root(), 0, 1).await.unwrap_err();
    assert_eq!(refused, IndexError::HandedOver { shards: 3 });

    let three = shards(&site, 3).await;
    assert_eq!(documents(&three).await, before);
    let mut after = before.clone();
    for id in ["d001", "e1"] {
        let owner = three.iter().map(|shard| commit(shard, vec![record(id)]));
        let taken = futures::future::join_all(owner).await.iter().filter(|taken| taken.is_ok()).count();
        assert_eq!(taken, 1, "{id}");
    }
    after.insert("e1".into(), (FINGERPRINT.into(), None));
    for shard in &three {
        if get(shard, "d002").await.is_ok() {
            delete(shard, &["d002"]).await;
            after.remove("d002");
        }
    }
    assert_eq!(documents(&three).await, after);
    close(three).await;

    // The old log still had the document that was deleted since, and a view of it.
    move_to(&site, (3, 1)).await.unwrap();
    let whole = shards(&site, 1).await;
    assert_eq!(documents(&whole).await, after);
    assert_eq!(whole[0].verify().await.unwrap(), []);
    close(whole).await;
    assert_eq!(open(site.store().await, &site.root(), 1, 3).await.unwrap_err(), IndexError::HandedOver { shards: 1 });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_lose_documents_is_refused() {
    let site = Site::new();
    let refused = async |numbers| move_to(&site, numbers).await.unwrap_err().to_string();
    assert!(refused((1, 3)).await.contains("no index of 1 shards"));
    let whole = shards(&site, 1).await;
    commit(&whole[0], vec![record("a")]).await.unwrap();
    close(whole).await;
    assert!(refused((1, 1)).await.contains("as before"));
    assert!(refused((4, 1)).await.contains("no index of 4 shards"));
    let two = shards(&site, 2).await;
    for shard in &two {
        // Whichever it belongs to.
        drop(commit(shard, vec![record("b")]).await);
    }
    close(two).await;
    assert!(refused((1, 2)).await.contains("another index of 2 shards"));
    move_to(&site, (1, 3)).await.unwrap();
    assert_eq!(move_to(&site, (1, 3)).await.unwrap(), 0, "it is done already");
    assert!(refused((1, 4)).await.contains("index of 3 shards now"));
    move_to(&site, (3, 4)).await.unwrap();
    assert!(refused((1, 3)).await.contains("index of 4 shards now"), "an old command must not bring back what was");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_not_collected_by_an_index_that_was_handed_over() {
    let site = Site::new();
    let (whole, store) = (site.open().await, site.store().await);
    let unused = stored(&store, "unused", "It is in no record of this index.").await;
    let run = whole.find_garbage(GarbageOptions::default()).await.unwrap();
    commit(&whole, vec![record("a")]).await.unwrap();
    move_to(&site, (1, 3)).await.unwrap();
    let swept = run.sweep(HeldTexts::default()).await.map(drop).unwrap_err();
    assert_eq!(swept, IndexError::HandedOver { shards: 3 });
    assert_eq!(store.get_text(&unused.text_hash).await.unwrap(), "It is in no record of this index.");
    let refused = whole.find_garbage(GarbageOptions::default()).await.map(drop).unwrap_err();
    assert_eq!(refused, IndexError::HandedOver { shards: 3 });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_was_never_stopped_goes_on_when_it_gets_its_documents_back() {
    let site = Site::new();
    let whole = shards(&site, 1).await;
    commit(&whole[0], vec![record("a")]).await.unwrap();
    move_to(&site, (1, 3)).await.unwrap();
    commit(&whole[0], vec![record("b")]).await.unwrap_err();
    move_to(&site, (3, 1)).await.unwrap();
    commit(&whole[0], vec![record("b")]).await.unwrap();
    assert_eq!(all(&whole[0]).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn reshards_until_killed() {
    let Some(root) = std::env::var_os(ROOT) else { return };
    let root = std::path::PathBuf::from(root);
    let store = Store::open(root.join("store").to_str().unwrap()).await.unwrap();
    reshard(&store, &root.join("moving"), (1, 3), |_| {}).await.unwrap();
}

/// Killed with nothing written, with a part written, and with one of the new logs complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_reshard_that_was_killed_is_run_again() {
    for (point, complete) in
        [("index.handed_over", 0), ("index.reshard_batch_written", 0), ("index.reshard_shard_complete", 1)]
    {
        let site = Site::new();
        let whole = shards(&site, 1).await;
        fill(&whole[0]).await;
        let before = documents(&whole).await;
        close(whole).await;
        let points = site.root().join("failpoints");
        std::fs::create_dir(&points).unwrap();
        std::fs::write(points.join(point), "1").unwrap();
        let mut child = spawn("resharding::reshards_until_killed", &site.root(), Some(&points));
        let begun = Instant::now();
        while !points.join(format!("{point}.held")).exists() {
            assert!(
                child.try_wait().unwrap().is_none() && begun.elapsed() < Duration::from_secs(60),
                "{point} was not reached"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let refused = open(site.store().await, &site.root(), 0, 1).await.unwrap_err();
        assert_eq!(refused, IndexError::HandedOver { shards: 3 }, "{point}");
        for number in complete..3 {
            let incomplete = open(site.store().await, &site.root(), number, 3).await.unwrap_err();
            assert!(incomplete.to_string().contains("run `e2llm reshard` again"), "{incomplete}");
        }
        move_to(&site, (1, 3)).await.unwrap();
        let three = shards(&site, 3).await;
        assert_eq!(documents(&three).await, before, "{point}");
        close(three).await;
    }
}
