//! Loss and gradients through the decoder against torch's autograd.

use std::collections::HashMap;

use candle_core::{Device, Tensor, Var};
use e2llm_model::decoder::LORA_TARGETS;
use e2llm_model::ops::cross_entropy;
use e2llm_model::{Decoder, Packing};
use serde_json::Value;

use crate::assert_close;
use crate::golden::{cases, floats, formula, ids, read, size, text};
use crate::tiny::{load, mixed_input};

/// Name of our LoRA tensors → the reference's linear.
fn reference_name(ours: &str) -> String {
    let parts: Vec<&str> = ours.split('.').collect();
    let target = match parts[2] {
        "q" | "k" | "v" | "o" => format!("self_attn.{}_proj", parts[2]),
        other => format!("mlp.{other}_proj"),
    };
    format!("model.layers.{}.{target}", parts[1])
}

fn lora(decoder: &Decoder, gradients: &Value) -> HashMap<String, Var> {
    let spread = gradients["lora_spread"].as_f64().unwrap() as f32;
    let shapes = decoder.lora_shapes(size(gradients, "lora_rank")).unwrap();
    assert_eq!(shapes.len(), decoder.config().layers * LORA_TARGETS.len() * 2);
    let var = |(name, shape): (String, [usize; 2])| {
        let side = if name.ends_with(".a") { "lora_A" } else { "lora_B" };
        let values = formula(&format!("{}.{side}.weight", reference_name(&name)), shape[0] * shape[1], spread, 0.0);
        (name, Var::from_vec(values, (shape[0], shape[1]), &Device::Cpu).unwrap())
    };
    shapes.into_iter().map(var).collect()
}

#[test]
fn loss_and_gradients_of_inputs_and_lora() {
    let golden = read("tiny.json");
    let prompt = ids(&golden["prompt"]);
    let mut checked = 0;
    for case in cases(&golden["decoders"]).filter(|case| case["gradients"].is_object()) {
        let expected = &case["gradients"];
        let mut decoder = load(case);
        let lora = lora(&decoder, expected);
        let tensors = lora.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let scale = expected["lora_scale"].as_f64().unwrap();
        decoder.set_lora(&tensors, size(expected, "lora_rank"), scale).unwrap();
        let input = Var::from_tensor(&mixed_input(&decoder, &golden)).unwrap();
        let first = size(expected, "first_target");
        let hidden = decoder.hidden(input.as_tensor(), &Packing::sequences(&[24])).unwrap();
        let rows: Vec<u32> = (first as u32 - 1..23).collect();
        let rows = hidden.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
        let count = 24 - first;
        let loss =
            cross_entropy(&decoder.logits(&rows).unwrap(), &prompt[first..], &vec![1.0 / count as f32; count]).unwrap();
        let name = text(case, "name");
        assert_close(name, &[loss.to_scalar().unwrap()], &[expected["loss"].as_f64().unwrap() as f32], 1e-4);
        let gradients = loss.backward().unwrap();
        let gradient =
            |var: &Var| gradients.get(var.as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_close(name, &gradient(&input), &floats(&expected["inputs_embeds"]), 1e-4);
        for reference in cases(&expected["lora"]) {
            let (ours, _) = lora.iter().find(|(n, _)| reference_name(n) == text(reference, "name")).unwrap();
            let stem = ours.rsplit_once('.').unwrap().0;
            for side in ["a", "b"] {
                let ours = gradient(&lora[&format!("{stem}.{side}")]);
                assert_close(&format!("{name} {stem}.{side}"), &ours, &floats(&reference[side]), 1e-4);
                checked += 1;
            }
        }
    }
    assert!(checked >= 4 * 2 * 7 * 2, "only {checked} LoRA gradients were compared");
}
