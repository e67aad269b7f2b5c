//! The outer step of a round: from the members' parameters to the committed ones.
//!
//! Members write safetensors whose parameters are named `<side>.value.<name>`; moments beside them are passed over. With
//! θ the last committed parameters and θ̄ the members' mean, Δ = θ − θ̄ is the outer gradient, and Nesterov's step is
//! v ← μ·v + Δ, θ ← θ − η·(Δ + μ·v) (DiLoCo, arXiv 2311.08105 §2). With η = 1 and μ = 0 that is the mean itself.
//! Sums are taken in f64 in the members' order, so that whoever commits a round gets the same bytes.

use std::collections::BTreeMap;

use bytes::Bytes;
use safetensors::tensor::{Dtype, SafeTensors, TensorView, serialize};

/// What marks a parameter among a state's tensors.
const PARAMETER: &str = ".value.";

/// Parameters of one side by name, f32.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Parameters(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Parameters {
    /// Reads a member's state, or parameters that were committed.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, String> {
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let mut parameters = BTreeMap::new();
        for (name, tensor) in file.iter().filter(|(name, _)| name.contains(PARAMETER)) {
            if tensor.dtype() != Dtype::F32 {
                return Err(format!("tensor {name} is {:?}, not F32", tensor.dtype()));
            }
            let (values, _) = tensor.data().as_chunks::<4>();
            let values: Vec<f32> = values.iter().map(|value| f32::from_le_bytes(*value)).collect();
            if let Some(value) = values.iter().find(|value| !value.is_finite()) {
                return Err(format!("tensor {name} holds {value}"));
            }
            parameters.insert(name.to_owned(), (tensor.shape().to_vec(), values));
        }
        Ok(Self(parameters))
    }

    /// The same as safetensors.
    pub(crate) fn write(&self) -> Result<Bytes, String> {
        let encoded: BTreeMap<&String, Vec<u8>> = self
            .0
            .iter()
            .map(|(name, (_, values))| (name, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
            .collect();
        let views = self.0.iter().map(|(name, (shape, _))| {
            TensorView::new(Dtype::F32, shape.clone(), &encoded[name]).map(|view| (name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        serialize(views, None).map(Bytes::from).map_err(|error| error.to_string())
    }

    /// Nesterov's step from these parameters towards `mean`; `velocity` is v, changed in place.
    pub(crate) fn step(&self, mean: &Self, velocity: &mut Self, rate: f64, momentum: f64) -> Result<Self, String> {
        if !mean.is_like(self) {
            return Err("the round has other parameters than the one before".to_owned());
        }
        if !velocity.is_like(self) {
            *velocity = self.zeros();
        }
        let mut stepped = self.clone();
        for (name, (_, values)) in &mut stepped.0 {
            let Some((_, velocity)) = velocity.0.get_mut(name) else { continue };
            for ((value, mean), velocity) in values.iter_mut().zip(&mean.0[name].1).zip(velocity) {
                let gradient = f64::from(*value) - f64::from(*mean);
                let v = momentum * f64::from(*velocity) + gradient;
                *velocity = v as f32;
                *value = (f64::from(*value) - rate * (gradient + momentum * v)) as f32;
            }
        }
        Ok(stepped)
    }

    fn zeros(&self) -> Self {
        let zero = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
            (name.clone(), (shape.clone(), vec![0.0; values.len()]))
        };
        Self(self.0.iter().map(zero).collect())
    }

    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let shape = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<f32>))| (name.clone(), shape.clone());
        self.0.iter().map(shape).eq(other.0.iter().map(shape))
    }
}

/// The mean of members' parameters, taken one after the other: a round of many members fits the memory of one.
#[derive(Debug, Default)]
pub(crate) struct Mean {
    sum: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
    members: u32,
}

impl Mean {
    /// Of parameters that are like these.
    pub(crate) fn like(parameters: &Parameters) -> Self {
        let zero = |(name, (shape, values)): (&String, &(Vec<usize>, Vec<f32>))| {
            (name.clone(), (shape.clone(), vec![0.0; values.len()]))
        };
        Self { sum: parameters.0.iter().map(zero).collect(), members: 0 }
    }

    /// Whether parameters are like those expected, or else added before, in names and shapes.
    pub(crate) fn accepts(&self, parameters: &Parameters) -> bool {
        let names = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<f64>))| (name.clone(), shape.clone());
        let others = |(name, (shape, _)): (&String, &(Vec<usize>, Vec<f32>))| (name.clone(), shape.clone());
        self.sum.is_empty() || self.sum.iter().map(names).eq(parameters.0.iter().map(others))
    }

    /// Adds what [`Mean::accepts`].
    pub(crate) fn add(&mut self, parameters: Parameters) {
        debug_assert!(self.accepts(&parameters));
        self.members += 1;
        for (name, (shape, values)) in parameters.0 {
            let (_, sum) = self.sum.entry(name).or_insert_with(|| (shape, vec![0.0; values.len()]));
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value));
        }
    }

    /// The mean; `None` of no members.
    pub(crate) fn finish(self) -> Option<Parameters> {
        let members = f64::from(self.members);
        let mean = |(name, (shape, sum)): (String, (Vec<usize>, Vec<f64>))| {
            (name, (shape, sum.into_iter().map(|sum| (sum / members) as f32).collect()))
        };
        (self.members > 0).then(|| Parameters(self.sum.into_iter().map(mean).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(values: &[f32]) -> Parameters {
        Parameters(BTreeMap::from([("lora.value.a".to_owned(), (vec![values.len()], values.to_vec()))]))
    }

    #[test]
    fn parameters_are_read_as_written_and_moments_passed_over() {
        let written = parameters(&[1.5, -2.0]).write().unwrap();
        assert_eq!(Parameters::read(&written).unwrap(), parameters(&[1.5, -2.0]));
        let mut state = parameters(&[3.0]);
        state.0.insert("lora.first.a".to_owned(), (vec![1], vec![9.0]));
        assert_eq!(Parameters::read(&state.write().unwrap()).unwrap(), parameters(&[3.0]));
        assert!(Parameters::read(&written[..9]).is_err());
    }

    #[test]
    fn at_rate_one_without_momentum_the_step_is_the_mean() {
        let mut mean = Mean::default();
        mean.add(parameters(&[1.0, 4.0]));
        mean.add(parameters(&[3.0, 0.0]));
        let mean = mean.finish().unwrap();
        assert_eq!(mean, parameters(&[2.0, 2.0]));
        let mut velocity = Parameters::default();
        assert_eq!(parameters(&[5.0, 5.0]).step(&mean, &mut velocity, 1.0, 0.0).unwrap(), mean);
    }

    #[test]
    fn momentum_is_nesterovs() {
        let mut velocity = Parameters::default();
        let start = parameters(&[1.0]);
        let first = start.step(&parameters(&[0.0]), &mut velocity, 0.5, 0.8).unwrap();
        // Δ = 1, v = 1, θ = 1 − 0.5·(1 + 0.8) = 0.1
        assert!((first.0["lora.value.a"].1[0] - 0.1).abs() < 1e-6);
        let second = first.step(&parameters(&[0.1]), &mut velocity, 0.5, 0.8).unwrap();
        // Δ = 0, v = 0.8, θ = 0.1 − 0.5·0.64 = −0.22
        assert!((second.0["lora.value.a"].1[0] + 0.22).abs() < 1e-6);
    }

    #[test]
    fn other_parameters_are_not_accepted_and_those_that_are_no_numbers_not_read() {
        let mut mean = Mean::default();
        assert!(mean.accepts(&parameters(&[1.0])));
        mean.add(parameters(&[1.0]));
        assert!(!mean.accepts(&parameters(&[1.0, 2.0])));
        assert_eq!(mean.finish(), Some(parameters(&[1.0])));
        let mean = Mean::like(&parameters(&[5.0, 5.0]));
        assert!(!mean.accepts(&parameters(&[1.0])) && mean.accepts(&parameters(&[1.0, 2.0])));
        assert_eq!(mean.finish(), None, "nothing was added");
        let error = Parameters::read(&parameters(&[f32::NAN]).write().unwrap()).unwrap_err();
        assert!(error.contains("lora.value.a holds NaN"), "{error}");
        assert_eq!(Mean::default().finish(), None);
    }
}
