//! One flipped bit anywhere in a store is named and never served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use e2llm_e2e::{HARBOUR, Outcome, Workplace, answer, flip_byte};

/// Has the model read soft tokens alone, so that the answer depends on the blob.
const SOFT: [&str; 2] = ["--expand", "0"];

fn doctor(place: &Workplace) -> Outcome {
    place.json(&["doctor"])
}

fn assert_named(found: &Outcome, name: &str) {
    assert_eq!(found.code, 1, "{found:#?}");
    assert!(found.rows().iter().any(|row| row["problem"].as_str().unwrap().contains(name)), "{name}: {found:#?}");
}

fn harbour(place: &Workplace) -> serde_json::Value {
    place.json(&["docs", "show", HARBOUR]).succeeded().rows().remove(0)
}

#[test]
fn a_sound_store_has_no_findings() {
    let place = Workplace::encoded();
    let found = doctor(&place).succeeded();
    assert!(found.stdout.is_empty(), "{found:#?}");
}

#[test]
fn a_damaged_blob_is_set_aside_and_made_anew_when_it_is_read() {
    let place = Workplace::encoded();
    let before = answer(place.ask(HARBOUR, &SOFT));
    let record = harbour(&place);
    let hash = record["segments"][0]["content_hash"].as_str().unwrap();
    flip_byte(&place.stored_file("blobs", hash));
    assert_named(&doctor(&place), hash);
    assert_eq!(answer(place.ask(HARBOUR, &SOFT)), before);
    assert!(place.stored_file("quarantine", hash).exists());
    assert!(doctor(&place).succeeded().stdout.is_empty());
    assert_eq!(harbour(&place)["segments"], record["segments"]);
}

#[test]
fn a_damaged_blob_whose_text_is_lost_is_never_read() {
    let place = Workplace::encoded();
    let record = harbour(&place);
    let hash = record["segments"][0]["content_hash"].as_str().unwrap();
    flip_byte(&place.stored_file("blobs", hash));
    fs::remove_file(place.stored_file("texts", record["text_hash"].as_str().unwrap())).unwrap();
    place.ask(HARBOUR, &SOFT).refused(&[hash, "corrupt"]);
}

#[test]
fn repair_makes_a_damaged_blob_anew() {
    let place = Workplace::encoded();
    let before = answer(place.ask(HARBOUR, &SOFT));
    let record = harbour(&place);
    let hash = record["segments"][0]["content_hash"].as_str().unwrap();
    flip_byte(&place.stored_file("blobs", hash));
    let repaired = place.json(&["doctor", "--repair"]).succeeded().rows();
    assert_eq!(repaired.len(), 1, "one object is one problem: {repaired:#?}");
    assert_eq!(repaired[0]["repaired"], true, "{repaired:#?}");
    assert!(doctor(&place).succeeded().stdout.is_empty());
    assert_eq!(answer(place.ask(HARBOUR, &SOFT)), before);
}

#[test]
fn documents_whose_blob_is_lost_are_not_unchanged() {
    let place = Workplace::encoded();
    let record = harbour(&place);
    let hash = record["segments"][0]["content_hash"].as_str().unwrap();
    fs::remove_file(place.stored_file("blobs", hash)).unwrap();
    let encoded = place.json(&["encode", "texts"]).succeeded();
    let unchanged: Vec<bool> = encoded.rows().iter().map(|row| row["unchanged"].as_bool().unwrap()).collect();
    assert_eq!(unchanged, [true, false, true]);
    assert!(doctor(&place).succeeded().stdout.is_empty());
}

#[test]
fn a_damaged_text_is_not_read_and_comes_back_from_its_source() {
    let place = Workplace::encoded();
    let record = harbour(&place);
    let hash = record["text_hash"].as_str().unwrap();
    flip_byte(&place.stored_file("texts", hash));
    assert_named(&doctor(&place), hash);
    place.ask(HARBOUR, &[]).refused(&[hash, "corrupt"]);
    place.json(&["encode", "texts"]).succeeded();
    assert!(doctor(&place).succeeded().stdout.is_empty());
}

#[test]
fn a_damaged_store_identity_stops_every_command() {
    let place = Workplace::encoded();
    flip_byte(&place.path("store/store.json"));
    place.json(&["docs", "list"]).refused(&["store.json"]);
    place.ask(HARBOUR, &[]).refused(&["store.json"]);
    place.json(&["encode", "texts"]).refused(&["store.json"]);
    place.json(&["doctor", "--repair"]).refused(&["store.json"]);
}

#[test]
fn a_damaged_manifest_is_named_and_records_are_not_read_from_it() {
    let place = Workplace::encoded();
    let manifest = "index/main/manifests/00000000000000000001";
    flip_byte(&place.path("store").join(manifest));
    assert_named(&doctor(&place), manifest);
    fs::remove_dir_all(place.path("store/view")).unwrap();
    place.json(&["docs", "list"]).refused(&[manifest]);
}

#[test]
fn repair_passes_a_damaged_manifest_while_the_view_holds_its_records() {
    let place = Workplace::encoded();
    let records = place.json(&["docs", "list"]).succeeded().stdout;
    flip_byte(&place.path("store/index/main/manifests/00000000000000000001"));
    place.json(&["doctor", "--repair"]).succeeded();
    fs::remove_dir_all(place.path("store/view")).unwrap();
    assert_eq!(place.json(&["docs", "list"]).succeeded().stdout, records);
}

#[test]
fn a_full_disk_fails_the_row_that_needs_it_and_leaves_nothing() {
    let place = Workplace::new();
    // About 1.4 MB of soft tokens: more than the limit, while the index and the other documents stay below it.
    place.write("texts/long.txt", include_str!("../../../README.md").repeat(3));
    let full = place.json_on_full_disk(1024, &["encode", "texts"]);
    assert_eq!(full.code, 3, "{full:#?}");
    let expected = ["", "", "RESOURCE_EXHAUSTED", ""];
    assert_eq!(full.codes().iter().map(|(_, code)| code.as_str()).collect::<Vec<_>>(), expected, "{full:#?}");
    assert!(full.rows()[2]["error"]["message"].as_str().unwrap().contains("free some space"), "{full:#?}");
    assert!(doctor(&place).succeeded().stdout.is_empty());
    let after = place.json(&["encode", "texts"]).succeeded();
    assert!(after.rows()[2]["soft_tokens"].as_u64().unwrap() * 576 * 2 > 1 << 20, "the limit did not bind: {after:#?}");
}
