//! Models that are not in the catalogue: local directories, single files, a model hub.

use super::{fetcher, says};
use e2llm_weights::{HubOptions, ModelRef, WeightFormat};
use std::fs;
use std::path::Path;
use tempfile::{TempDir, tempdir};

const INDEX: &str =
    r#"{"metadata":{},"weight_map":{"b":"model-00002-of-00002.safetensors","a":"model-00001-of-00002.safetensors"}}"#;

/// A directory with files of this content. What weights contain is the model loader's business, not this crate's.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let dir = tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn resolve(dir: &Path) -> Result<e2llm_weights::ModelFiles, e2llm_weights::WeightsError> {
    let cache = tempdir().unwrap();
    fetcher(cache.path()).resolve(&ModelRef::Local(dir.to_path_buf()))
}

#[test]
fn a_directory_with_safetensors_needs_a_tokenizer_and_a_configuration() {
    let dir = directory(&[("model.safetensors", "w"), ("tokenizer.json", "{}"), ("config.json", "{}")]);
    let files = resolve(dir.path()).unwrap();
    assert_eq!(files.format, WeightFormat::Safetensors);
    assert_eq!(files.weights, [dir.path().join("model.safetensors")]);
    assert_eq!(files.tokenizer, Some(dir.path().join("tokenizer.json")));
    assert_eq!(files.sibling("config.json"), files.config);
    assert_eq!(files.sibling("tokenizer_config.json"), None);

    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    says(&resolve(dir.path()).unwrap_err(), &[dir.path().to_str().unwrap(), "has no tokenizer.json"]);
}

#[test]
fn shards_come_in_order_and_a_missing_one_is_named() {
    let dir = directory(&[
        ("model.safetensors.index.json", INDEX),
        ("model-00001-of-00002.safetensors", "one"),
        ("model-00002-of-00002.safetensors", "two"),
        ("tokenizer.json", "{}"),
        ("config.json", "{}"),
    ]);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let before = resolve(dir.path()).unwrap();
    assert_eq!(before.weights, names.map(|name| dir.path().join(name)));

    fs::write(dir.path().join(names[1]), "new").unwrap();
    assert_ne!(resolve(dir.path()).unwrap().sha256, before.sha256, "the hash covers every shard");

    fs::remove_file(dir.path().join(names[1])).unwrap();
    says(&resolve(dir.path()).unwrap_err(), &["has no model-00002-of-00002.safetensors"]);
}

#[test]
fn an_index_cannot_name_files_elsewhere() {
    for shard in ["../secret.safetensors", "/etc/passwd", "x/y.safetensors"] {
        let index = format!(r#"{{"weight_map":{{"a":"{shard}"}}}}"#);
        let dir = directory(&[("model.safetensors.index.json", &index), ("config.json", "{}")]);
        says(&resolve(dir.path()).unwrap_err(), &[shard, "not a .safetensors file in this directory"]);
    }
    let dir = directory(&[("model.safetensors.index.json", "{"), ("config.json", "{}")]);
    says(&resolve(dir.path()).unwrap_err(), &["model.safetensors.index.json cannot be used as a model"]);
}

#[test]
fn a_gguf_is_taken_as_a_directory_or_as_the_file_itself() {
    let dir = directory(&[("tiny.gguf", "w"), ("README.md", "")]);
    let by_directory = resolve(dir.path()).unwrap();
    let by_file = resolve(&dir.path().join("tiny.gguf")).unwrap();
    assert_eq!(by_directory, by_file);
    assert_eq!(by_file.format, WeightFormat::Gguf);
    assert_eq!((by_file.tokenizer, by_file.config), (None, None));
}

#[test]
fn what_is_no_model_is_refused_with_its_reason() {
    let empty = directory(&[("README.md", "")]);
    says(&resolve(empty.path()).unwrap_err(), &["has no model.safetensors", ".gguf"]);
    let pickled = directory(&[("pytorch_model.bin", "x"), ("config.json", "{}")]);
    says(&resolve(pickled.path()).unwrap_err(), &["pickled", "convert them to safetensors"]);
    says(&resolve(&pickled.path().join("config.json")).unwrap_err(), &["must be .safetensors or .gguf"]);
    says(&resolve(Path::new("./no/such/dir")).unwrap_err(), &["./no/such/dir", "No such file"]);
}

#[test]
fn a_name_the_catalogue_does_not_have_is_answered_with_those_it_has() {
    let cache = tempdir().unwrap();
    let error = fetcher(cache.path()).resolve(&ModelRef::parse("minimum").unwrap()).unwrap_err();
    says(&error, &["'minimum'", "minilm, smollm2"]);
}

/// A hub cache as the hub's clients lay it out, with one snapshot of `org/name`.
fn hub_cache() -> TempDir {
    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = |name: &str| format!("models--org--name/snapshots/{COMMIT}/{name}");
    directory(&[
        ("models--org--name/refs/main", COMMIT),
        (&snapshot("model.safetensors"), "w"),
        (&snapshot("tokenizer.json"), "{}"),
        (&snapshot("config.json"), "{}"),
    ])
}

fn hub(cache: &Path, offline: bool) -> HubOptions {
    HubOptions { endpoint: Some("http://127.0.0.1:9".into()), cache_dir: Some(cache.to_path_buf()), offline }
}

#[test]
fn a_cached_hub_model_is_used_when_the_hub_is_away() {
    let (cache, hub_cache) = (tempdir().unwrap(), hub_cache());
    for offline in [true, false] {
        let fetcher = fetcher(cache.path()).with_hub(hub(hub_cache.path(), offline));
        let files = fetcher.resolve(&ModelRef::parse("org/name").unwrap()).unwrap();
        assert!(files.dir.starts_with(hub_cache.path()), "offline: {offline}");
        assert_eq!(files.format, WeightFormat::Safetensors);
    }
}

#[test]
fn a_hub_model_that_is_neither_cached_nor_reachable_says_so() {
    let (cache, hub_cache) = (tempdir().unwrap(), tempdir().unwrap());
    let model = ModelRef::parse("org/name@v1").unwrap();
    let ask = |offline| fetcher(cache.path()).with_hub(hub(hub_cache.path(), offline)).resolve(&model).unwrap_err();
    says(&ask(false), &["org/name@v1", "check the network and HF_ENDPOINT"]);
    says(&ask(true), &["org/name@v1", "not cached", "HF_HUB_OFFLINE"]);
}
