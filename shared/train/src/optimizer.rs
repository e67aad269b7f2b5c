//! AdamW whose moments can be saved: candle's hides them, and resuming must be bit-equal.
//!
//! Moments and the update are on the CPU wherever the parameters are: what is trained is small beside what is frozen, and
//! checkpoints are the same on every device.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// Trainable tensors by name; ordered, so that every run visits them alike.
#[derive(Debug, Clone, Default)]
pub struct Parameters(pub BTreeMap<String, Var>);

impl Parameters {
    /// Clones of the variables as tensors that keep their identity in the graph.
    pub fn tensors(&self) -> std::collections::HashMap<String, Tensor> {
        self.0.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
    }

    /// The same values on `device`, as new variables unless they are there already.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        let moved = |(name, var): (&String, &Var)| {
            let is_there = var.device().same_device(device);
            let var = if is_there { var.clone() } else { Var::from_tensor(&var.to_device(device)?)? };
            Ok((name.clone(), var))
        };
        Ok(Self(self.0.iter().map(moved).collect::<Result<_>>()?))
    }

    /// Where they are; the CPU where there is none.
    pub fn device(&self) -> Device {
        self.0.values().next().map_or(Device::Cpu, |var| var.device().clone())
    }

    /// Number of scalar parameters.
    pub fn count(&self) -> usize {
        self.0.values().map(|v| v.elem_count()).sum()
    }
}

/// Settings of [`AdamW`], after Loshchilov and Hutter (arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWConfig {
    /// Peak learning rate; the schedule scales it.
    pub learning_rate: f64,
    /// Decay of the first moment.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// Decay of the second moment.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Decoupled weight decay.
    #[serde(default)]
    pub weight_decay: f64,
    /// Largest global norm of a step's gradient; larger ones are scaled down.
    #[serde(default = "clip")]
    pub clip: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { learning_rate: 1e-3, beta1: beta1(), beta2: beta2(), weight_decay: 0.0, clip: clip() }
    }
}

fn beta1() -> f64 {
    0.9
}
fn beta2() -> f64 {
    0.98
}
fn clip() -> f64 {
    1.0
}

const EPSILON: f32 = 1e-8;

/// AdamW with decoupled weight decay, gradient accumulation and clipping by global norm.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    parameters: Parameters,
    states: BTreeMap<String, State>,
    steps: u64,
}

#[derive(Debug, Clone)]
struct State {
    gradient: Vec<f32>,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl State {
    fn zero(var: &Var) -> Self {
        let zeros = || vec![0.0; var.elem_count()];
        Self { gradient: zeros(), first: zeros(), second: zeros() }
    }
}

impl AdamW {
    /// Zero moments for every parameter.
    pub fn new(parameters: Parameters, config: AdamWConfig) -> Self {
        let states = parameters.0.iter().map(|(name, var)| (name.clone(), State::zero(var))).collect();
        Self { config, parameters, states, steps: 0 }
    }

    /// Another variable under this name, of any shape, with zero moments.
    pub fn replace(&mut self, name: &str, var: Var) {
        self.states.insert(name.to_owned(), State::zero(&var));
        self.parameters.0.insert(name.to_owned(), var);
    }

    /// Settings from now on; moments stay.
    pub fn configure(&mut self, config: AdamWConfig) {
        self.config = config;
    }

    /// The parameters it trains.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Adds the gradients of one backward pass. A parameter the loss does not reach is an error: a fused operation
    /// without backward would otherwise go unnoticed.
    pub fn accumulate(&mut self, gradients: &GradStore) -> Result<()> {
        for (name, var) in &self.parameters.0 {
            let Some(gradient) = gradients.get(var.as_tensor()) else {
                return Err(TrainError::Invalid(format!(
                    "parameter {name} got no gradient: the loss does not reach it"
                )));
            };
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            if let Some(state) = self.states.get_mut(name) {
                state.gradient.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            }
        }
        Ok(())
    }

    /// One update with the accumulated gradient, which is then cleared. Returns its norm before clipping.
    pub fn step(&mut self, schedule: f64) -> Result<f64> {
        let square = |state: &State| state.gradient.iter().map(|g| f64::from(*g) * f64::from(*g)).sum::<f64>();
        let norm = self.states.values().map(square).sum::<f64>().sqrt();
        let factor = if norm > self.config.clip { (self.config.clip / norm) as f32 } else { 1.0 };
        self.steps += 1;
        let correction = |beta: f64| 1.0 - beta.powi(self.steps.min(i32::MAX as u64) as i32);
        let rate = (self.config.learning_rate * schedule) as f32;
        let update = Update {
            rate,
            decay: 1.0 - rate * self.config.weight_decay as f32,
            factor,
            beta1: self.config.beta1 as f32,
            beta2: self.config.beta2 as f32,
            first_correction: 1.0 / correction(self.config.beta1) as f32,
            second_correction: 1.0 / correction(self.config.beta2) as f32,
        };
        for (name, var) in &self.parameters.0 {
            if let Some(state) = self.states.get_mut(name) {
                let mut values = var.flatten_all()?.to_vec1::<f32>()?;
                update.apply(&mut values, state);
                var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
            }
        }
        Ok(norm)
    }

    /// Parameters, moments and step count as named tensors, for a checkpoint.
    pub fn save(&self, prefix: &str, into: &mut BTreeMap<String, Tensor>) -> Result<()> {
        for (name, var) in &self.parameters.0 {
            into.insert(format!("{prefix}.value.{name}"), var.as_tensor().to_device(&Device::Cpu)?.copy()?);
            if let Some(state) = self.states.get(name) {
                for (kind, moment) in [("first", &state.first), ("second", &state.second)] {
                    let tensor = Tensor::from_slice(moment, var.shape(), &Device::Cpu)?;
                    into.insert(format!("{prefix}.{kind}.{name}"), tensor);
                }
            }
        }
        into.insert(format!("{prefix}.steps"), Tensor::new(&[self.steps as u32], &Device::Cpu)?);
        Ok(())
    }

    /// Restores what [`AdamW::save`] wrote.
    pub fn restore(&mut self, prefix: &str, from: &std::collections::HashMap<String, Tensor>) -> Result<()> {
        let get = |key: String| {
            from.get(&key).ok_or_else(|| {
                TrainError::Invalid(format!("the checkpoint has no tensor {key}; it belongs to another recipe"))
            })
        };
        for (name, var) in &self.parameters.0 {
            var.set(&get(format!("{prefix}.value.{name}"))?.to_device(var.device())?)?;
            if let Some(state) = self.states.get_mut(name) {
                state.first = get(format!("{prefix}.first.{name}"))?.flatten_all()?.to_vec1()?;
                state.second = get(format!("{prefix}.second.{name}"))?.flatten_all()?.to_vec1()?;
            }
        }
        let steps = get(format!("{prefix}.steps"))?.to_vec1::<u32>()?;
        self.steps = steps.first().copied().map_or(0, u64::from);
        Ok(())
    }
}

struct Update {
    rate: f32,
    decay: f32,
    factor: f32,
    beta1: f32,
    beta2: f32,
    first_correction: f32,
    second_correction: f32,
}

impl Update {
    fn apply(&self, values: &mut [f32], state: &mut State) {
        let moments = state.first.iter_mut().zip(&mut state.second);
        for ((value, gradient), (first, second)) in values.iter_mut().zip(&mut state.gradient).zip(moments) {
            let g = *gradient * self.factor;
            *first = self.beta1 * *first + (1.0 - self.beta1) * g;
            *second = self.beta2 * *second + (1.0 - self.beta2) * g * g;
            let step = *first * self.first_correction / ((*second * self.second_correction).sqrt() + EPSILON);
            *value = *value * self.decay - self.rate * step;
            *gradient = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(value: &[f32]) -> Parameters {
        let var = Var::from_slice(value, value.len(), &Device::Cpu).unwrap();
        Parameters(BTreeMap::from([("w".to_owned(), var)]))
    }

    fn config(clip: f64) -> AdamWConfig {
        AdamWConfig { learning_rate: 0.1, beta1: 0.9, beta2: 0.98, weight_decay: 0.0, clip }
    }

    fn descend(optimizer: &mut AdamW, steps: usize) -> f64 {
        let mut norm = 0.0;
        for _ in 0..steps {
            let w = optimizer.parameters().0["w"].as_tensor().clone();
            let loss = w.sqr().unwrap().sum_all().unwrap();
            optimizer.accumulate(&loss.backward().unwrap()).unwrap();
            norm = optimizer.step(1.0).unwrap();
        }
        norm
    }

    #[test]
    fn the_first_step_moves_by_the_learning_rate() {
        let mut optimizer = AdamW::new(parameters(&[3.0, -4.0]), config(1e9));
        let norm = descend(&mut optimizer, 1);
        assert!((norm - 10.0).abs() < 1e-5, "{norm}");
        let w = optimizer.parameters().0["w"].to_vec1::<f32>().unwrap();
        assert!((w[0] - 2.9).abs() < 1e-5 && (w[1] + 3.9).abs() < 1e-5, "{w:?}");
    }

    #[test]
    fn a_restored_optimizer_goes_on_bit_for_bit() {
        let mut whole = AdamW::new(parameters(&[3.0, -4.0, 0.5]), config(1.0));
        descend(&mut whole, 3);
        let mut saved = BTreeMap::new();
        whole.save("x", &mut saved).unwrap();
        descend(&mut whole, 4);
        let mut resumed = AdamW::new(parameters(&[0.0; 3]), config(1.0));
        resumed.restore("x", &saved.into_iter().collect()).unwrap();
        descend(&mut resumed, 4);
        let bits =
            |o: &AdamW| o.parameters().0["w"].to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&whole), bits(&resumed));
    }

    #[test]
    fn a_parameter_without_gradient_is_an_error() {
        let mut optimizer = AdamW::new(parameters(&[1.0]), config(1.0));
        let other = Var::new(2.0f32, &Device::Cpu).unwrap();
        let gradients = other.sqr().unwrap().backward().unwrap();
        let error = optimizer.accumulate(&gradients).unwrap_err().to_string();
        assert!(error.contains("parameter w got no gradient"), "{error}");
    }
}
