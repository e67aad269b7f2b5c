//! A damaged log is named, never skipped; snapshots shorten the replay and can outlive damage.

use std::fs;
use std::path::Path;

use e2llm_index::FindingKind;

use super::support::{Site, all, answers, commit_each, delete};

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn ids(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
    range.map(|n| format!("d{n}"))
}

async fn filled(site: &Site, manifests: usize) {
    let index = site.open().await;
    commit_each(&index, ids(0..manifests)).await;
    index.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_over_a_corrupt_manifest_fails_with_its_name() {
    let site = Site::new();
    filled(&site, 6).await;
    flip(&site.manifest(4));
    fs::remove_dir_all(site.index_dir()).unwrap();
    for _ in 0..2 {
        let error = site.try_open().await.unwrap_err().to_string();
        assert!(error.contains("index/main/manifests/00000000000000000004 is corrupt"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_over_a_missing_manifest_fails_with_its_name() {
    let site = Site::new();
    filled(&site, 6).await;
    fs::remove_file(site.manifest(2)).unwrap();
    fs::remove_dir_all(site.index_dir()).unwrap();
    let error = site.try_open().await.unwrap_err().to_string();
    assert!(error.contains("index/main/manifests/00000000000000000002 is missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_outlives_damage_of_the_log_and_repair_writes_a_snapshot() {
    let site = Site::new();
    filled(&site, 6).await;
    flip(&site.manifest(4));
    let index = site.open().await;
    let before = answers(&index).await;
    assert_eq!(before.0.len(), 6);
    let refused = index.rebuild().await.unwrap_err().to_string();
    assert!(refused.contains("00000000000000000004"), "{refused}");
    let findings = index.verify().await.unwrap();
    let kinds: Vec<FindingKind> = findings.iter().map(|finding| finding.kind).collect();
    assert_eq!(kinds, [FindingKind::ManifestAtRisk], "{findings:?}");
    assert!(findings[0].name.ends_with("00000000000000000004"));
    assert_eq!(index.repair(&findings).await.unwrap(), []);
    assert_eq!(index.verify().await.unwrap()[0].kind, FindingKind::ManifestCovered);
    index.close().await.unwrap();
    fs::remove_dir_all(site.index_dir()).unwrap();
    assert_eq!(answers(&site.open().await).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_last_manifest_does_not_cost_the_view() {
    let site = Site::new();
    filled(&site, 3).await;
    flip(&site.manifest(3));
    let index = site.open().await;
    assert_eq!(all(&index).await.len(), 3);
    assert_eq!(site.set_aside(), 0);
    assert_eq!(index.verify().await.unwrap()[0].kind, FindingKind::ManifestAtRisk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_starts_from_the_newest_snapshot() {
    let site = Site::with_snapshots_every(5);
    filled(&site, 23).await;
    let index = site.open().await;
    delete(&index, &["d1"]).await;
    let before = answers(&index).await;
    assert_eq!(index.verify().await.unwrap(), []);
    index.close().await.unwrap();
    // without the manifests before the snapshots, only the snapshots can give these answers
    (1..=20).for_each(|number| fs::remove_file(site.manifest(number)).unwrap());
    fs::remove_dir_all(site.index_dir()).unwrap();
    assert_eq!(answers(&site.open().await).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_snapshot_is_passed_over_named_and_removed_on_repair() {
    let site = Site::with_snapshots_every(5);
    filled(&site, 12).await;
    let snapshot = site.root().join("store/index/main/snapshots/00000000000000000010");
    let part = fs::read_dir(&snapshot).unwrap().map(|e| e.unwrap().path()).find(|p| !p.ends_with("head"));
    flip(&part.unwrap());
    fs::remove_dir_all(site.index_dir()).unwrap();
    let index = site.open().await;
    assert_eq!(all(&index).await.len(), 12);
    let findings = index.verify().await.unwrap();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].kind, FindingKind::Snapshot);
    assert!(findings[0].message.contains("snapshots/00000000000000000010"), "{}", findings[0]);
    index.repair(&findings).await.unwrap();
    assert_eq!(index.verify().await.unwrap(), []);
    assert!(!snapshot.join("head").exists());
    assert_eq!(site.store().await.list("quarantine/index").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn references_are_those_of_live_records() {
    let site = Site::new();
    filled(&site, 4).await;
    let index = site.open().await;
    delete(&index, &["d2"]).await;
    let references = index.referenced().await.unwrap();
    let records = all(&index).await;
    assert_eq!((references.blobs.len(), references.texts.len()), (3, 3));
    for record in records {
        assert!(references.texts.iter().any(|hash| hash.as_str() == record.text_hash));
        let key = &record.segments[0].input_key;
        assert!(references.blobs.iter().any(|blob| blob.input_key.as_str() == key));
    }
}
