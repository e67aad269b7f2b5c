//! What is trained beside the decoder's LoRA, against torch's autograd: encoder LoRA, attention pooling, distillation.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use e2llm_model::ops::{divergences, probabilities};
use e2llm_model::{Adapter, AdapterConfig, AdapterForm, TextEncoder};
use serde_json::Value;

use crate::assert_close;
use crate::golden::{cases, floats, formula, ids, read, size, soft_rows, text, write_checkpoint};

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn var(name: &str, shape: &[usize], scale: f32, offset: f32) -> Var {
    let values = formula(name, shape.iter().product(), scale, offset);
    Var::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn tensors(vars: &HashMap<String, Var>) -> HashMap<String, Tensor> {
    vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
}

/// The scalar whose gradients the golden values are: Σ rows · formula vectors.
fn against_formula(rows: &Tensor) -> Tensor {
    let (count, width) = rows.dims2().unwrap();
    let weights = Tensor::from_vec(soft_rows(count, width), (count, width), &Device::Cpu).unwrap();
    (rows * weights).unwrap().sum_all().unwrap()
}

#[test]
fn states_and_gradients_of_an_encoder_with_lora() {
    let (golden, checkpoints) = (read("training.json"), read("tiny.json"));
    let prompt = ids(&checkpoints["prompt"]);
    for expected in cases(&golden["encoder_lora"]) {
        let name = text(expected, "name");
        let checkpoint = cases(&checkpoints["encoders"]).find(|case| case["name"] == name).unwrap();
        let directory = tempfile::tempdir().unwrap();
        write_checkpoint(checkpoint, directory.path());
        let config = std::fs::read_to_string(directory.path().join("config.json")).unwrap();
        let base = TextEncoder::load(&directory.path().join("model.safetensors"), &config, &Device::Cpu).unwrap();
        let (rank, scale) = (size(expected, "rank"), f64::from(number(&expected["scale"])));
        let spread = number(&expected["spread"]);
        let shapes = base.lora_shapes(rank).unwrap();
        let lora: HashMap<String, Var> =
            shapes.into_iter().map(|(name, shape)| (name.clone(), var(&name, &shape, spread, 0.0))).collect();

        let mut beside = base.clone();
        beside.set_lora(&tensors(&lora), rank, scale).unwrap();
        let states = beside.states(std::slice::from_ref(&prompt)).unwrap();
        assert_close(name, &flat(&states.last), &floats(&expected["last_hidden"]), 5e-5);
        let gradients = against_formula(&states.last).backward().unwrap();
        let mut checked = 0;
        for reference in cases(&expected["gradients"]) {
            let ours = flat(gradients.get(lora[text(reference, "name")].as_tensor()).unwrap());
            assert_close(&format!("{name} {}", reference["name"]), &ours, &floats(&reference["grad"]), 1e-4);
            checked += 1;
        }
        assert_eq!(checked, lora.len(), "{name}: not every LoRA tensor was compared");

        let mut merged = base.clone();
        merged.merge_lora(&tensors(&lora), rank, scale).unwrap();
        let states = merged.states(std::slice::from_ref(&prompt)).unwrap();
        assert_close(&format!("{name} merged"), &flat(&states.last), &floats(&expected["last_hidden"]), 5e-5);
        beside.set_lora(&HashMap::new(), rank, scale).unwrap();
        let without = [&beside, &base].map(|e| flat(&e.states(std::slice::from_ref(&prompt)).unwrap().last));
        assert_eq!(without[0], without[1], "{name}: a LoRA taken off leaves something behind");
    }
}

#[test]
fn soft_tokens_and_gradients_of_attention_pooling() {
    let golden = &read("training.json")["attention_pooling"];
    let config = AdapterConfig {
        form: AdapterForm::AttentionPooling { queries: size(golden, "queries"), heads: size(golden, "heads") },
        ratio: 4,
        d_enc: size(golden, "d_enc"),
        d_model: size(golden, "d_model"),
        value_hidden: size(golden, "value_hidden"),
        gate_hidden: 1,
        segment_hidden: 1,
        embedding_rms: number(&golden["embedding_rms"]),
        gate_heads: None,
    };
    let parameters: HashMap<String, Var> = cases(&golden["parameters"])
        .map(|p| {
            let shape: Vec<usize> = ids(&p["shape"]).into_iter().map(|n| n as usize).collect();
            let name = text(p, "name");
            (name.to_owned(), var(name, &shape, number(&p["scale"]), number(&p["offset"])))
        })
        .collect();
    let adapter = Adapter::new(config.clone(), tensors(&parameters), &Device::Cpu).unwrap();
    let pieces: Vec<usize> = ids(&golden["pieces"]).into_iter().map(|n| n as usize).collect();
    let features = var("features", &[pieces.iter().sum(), 2 * config.d_enc], 2.0, 0.0);
    let soft = adapter.soft_tokens(features.as_tensor(), &pieces).unwrap();
    assert_eq!(soft.dim(0).unwrap(), pieces.iter().map(|p| config.soft_tokens(*p)).sum::<usize>());
    assert_close("soft", &flat(&soft), &floats(&golden["soft"]), 1e-5);
    let gradients = against_formula(&soft).backward().unwrap();
    let gradient = |var: &Var| flat(gradients.get(var.as_tensor()).unwrap());
    assert_close("features", &gradient(&features), &floats(&golden["features_grad"]), 1e-5);
    for reference in cases(&golden["parameters"]) {
        let name = text(reference, "name");
        assert_close(name, &gradient(&parameters[name]), &floats(&reference["grad"]), 1e-5);
    }
}

#[test]
fn divergences_from_a_teacher_and_their_gradient() {
    let golden = &read("training.json")["divergences"];
    let shape: Vec<usize> = ids(&golden["shape"]).into_iter().map(|n| n as usize).collect();
    let spread = number(&golden["spread"]);
    let (student, teacher) = (var("student", &shape, spread, 0.0), var("teacher", &shape, spread, 0.0));
    let each = divergences(student.as_tensor(), &probabilities(teacher.as_tensor()).unwrap()).unwrap();
    assert_close("divergences", &flat(&each), &floats(&golden["divergences"]), 1e-5);
    let weights = Tensor::new(floats(&golden["weights"]), &Device::Cpu).unwrap();
    let gradients = (each * weights).unwrap().sum_all().unwrap().backward().unwrap();
    assert_close("gradient", &flat(gradients.get(student.as_tensor()).unwrap()), &floats(&golden["grad"]), 1e-5);
}
