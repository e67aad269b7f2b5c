//! What only a local directory does: locks, leftovers of crashes, errors of the operating system.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use e2llm_api::ErrorCode;
use e2llm_store::{Created, Health, Store, StoreError};
use futures::TryStreamExt;
use support::noise;

async fn open(folder: &Path) -> Store {
    Store::open(folder.to_str().unwrap()).await.unwrap()
}

#[tokio::test]
async fn the_second_user_waits_briefly_then_learns_who_holds_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (open(folder.path()).await, open(folder.path()).await);
    let held = first.lock_exclusive(Duration::ZERO).await.unwrap();
    let error = second.lock_exclusive(Duration::from_millis(120)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable);
    assert!(error.to_string().contains(&format!("process {}: ", std::process::id())), "{error}");
    let waiting = tokio::spawn(async move { second.lock_exclusive(Duration::from_secs(10)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(held);
    drop(waiting.await.unwrap().unwrap());
}

#[tokio::test]
async fn stores_that_are_not_local_need_no_lock() {
    let store = Store::open("memory://").await.unwrap();
    let _first = store.lock_exclusive(Duration::ZERO).await.unwrap();
    let _second = store.lock_exclusive(Duration::ZERO).await.unwrap();
}

/// A half-written upload as a killed process leaves it, last touched `age` ago.
fn leftover(path: &Path, age: Duration) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "half an obj").unwrap();
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

#[tokio::test]
async fn leftovers_of_a_crash_are_no_objects_and_the_next_user_removes_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    let (old, live) = (folder.path().join("jobs/a#1"), folder.path().join("jobs/b#2"));
    leftover(&old, Duration::from_secs(300));
    leftover(&live, Duration::ZERO);
    assert!(store.list("jobs").await.unwrap().is_empty());
    assert_eq!(store.create("jobs/a", "whole").await.unwrap(), Created::New);

    drop(store.lock_exclusive(Duration::ZERO).await.unwrap());
    assert!(old.exists(), "after a clean end there is nothing to look for");
    fs::write(folder.path().join("lock"), "process 1: e2llm encode\n").unwrap();
    drop(store.lock_exclusive(Duration::ZERO).await.unwrap());
    assert!(!old.exists() && live.exists(), "a young file may belong to a live upload");

    assert_eq!(store.sweep_temporaries(Duration::ZERO).await.unwrap(), 1);
    assert_eq!(store.list("jobs").await.unwrap(), ["jobs/a"]);
}

#[tokio::test]
async fn a_text_that_is_put_again_later_is_young_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for text in ["small".to_owned(), noise(20 << 20, 3)] {
        let stored = store.put_text(&text).await.unwrap();
        let file = folder.path().join(format!("texts/{}/{}.zst", &stored.hash[..2], stored.hash));
        let modified = || fs::metadata(&file).unwrap().modified().unwrap();
        for (age, is_renewed) in [(Duration::from_secs(600), false), (Duration::from_secs(7200), true)] {
            let then = SystemTime::now() - age;
            fs::File::options().write(true).open(&file).unwrap().set_modified(then).unwrap();
            let before = modified();
            assert_eq!(store.put_text(&text).await.unwrap(), stored);
            assert_eq!(modified() > before, is_renewed, "{age:?}");
            assert!(store.get_text(&stored.hash).await.unwrap() == text);
        }
    }
}

#[tokio::test]
async fn what_is_deleted_leaves_no_empty_folders() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for path in ["jobs/a/spec", "jobs/a/plan/0", "jobs/b/spec"] {
        assert_eq!(store.create(path, "").await.unwrap(), Created::New);
    }
    store.delete("jobs/a/spec").await.unwrap();
    store.delete_all(&["jobs/a/plan/0".to_owned()]).await.unwrap();
    assert_eq!(store.list_folders("jobs").await.unwrap(), ["b"]);
    assert!(!folder.path().join("jobs/a").exists());
}

const CHILD_STORE: &str = "E2LLM_TEST_CHILD_STORE";

/// Not a test by itself: the process that the next test kills.
#[tokio::test]
async fn child_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD_STORE) else { return };
    let store = open(Path::new(&path)).await;
    // Each child writes texts of its own, every fourth one in several parts.
    for number in 1.. {
        let seed = u64::from(std::process::id()) << 32 | number;
        let bytes = if number % 4 == 0 { 20 << 20 } else { 1 << 20 };
        store.put_text(&noise(bytes, seed)).await.unwrap();
    }
}

/// Starts the child and kills it `delay` after it has stored something new.
async fn write_and_die(store: &Store, folder: &Path, delay: Duration) {
    let before = store.list("texts").await.unwrap().len();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_writes_until_it_is_killed"])
        .env(CHILD_STORE, folder)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while store.list("texts").await.unwrap().len() == before {
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(delay).await;
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_process_killed_while_it_writes_leaves_no_half_object() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).await;
    for delay in [0, 30, 170, 410] {
        write_and_die(&store, folder.path(), Duration::from_millis(delay)).await;
    }
    let findings: Vec<_> = store.verify().try_collect().await.unwrap();
    assert!(findings.len() > 4, "{findings:?}");
    assert!(findings.iter().all(|finding| finding.health == Health::Ok), "{findings:?}");
}

/// Not a test by itself: runs where files cannot grow beyond 4 MiB, which fails as a full disk does.
#[tokio::test]
async fn child_finds_no_space() {
    let Ok(path) = std::env::var(FULL_DISK_STORE) else { return };
    let store = open(Path::new(&path)).await;
    store.put_text("small texts still fit").await.unwrap();
    // Too large for the disk as an object, and already as a temporary file.
    for bytes in [12 << 20, 40 << 20] {
        let error = store.put_text(&noise(bytes, 7)).await.unwrap_err();
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
    }
}

const FULL_DISK_STORE: &str = "E2LLM_TEST_FULL_DISK_STORE";

#[cfg(unix)]
#[tokio::test]
async fn a_full_disk_is_an_error_that_leaves_nothing_and_passes() {
    let folder = tempfile::tempdir().unwrap();
    let script = "trap '' XFSZ; ulimit -f 8192; exec \"$0\" --exact child_finds_no_space";
    let child = Command::new("sh")
        .args(["-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(FULL_DISK_STORE, folder.path())
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let store = open(folder.path()).await;
    assert_eq!(store.list("texts").await.unwrap().len(), 1);
    assert_eq!(store.sweep_temporaries(Duration::ZERO).await.unwrap(), 0);
    store.put_text(&noise(12 << 20, 7)).await.unwrap();
}

#[tokio::test]
async fn a_file_where_a_directory_belongs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [file.clone(), file.join("below")] {
        let error = Store::open(path.to_str().unwrap()).await.unwrap_err();
        assert!(matches!(error, StoreError::NotADirectory { .. }), "{error:?}");
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
    let store = open(&folder.path().join("store")).await;
    fs::write(folder.path().join("store/texts"), "x").unwrap();
    let error = store.put_text("a").await.unwrap_err();
    assert!(matches!(error, StoreError::NotADirectory { .. }), "{error:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn refused_access_is_named() {
    let error = Store::open("/sys/e2llm-store").await.unwrap_err();
    assert!(matches!(error, StoreError::PermissionDenied { .. }), "{error:?}");
    assert!(error.to_string().contains("/sys/e2llm-store"), "{error}");
}

#[tokio::test]
async fn a_store_of_another_layout_or_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (json, reason) in [
        (r#"{"format":"e2llm-store","layout":9,"id":"x","check":"y"}"#, "layout 9"),
        (r#"{"name":"shop"}"#, "was not written by e2llm"),
        ("{", "is not JSON"),
    ] {
        fs::write(folder.path().join("store.json"), json).unwrap();
        let error = Store::open(folder.path().to_str().unwrap()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::WrongStore);
        assert!(error.to_string().contains(reason), "{error}");
    }
    fs::remove_file(folder.path().join("store.json")).unwrap();
    fs::create_dir(folder.path().join("store.json")).unwrap();
    assert!(Store::open(folder.path().to_str().unwrap()).await.is_err());
}

#[tokio::test]
async fn sixteen_processes_that_open_a_new_store_agree_on_its_id() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let stores = futures::future::try_join_all((0..16).map(|_| Store::open(path))).await.unwrap();
    assert!(stores.iter().all(|store| store.id() == stores[0].id()));
}
