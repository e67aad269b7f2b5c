//! Where parameters start.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use e2llm_model::AdapterConfig;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::optimizer::Parameters;

/// Slot bias of an ordered head: e^4 to 1 against each other slot before anything is learned.
const SLOT_PREFERENCE: f32 = 4.0;

/// Random start of an adapter: scaled normal weights, zero biases, and zero output of the residual paths.
pub fn initial_adapter(config: &AdapterConfig, seed: u64) -> Result<Parameters> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = Parameters::default();
    for (name, shape) in config.parameters() {
        let count: usize = shape.iter().product();
        let values = match name {
            "scale" | "norm1.weight" | "norm2.weight" => vec![1.0; count],
            "segment.down.weight" | "gate.down.weight" | "gate.slots" | "ffn.down.weight" => vec![0.0; count],
            _ if name.ends_with(".bias") => vec![0.0; count],
            "queries" => normal(&mut rng, count).map(|x| x * config.embedding_rms).collect(),
            // What the queries find is passed on as it is to begin with.
            "attend.o.weight" => identity(config.d_model),
            _ => {
                // Values start at the scale of the embeddings that they shall become.
                let is_value = name.starts_with("value.") && !name.ends_with("up.weight") || name == "attend.v.weight";
                let scale = if is_value { config.embedding_rms } else { 1.0 };
                let deviation = scale * (1.0 / shape[1] as f32).sqrt();
                normal(&mut rng, count).map(|x| x * deviation).collect()
            }
        };
        parameters.0.insert(name.to_owned(), Var::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(parameters)
}

fn identity(width: usize) -> Vec<f32> {
    (0..width * width).map(|i| if i % (width + 1) == 0 { 1.0 } else { 0.0 }).collect()
}

/// Lets gate head h of n prefer slot ⌊h·ratio/n⌋ of a segment: soft tokens then begin as parts of several word pieces in
/// their order, instead of one mix for all dimensions. Adapters without gate heads stay as they are.
pub fn order_heads(parameters: &mut Parameters) -> Result<()> {
    let Some(var) = parameters.0.get("gate.slots") else { return Ok(()) };
    let (heads, ratio) = var.dims2()?;
    let bias = |i: usize| if i % ratio == (i / ratio) * ratio / heads { SLOT_PREFERENCE } else { 0.0 };
    let values = (0..heads * ratio).map(bias).collect();
    Ok(var.set(&Tensor::from_vec(values, (heads, ratio), &Device::Cpu)?)?)
}

/// Lets the value path say nothing to begin with: beside the word-piece table, whose rows are values already, a random one
/// would only be noise.
pub(crate) fn silence_values(parameters: &mut Parameters) -> Result<()> {
    for name in ["value.skip.weight", "value.down.weight"] {
        if let Some(var) = parameters.0.get(name) {
            var.set(&var.zeros_like()?)?;
        }
    }
    Ok(())
}

/// What must change in an adapter that has heard no states (features of zeros) for its soft tokens to stay the same whatever
/// states are heard, until it learns to listen: what the hidden layer makes of nothing goes into the bias, the weights behind
/// it start at zero. The gate's hidden layer says the same of every slot, which decides nothing.
pub(crate) fn settled_without_states(parameters: &Parameters) -> Result<BTreeMap<String, Var>> {
    let (hidden, down) = (&parameters.0["value.up.bias"], &parameters.0["value.down.weight"]);
    let said = down.matmul(&hidden.gelu_erf()?.unsqueeze(1)?)?.squeeze(1)?;
    let bias = (parameters.0["value.skip.bias"].as_tensor() + said)?;
    let mut settled = BTreeMap::from([("value.skip.bias".to_owned(), Var::from_tensor(&bias)?)]);
    for name in ["value.skip.weight", "value.down.weight", "gate.down.weight"] {
        if let Some(var) = parameters.0.get(name) {
            settled.insert(name.to_owned(), Var::zeros(var.dims(), var.dtype(), var.device())?);
        }
    }
    Ok(settled)
}

/// LoRA start: A scaled normal, B zero, so that the first step is the base model's.
pub fn initial_lora(shapes: &[(String, [usize; 2])], seed: u64) -> Result<Parameters> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = Parameters::default();
    for (name, shape) in shapes {
        let count = shape[0] * shape[1];
        let values = if name.ends_with(".b") {
            vec![0.0; count]
        } else {
            let deviation = (1.0 / shape[1] as f32).sqrt();
            normal(&mut rng, count).map(|x| x * deviation).collect()
        };
        parameters.0.insert(name.clone(), Var::from_vec(values, (shape[0], shape[1]), &Device::Cpu)?);
    }
    Ok(parameters)
}

/// Standard normal values by Box and Muller.
fn normal(rng: &mut ChaCha8Rng, count: usize) -> impl Iterator<Item = f32> {
    use rand::Rng;
    (0..count).map(move |_| {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use e2llm_model::AdapterForm;

    use super::*;

    /// Gated segments of 4 word pieces, small enough to compute with in a test.
    pub(crate) fn tiny(gate_heads: usize) -> AdapterConfig {
        AdapterConfig {
            form: AdapterForm::GatedSegments,
            ratio: 4,
            d_enc: 3,
            d_model: 8,
            value_hidden: 5,
            gate_hidden: 2,
            segment_hidden: 6,
            embedding_rms: 0.1,
            gate_heads: Some(gate_heads),
        }
    }

    #[test]
    fn values_that_are_silenced_are_zero_whatever_the_features() {
        let config = tiny(2);
        let mut parameters = initial_adapter(&config, 1).unwrap();
        let values = |parameters: &Parameters| {
            let adapter = e2llm_model::Adapter::new(config.clone(), parameters.tensors(), &Device::Cpu).unwrap();
            let features = Tensor::ones((2, 6), candle_core::DType::F32, &Device::Cpu).unwrap();
            adapter.values(&features).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(values(&parameters) > 0.0);
        silence_values(&mut parameters).unwrap();
        assert_eq!(values(&parameters), 0.0);
    }

    #[test]
    fn ordered_heads_prefer_slots_in_order() {
        let config = tiny(8);
        let mut parameters = initial_adapter(&config, 1).unwrap();
        order_heads(&mut parameters).unwrap();
        let slots = parameters.0["gate.slots"].to_vec2::<f32>().unwrap();
        let preferred: Vec<usize> = slots.iter().map(|row| row.iter().position(|b| *b > 0.0).unwrap()).collect();
        assert_eq!(preferred, [0, 0, 1, 1, 2, 2, 3, 3]);
        assert!(slots.iter().all(|row| row.iter().filter(|b| **b > 0.0).count() == 1));
    }
}
