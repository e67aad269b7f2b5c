//! A view that is lost, damaged or not ours comes back with the same answers.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::support::{Site, all, answers, commit, commit_each, delete, get, record};

async fn filled(site: &Site, documents: usize) -> (Vec<e2llm_api::v1::DocRecord>, Vec<(String, f32)>) {
    let index = site.open().await;
    for first in (0..documents).step_by(10) {
        let records = (first..first + 10).map(|n| record(&format!("d{n}"))).collect();
        commit(&index, records).await.unwrap();
    }
    delete(&index, &["d3", "d5"]).await;
    let answers = answers(&index).await;
    assert_eq!(answers.0.len(), documents - 2);
    index.close().await.unwrap();
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reopened_index_gives_the_same_answers_without_a_rebuild() {
    let site = Site::new();
    let before = filled(&site, 100).await;
    let index = site.open().await;
    assert_eq!(answers(&index).await, before);
    assert_eq!(site.set_aside(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_directory_comes_back_with_the_same_answers() {
    let site = Site::new();
    let before = filled(&site, 100).await;
    fs::remove_dir_all(site.index_dir()).unwrap();
    let index = site.open().await;
    assert_eq!(answers(&index).await, before);
    assert_eq!(index.verify().await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_view_comes_back_with_the_same_answers() {
    let site = Site::new();
    let before = filled(&site, 40).await;
    fs::remove_dir_all(site.view()).unwrap();
    assert_eq!(answers(&site.open().await).await, before);
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// Does one random harm to one random file of the view.
fn harm(view: &Path, rng: &mut StdRng) -> String {
    let files = files(view);
    let path = &files[rng.random_range(0..files.len())];
    let mut bytes = fs::read(path).unwrap();
    let harm = match rng.random_range(0..5) {
        0 => {
            bytes.truncate(rng.random_range(0..=bytes.len()));
            format!("truncated to {}", bytes.len())
        }
        1 => {
            let count = rng.random_range(1..20);
            for _ in 0..count.min(bytes.len()) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            format!("{count} random bytes")
        }
        2 if !bytes.is_empty() => {
            let from = rng.random_range(0..bytes.len());
            let to = (from + rng.random_range(1..5000)).min(bytes.len());
            bytes[from..to].fill(0);
            format!("zeros in {from}..{to}")
        }
        3 if !bytes.is_empty() => {
            let from = rng.random_range(0..bytes.len());
            rng.fill(&mut bytes[from..]);
            format!("random from {from}")
        }
        _ => {
            fs::remove_file(path).unwrap();
            return format!("{} removed", path.display());
        }
    };
    fs::write(path, bytes).unwrap();
    format!("{}: {harm}", path.display())
}

fn copy_dir(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

/// More rounds: `E2LLM_DAMAGE_ROUNDS=1000`; other harms: `E2LLM_DAMAGE_SEED=…`; larger views: `E2LLM_DAMAGE_DOCUMENTS=5000`.
fn number_from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_view_is_set_aside_and_rebuilt_with_the_same_answers() {
    let site = Site::new();
    let before = filled(&site, number_from_env("E2LLM_DAMAGE_DOCUMENTS", 300) as usize).await;
    let sound = site.root().join("sound");
    copy_dir(&site.view(), &sound);
    let mut detected = 0;
    let rounds = number_from_env("E2LLM_DAMAGE_ROUNDS", 30);
    let first = number_from_env("E2LLM_DAMAGE_SEED", 0);
    for seed in first..first + rounds {
        fs::remove_dir_all(site.index_dir()).unwrap();
        copy_dir(&sound, &site.view());
        let harm = harm(&site.view(), &mut StdRng::seed_from_u64(seed));
        eprintln!("round {seed}: {harm}");
        let index = site.open().await;
        assert_eq!(answers(&index).await, before, "seed {seed}: {harm}");
        commit(&index, vec![record("d0")]).await.unwrap_or_else(|error| panic!("seed {seed}: {harm}: {error}"));
        assert_eq!(get(&index, "d0").await.unwrap().doc_id, "d0");
        index.close().await.unwrap();
        detected += site.set_aside();
        // the log as it was before this round
        let last = site.manifests() as u64;
        fs::remove_file(site.manifest(last)).unwrap();
    }
    assert!(detected as u64 > rounds / 3, "{detected} of {rounds} damaged views were noticed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_another_store_is_set_aside() {
    let (site, other) = (Site::new(), Site::new());
    filled(&site, 20).await;
    filled(&other, 10).await;
    fs::remove_dir_all(site.view()).unwrap();
    copy_dir(&other.view(), &site.view());
    let index = site.open().await;
    assert_eq!(all(&index).await.len(), 18);
    assert_eq!(site.set_aside(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_ahead_of_the_log_is_set_aside() {
    let site = Site::new();
    let index = site.open().await;
    commit_each(&index, (0..5).map(|n| format!("d{n}"))).await;
    index.close().await.unwrap();
    fs::remove_file(site.manifest(5)).unwrap();
    let index = site.open().await;
    assert_eq!(all(&index).await.len(), 4);
    assert_eq!(site.set_aside(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_of_another_history_is_set_aside() {
    let site = Site::new();
    let index = site.open().await;
    commit_each(&index, ["a".to_owned()]).await;
    index.close().await.unwrap();
    let kept = site.root().join("kept");
    fs::rename(site.view(), &kept).unwrap();
    fs::remove_file(site.manifest(1)).unwrap();
    let index = site.open().await;
    commit_each(&index, ["b".to_owned()]).await;
    index.close().await.unwrap();
    fs::remove_dir_all(site.view()).unwrap();
    fs::rename(&kept, site.view()).unwrap();
    let index = site.open().await;
    assert_eq!(all(&index).await[0].doc_id, "b");
    assert_eq!(site.set_aside(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_died_is_not_tried_twice() {
    let site = Site::new();
    let before = filled(&site, 20).await;
    fs::write(site.index_dir().join("opening"), "").unwrap();
    let index = site.open().await;
    assert_eq!(answers(&index).await, before);
    assert_eq!(site.set_aside(), 1);
    assert!(!site.index_dir().join("opening").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_latest_views_set_aside_are_kept() {
    let site = Site::new();
    filled(&site, 10).await;
    for _ in 0..5 {
        let index = site.open().await;
        index.rebuild().await.unwrap();
        index.close().await.unwrap();
    }
    assert_eq!(site.set_aside(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_after_a_rebuild_in_place() {
    let site = Site::new();
    let before = filled(&site, 60).await;
    let index = site.open().await;
    let reader = index.clone();
    let reading = tokio::spawn(async move {
        for _ in 0..200 {
            // while the view is away, reads fail as retriable and never with a wrong answer
            match get(&reader, "d7").await {
                Ok(record) => assert_eq!(record.doc_id, "d7"),
                Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status}"),
            }
        }
    });
    index.rebuild().await.unwrap();
    reading.await.unwrap();
    assert_eq!(answers(&index).await, before);
}
