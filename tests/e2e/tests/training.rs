//! `e2llm train` with real models and a recipe of a few steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

use e2llm_e2e::{Workplace, eventually_true};
use serde_json::{Value, json};

const STEPS: usize = 6;

/// Pretraining and two objectives in a run of seconds.
const RECIPE: &str = "
seed: 7
ratio: 4
chunk_tokens: 32
features: encoder
lora_rank: 2
lora_scale: 2.0
pretrain: { steps: 2, batch: 2, negatives: 64, passages: 6, adapter: { learning_rate: 2.0e-3 } }
stages:
  - steps: 6
    batch: 2
    max_target: 12
    chunks: [1, 2]
    mix: [[reconstruct, 0.7], [continue, 0.3]]
    warm_up: 2
    final_rate: 0.1
    adapter: { learning_rate: 5.0e-4 }
    lora: { learning_rate: 1.5e-3 }
";

/// A recipe and two documents to train on.
fn workplace() -> Workplace {
    let place = Workplace::new();
    place.write("tiny.yaml", RECIPE);
    let documents = [("readme", include_str!("../../../README.md")), ("licence", include_str!("../../../LICENSE"))];
    let lines = documents.map(|(id, text)| json!({"id": id, "text": text}).to_string());
    place.write("corpus.jsonl", lines.join("\n"));
    place
}

fn train<'a>(recipe: &'a str, output: &'a str) -> [&'a str; 9] {
    ["train", "--recipe", recipe, "--input", "corpus.jsonl", "--output", output, "--save-every", "1"]
}

fn evaluate<'a>(recipe: &'a str, output: &'a str) -> [&'a str; 10] {
    let input = ["--input", "corpus.jsonl", "--passages", "2"];
    ["train", "evaluate", "--recipe", recipe, "--output", output, input[0], input[1], input[2], input[3]]
}

/// Steps that a run has written into its curve so far.
fn steps(place: &Workplace, output: &str) -> Vec<usize> {
    let curve = fs::read_to_string(place.path(output).join("curve.jsonl")).unwrap_or_default();
    let news = curve.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    news.filter(|news| news["event"] == "step").map(|news| news["step"].as_u64().unwrap() as usize).collect()
}

/// The tensors of the newest checkpoint: parameters and optimizer moments.
fn newest_checkpoint(place: &Workplace, output: &str) -> Vec<u8> {
    let entries = fs::read_dir(place.path(output).join("checkpoints")).unwrap();
    let mut tensors: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    tensors.retain(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
    tensors.sort();
    fs::read(tensors.last().unwrap()).unwrap()
}

#[test]
fn a_run_that_was_killed_ends_with_the_bytes_of_an_unbroken_one() {
    let place = workplace();
    let whole = place.json(&train("tiny.yaml", "whole")).succeeded().rows();
    assert_eq!(whole[0]["finished"], true, "{whole:?}");
    let mut process = place.start(&train("tiny.yaml", "broken"));
    eventually_true("two steps", || steps(&place, "broken").len() >= 2);
    process.kill().unwrap();
    assert_eq!(process.wait().unwrap().code(), None, "it ended before it was killed");
    let before = steps(&place, "broken");
    assert!(before.len() < STEPS, "the fault came after the last step: {before:?}");
    place.json(&train("tiny.yaml", "broken")).succeeded();
    let resumed = steps(&place, "broken").split_off(before.len());
    assert!(resumed[0] > 1, "it began anew instead of resuming: {before:?} then {resumed:?}");
    assert_eq!(resumed.last(), Some(&STEPS));
    assert!(newest_checkpoint(&place, "broken") == newest_checkpoint(&place, "whole"), "checkpoints differ");
    for file in ["adapter.safetensors", "lora.safetensors", "bundle.json"] {
        let read = |output: &str| fs::read(place.path(output).join("bundle").join(file)).unwrap();
        assert!(read("broken") == read("whole"), "{file} differs");
    }
}

#[test]
fn a_checkpoint_is_measured_and_belongs_to_its_recipe() {
    let place = workplace();
    place.write("control.yaml", RECIPE.replace("features: encoder", "features: table_only"));
    place.json(&evaluate("control.yaml", "control")).refused(&["control", "no checkpoint"]);
    let trained = place.json(&train("control.yaml", "control")).succeeded().rows();
    assert_eq!(trained[0]["bundle"], Value::Null, "a control must not become a bundle");
    let measured = place.json(&evaluate("control.yaml", "control")).succeeded().rows().remove(0);
    for column in ["right", "wrong", "none", "full"] {
        let (with, without) = (&measured[column], &measured["without_lora"][column]);
        let loss = |value: &Value| value.as_f64().filter(|loss| (0.0..20.0).contains(loss));
        assert!(loss(with).is_some() && loss(without).is_some() && with != without, "{column}: {measured}");
    }
    place.json(&evaluate("tiny.yaml", "control")).refused(&["another recipe"]);
}
