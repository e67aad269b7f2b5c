//! Two bundles: the two that are built in side by side, and a new one that comes to a running system, documents being encoded
//! again for it as a job while the old answers are served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use e2llm_e2e::{HARBOUR, S3, Service, Workplace, answer, eventually_true};
use serde_json::Value;

/// The default bundle with shorter chunks: another bundle, of the same weights.
fn write_bundle(place: &Workplace) -> String {
    let released = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/bundles/minilm-smollm2");
    for file in ["adapter.safetensors", "lora.safetensors"] {
        place.write(&format!("new/{file}"), fs::read(released.join(file)).unwrap());
    }
    let config = fs::read_to_string(released.join("bundle.json")).unwrap();
    let shorter = config.replace("\"chunk_tokens\": 64", "\"chunk_tokens\": 32");
    assert_ne!(config, shorter);
    place.write("new/bundle.json", shorter);
    place.path("new").display().to_string()
}

fn first(rows: Vec<Value>, name: &str) -> Value {
    rows[0][name].clone()
}

fn fingerprint(place: &Workplace, flags: &[&str]) -> String {
    let shown = place.json(&[flags, &["docs", "show", HARBOUR]].concat()).succeeded().rows();
    first(shown, "fingerprint").as_str().unwrap().to_owned()
}

#[test]
fn documents_are_encoded_for_a_new_bundle_while_the_old_one_answers() {
    let storage = S3::start();
    let (store, vars) = (storage.store(), storage.vars());
    let old = Service::start(None, &["all", "--store", &store], &vars);
    let place = Workplace::on_server(&old.url());
    place.json(&["encode", "texts"]).succeeded();
    let (answered, old_fingerprint) = (answer(place.ask(HARBOUR, &[])), fingerprint(&place, &[]));

    let alone = Workplace::new();
    let bundle = write_bundle(&alone);
    alone.json(&["--bundle", &bundle, "encode", "texts"]).succeeded();
    let new_fingerprint = fingerprint(&alone, &["--bundle", &bundle]);
    assert_ne!(new_fingerprint, old_fingerprint);

    // The workers of the old bundle have nothing else to do, and leave it alone.
    let submit = ["jobs", "submit", "encode", "texts", "--job", "again", "--for-bundle", &new_fingerprint[..8]];
    place.json(&submit).succeeded();
    let job = || place.json(&["jobs", "show", "again"]).succeeded().rows().remove(0);
    place.json(&["encode", "texts"]).succeeded();
    assert_eq!((&job()["rows_done"], answer(place.ask(HARBOUR, &[]))), (&0.into(), answered.clone()));

    let url = old.url();
    let flags = ["--bundle", &bundle, "--store", &store, "--index-url", &url, "--coordinator-url", &url];
    let encoder = Service::start(None, &[&["encoder"], &flags[..]].concat(), &vars);
    eventually_true("the end of the job", || job()["state"] == "succeeded");
    assert_eq!(fingerprint(&place, &[]), new_fingerprint, "the newest record is shown");
    assert_eq!(answer(place.ask(HARBOUR, &[])), answered, "the old bundle still answers from its own");

    let encoder_url = encoder.url();
    let decoder = Service::start(None, &[&["decoder", "--encoder-url", &encoder_url], &flags[..]].concat(), &vars);
    let switched =
        Workplace::on_server(&format!("encoder={encoder_url},decoder={},index={url},coordinator={url}", decoder.url()));
    let local = answer(alone.json(&["--bundle", &bundle, "ask", "Who opened the harbour?", "--id", HARBOUR]));
    assert_eq!(answer(switched.json(&["ask", "Who opened the harbour?", "--id", HARBOUR])), local);
}

#[test]
fn the_compact_bundle_is_built_in_and_stands_for_four_times_as_much_text_per_soft_token() {
    const COMPACT: [&str; 2] = ["--bundle", "minilm-smollm2-compact"];
    let place = Workplace::new();
    let ratio = |flags: &[&str]| {
        place.json(&[flags, &["encode", "texts"]].concat()).succeeded();
        let shown = place.json(&[flags, &["docs", "show", HARBOUR]].concat()).succeeded().rows().remove(0);
        assert!(shown["soft_tokens"].as_u64().unwrap() > 0);
        shown["ratio"].as_u64().unwrap()
    };
    assert_eq!((ratio(&[]), ratio(&COMPACT)), (4, 16));
    let asked = [&COMPACT[..], &["ask", "Who opened the harbour?", "--id", HARBOUR]].concat();
    assert!(answer(place.json(&asked)).contains("Mary"), "the answer stands in the text");
    let listed: Vec<Value> = place.json(&["models", "list"]).succeeded().rows();
    assert!(listed.iter().any(|entry| entry["name"] == COMPACT[1]), "{listed:?}");
    let unknown = place.json(&["--bundle", "nowhere", "encode", "texts"]);
    unknown.refused(&["no bundle \"nowhere\"", "minilm-smollm2, minilm-smollm2-compact"]);
}
