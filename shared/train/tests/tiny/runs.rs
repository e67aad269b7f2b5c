//! Whole runs: resuming, and what each mode moves.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use candle_core::{DType, Tensor};
use e2llm_train::run::{Models, Report, Rhythm, Run, finished};
use e2llm_train::{Learned, Objective, Recipe};

use crate::models::{corpus, models};

/// Two stages with everything there is: gate heads, a change of ratio, an encoder LoRA that rests at first, all objectives.
const EVERYTHING: &str = "
seed: 5
ratio: 4
chunk_tokens: 16
gate_heads: 4
ordered_heads: true
lora_rank: 2
encoder_lora: { rank: 2, scale: 2.0 }
pretrain: { steps: 2, batch: 2, passages: 6, negatives: 32, ratio: 8, adapter: { learning_rate: 2e-3 } }
stages:
  - { steps: 3, batch: 4, max_target: 12, chunks: [1, 2], window: [2, 3], mix: [[reconstruct, 1], [continue, 1]], warm_up: 1, final_rate: 0.5, adapter: { learning_rate: 1e-3 }, lora: { learning_rate: 1e-3 } }
  - { steps: 3, batch: 4, ratio: 2, distill: 0.5, expand: 0.5, max_target: 12, chunks: [1, 2], window: [2, 3], mix: [[summarize, 1], [answer, 1], [continue, 1]], warm_up: 0, final_rate: 0.1, adapter: { learning_rate: 1e-3 }, encoder: { learning_rate: 1e-3 }, lora: { learning_rate: 1e-3 } }
";

fn recipe(from: &str, to: &str) -> Recipe {
    Recipe::parse(&EVERYTHING.replace(from, to)).unwrap()
}

fn rhythm() -> Rhythm {
    Rhythm { save_every: 2, evaluate_every: 0, passages: 4, budget: None }
}

/// Runs until the end, or until `steps` more steps were told of: then the run dies as if it were killed.
fn run(recipe: &Recipe, directory: &Path, steps: usize) -> Vec<Report> {
    run_with(models(), recipe, directory, steps)
}

fn run_with(models: Models, recipe: &Recipe, directory: &Path, steps: usize) -> Vec<Report> {
    let corpus = corpus();
    let (mut told, mut reports) = (0, Vec::new());
    let mut report = |news: Report| {
        told += usize::from(matches!(news, Report::Step { .. }));
        reports.push(news);
        assert!(told < steps, "killed by the test");
    };
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::start(recipe, models, &corpus, None, directory, &mut report).unwrap();
        run.advance(&rhythm(), &mut report).unwrap()
    }));
    assert!(ended.is_err() || ended.unwrap(), "the run stopped before the recipe's end");
    reports
}

/// The newest checkpoint's tensors.
fn tensors(directory: &Path) -> HashMap<String, Tensor> {
    let mut files: Vec<_> =
        std::fs::read_dir(directory.join("checkpoints")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|kind| kind == "safetensors"));
    files.sort();
    candle_core::safetensors::load(files.last().unwrap(), &candle_core::Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_same(a: &HashMap<String, Tensor>, b: &HashMap<String, Tensor>) {
    assert_eq!(a.len(), b.len());
    for (name, tensor) in a {
        assert!(values(tensor) == values(&b[name]), "{name} differs");
    }
}

#[test]
fn a_run_killed_anywhere_ends_as_an_unbroken_one() {
    for (from, to) in [("", ""), ("lora_rank: 2", "decoder: full"), ("lora_rank: 2", "decoder: frozen")] {
        let recipe = recipe(from, to);
        let whole = tempfile::tempdir().unwrap();
        run(&recipe, whole.path(), usize::MAX);
        for steps in [1, 3, 5] {
            let broken = tempfile::tempdir().unwrap();
            run(&recipe, broken.path(), steps);
            assert!(finished(&recipe, broken.path()).unwrap().is_none());
            run(&recipe, broken.path(), usize::MAX);
            assert!(finished(&recipe, broken.path()).unwrap().is_some());
            assert_same(&tensors(whole.path()), &tensors(broken.path()));
        }
    }
}

#[test]
fn a_finished_run_takes_no_step() {
    let recipe = recipe("", "");
    let directory = tempfile::tempdir().unwrap();
    run(&recipe, directory.path(), usize::MAX);
    let again = run(&recipe, directory.path(), usize::MAX);
    assert!(!again.iter().any(|news| matches!(news, Report::Step { .. } | Report::Pretrain { .. })));
}

#[test]
fn losses_are_told_by_objective_and_add_up() {
    let directory = tempfile::tempdir().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for news in run(&recipe("", ""), directory.path(), usize::MAX) {
        let Report::Step { loss, losses, divergence, targets, stage, .. } = news else { continue };
        assert_eq!(losses.values().map(|own| own.tokens).sum::<usize>(), targets);
        let entropy = losses.values().map(|own| own.loss * own.tokens as f64).sum::<f64>() / targets as f64;
        let expected = if stage == 1 { 0.5 * entropy + 0.5 * f64::from(divergence.unwrap()) } else { entropy };
        assert!((f64::from(loss) - expected).abs() < 1e-4, "{loss} against {expected}");
        seen.extend(losses.into_keys());
    }
    assert!(seen.is_superset(&[Objective::Reconstruct, Objective::Continue].into()) && seen.len() >= 3, "{seen:?}");
}

/// In half precision blocks go through the operations that other devices use: the same run, a little rounded.
#[test]
fn half_precision_trains_as_single_precision_does() {
    for (from, to) in [("", ""), ("lora_rank: 2", "decoder: full"), ("lora_rank: 2", "decoder: frozen")] {
        let recipe = recipe(from, to);
        let losses = |dtype: DType| -> Vec<f32> {
            let directory = tempfile::tempdir().unwrap();
            let Models { decoder, .. } = models();
            let models = Models { decoder: decoder.into_dense(dtype).unwrap(), ..models() };
            let reports = run_with(models, &recipe, directory.path(), usize::MAX);
            reports
                .iter()
                .filter_map(|news| if let Report::Step { loss, .. } = news { Some(*loss) } else { None })
                .collect()
        };
        let (single, half) = (losses(DType::F32), losses(DType::BF16));
        assert_eq!((single.len(), half.len()), (6, 6));
        for (step, (single, half)) in single.iter().zip(&half).enumerate() {
            // Steps of AdamW have the gradient's sign, so that what is rounded once moves apart later.
            let near = if step == 0 { 0.01 } else { 0.05 } * single;
            assert!(single != half && (single - half).abs() < near, "step {step}: {single} against {half}: {to}");
        }
    }
}

#[test]
fn a_frozen_decoder_has_nothing_to_save_and_nothing_to_teach() {
    let recipe = recipe("lora_rank: 2", "decoder: frozen");
    let directory = tempfile::tempdir().unwrap();
    run(&recipe, directory.path(), usize::MAX);
    let saved = tensors(directory.path());
    let decoder: Vec<&String> =
        saved.keys().filter(|name| !name.starts_with("adapter") && !name.starts_with("encoder")).collect();
    assert_eq!(decoder, ["lora.steps"]);
    let models = models();
    let learned = Learned::load(&recipe, &models, directory.path()).unwrap();
    let mut taught = models.decoder.clone();
    learned.teach(&mut taught).unwrap();
    let hidden = |decoder: &e2llm_model::Decoder| {
        let input = decoder.embed(&[5, 6, 7]).unwrap();
        values(&decoder.hidden(&input, &e2llm_model::Packing::sequences(&[3])).unwrap())
    };
    assert!(!learned.changes_decoder());
    assert_eq!(hidden(&taught), hidden(&models.decoder));
}

#[test]
fn a_decoder_trained_in_full_moves_every_linear() {
    let recipe = recipe("lora_rank: 2", "decoder: full");
    let directory = tempfile::tempdir().unwrap();
    run(&recipe, directory.path(), usize::MAX);
    let saved = tensors(directory.path());
    let models = models();
    for (name, before) in models.decoder.linears().unwrap() {
        assert_ne!(values(&before), values(&saved[&format!("decoder.value.{name}")]), "{name} did not move");
    }
    let corpus = corpus();
    let run = Run::start(&recipe, models, &corpus, None, directory.path(), &mut |_| {}).unwrap();
    let refused = run.export(&directory.path().join("bundle"), "x", "y", "z").unwrap_err().to_string();
    assert!(refused.contains("no bundle"), "{refused}");
}

#[test]
fn an_encoder_lora_rests_until_a_stage_trains_it() {
    let recipe = recipe("", "");
    let directory = tempfile::tempdir().unwrap();
    // Saved after step 2 of the first stage, in which the encoder has no learning rate.
    run(&recipe, directory.path(), 3);
    let resting = tensors(directory.path());
    let is_b = |name: &&String| name.starts_with("encoder.value.") && name.ends_with(".b");
    assert!(resting.keys().filter(is_b).count() > 0);
    assert!(resting.keys().filter(is_b).all(|name| values(&resting[name]).iter().all(|x| *x == 0.0)));
    run(&recipe, directory.path(), usize::MAX);
    let trained = tensors(directory.path());
    assert!(trained.keys().filter(is_b).all(|name| values(&trained[name]).iter().any(|x| *x != 0.0)));
}

#[test]
fn a_bundle_carries_the_encoder_lora_and_the_last_ratio() {
    let recipe = recipe("", "");
    let directory = tempfile::tempdir().unwrap();
    run(&recipe, directory.path(), usize::MAX);
    let corpus = corpus();
    let run = Run::start(&recipe, models(), &corpus, None, directory.path(), &mut |_| {}).unwrap();
    let path = directory.path().join("bundle");
    run.export(&path, "tiny", "encoder", "decoder").unwrap();
    let bundle = e2llm_model::Bundle::read(&path).unwrap();
    assert_eq!((bundle.config.adapter.ratio, bundle.config.encoder_lora.map(|lora| lora.rank)), (2, Some(2)));
    let models = models();
    let mut encoder = (*models.encoder).clone();
    bundle.adapt_encoder(&mut encoder, &candle_core::Device::Cpu).unwrap();
    let last = |encoder: &e2llm_model::TextEncoder| values(&encoder.states(&[vec![2, 5, 9, 3]]).unwrap().last);
    assert_ne!(last(&encoder), last(&models.encoder));
    std::fs::remove_file(path.join("encoder_lora.safetensors")).unwrap();
    assert!(e2llm_model::Bundle::read(&path).unwrap_err().to_string().contains("encoder_lora.safetensors"));
}
