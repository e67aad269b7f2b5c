//! `e2llm train` with real models and a recipe of a few steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/random_pair.rs"]
mod random_pair;

use std::fs;
use std::path::{Path, PathBuf};

use e2llm_e2e::{HARBOUR, Workplace, eventually_true};
use random_pair::{Sizes, Stack};
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
    let each =
        [&evaluate("control.yaml", "control")[..], &["--trained-only", "--passage-losses", "each.jsonl"]].concat();
    place.json(&each).succeeded();
    let each = fs::read_to_string(place.path("each.jsonl")).unwrap();
    let each = each.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let each: Vec<Value> = each.filter(|passage| passage["objective"] == "reconstruction").collect();
    let sum = |column: &str| each.iter().map(|passage| passage[column].as_f64().unwrap()).sum::<f64>();
    let mean = sum("right") / sum("tokens");
    assert!(each.len() == 2 && (mean - measured["right"].as_f64().unwrap()).abs() < 1e-9, "{each:?}, {measured}");
    place.json(&evaluate("tiny.yaml", "control")).refused(&["another recipe"]);
}

/// Trains a pair with random weights from nothing, measures it, and answers from what came out.
fn another_pair_works(sizes: &Sizes) {
    let place = workplace();
    let shown = place.json(&["models", "show"]).succeeded().rows().remove(0);
    let minilm = shown["parts"][0]["dir"].as_str().unwrap();
    random_pair::write(&place.path("."), sizes, &Path::new(minilm).join("tokenizer.json"));
    let pair = ["--encoder", "./encoder", "--decoder", "./decoder"];
    let with = |arguments: &[&'static str]| [arguments, &pair[..]].concat();
    place.json(&with(&train("tiny.yaml", "run"))).succeeded();
    let measured = place.json(&with(&evaluate("tiny.yaml", "run"))).succeeded().rows().remove(0);
    assert!(measured["right"].as_f64().unwrap() > 0.0, "{measured}");
    let config: Value =
        serde_json::from_str(&fs::read_to_string(place.path("run/bundle/bundle.json")).unwrap()).unwrap();
    assert_eq!(
        [&config["name"], &config["encoder"], &config["decoder"]],
        ["encoder-decoder", "./encoder", "./decoder"]
    );
    assert_eq!(config["adapter"]["d_model"], sizes.decoder.width);
    place.json(&["--bundle", "run/bundle", "encode", "texts"]).succeeded();
    let question = ["--bundle", "run/bundle", "ask", "--id", HARBOUR, "Who?", "--max-tokens", "4"];
    let answered = place.json(&question).succeeded().rows().remove(0);
    assert!(answered["answer"].is_string() && answered["usage"]["soft_positions"].as_u64() > Some(0), "{answered}");
    // The bundle is to be written again, and without the pair's names the models would be those of the default bundle.
    fs::remove_file(place.path("run/bundle/bundle.json")).unwrap();
    place.json(&train("tiny.yaml", "run")).refused(&["another encoder or decoder", "models.json"]);
    place.write("on.yaml", RECIPE.replace("features: encoder", "start: bundle").replace("pretrain:", "# pretrain:"));
    place.json(&with(&train("on.yaml", "on"))).refused(&["start: bundle", "--encoder"]);
    let of_nothing = place.json(&with(&["train", "evaluate", "--input", "corpus.jsonl"]));
    assert!(of_nothing.code == 2 && of_nothing.stderr.contains("--recipe"), "{of_nothing:#?}");
}

/// Small models; with E2LLM_LARGER_PAIR set, the shapes of BGE-base and Qwen2.5-0.5B: 1.2 GB of weights.
#[test]
fn another_pair_than_the_bundles_is_trained_and_used() {
    let stack = |layers, width, heads, hidden| Stack { layers, width, heads, hidden };
    let small = Sizes { encoder: stack(2, 64, 4, 128), decoder: stack(2, 64, 4, 96), kv_heads: 2, vocabulary: 30_600 };
    let (encoder, decoder) = (stack(12, 768, 12, 3_072), stack(24, 896, 14, 4_864));
    let larger = Sizes { encoder, decoder, kv_heads: 2, vocabulary: 151_936 };
    another_pair_works(if std::env::var_os("E2LLM_LARGER_PAIR").is_some() { &larger } else { &small });
}
