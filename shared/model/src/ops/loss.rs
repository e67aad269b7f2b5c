//! Cross-entropy over a large vocabulary without keeping log-probabilities.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::gemm::softmax_row;
use super::{cpu_slice, cpu_tensor, values};

/// `Σ weightᵢ · −ln p(targetᵢ)` in nats. logits `[targets, vocabulary]`, f32; the result is a scalar.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    logits.apply_op1(CrossEntropy { targets: targets.to_vec(), weights: weights.to_vec() })
}

/// `ln p(targetᵢ)` in nats, without gradient. logits `[targets, vocabulary]`, f32.
pub fn log_likelihoods(logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let op = CrossEntropy { targets: targets.to_vec(), weights: vec![1.0; targets.len()] };
    let width = op.check(logits.layout())?;
    Ok(op.log_likelihoods(&values(logits)?, width))
}

struct CrossEntropy {
    targets: Vec<u32>,
    weights: Vec<f32>,
}

impl CrossEntropy {
    fn check(&self, layout: &Layout) -> Result<usize> {
        let (rows, width) = layout.shape().dims2()?;
        if rows != self.targets.len() || rows != self.weights.len() {
            candle_core::bail!(
                "cross-entropy got {rows} rows of logits for {} targets and {} weights",
                self.targets.len(),
                self.weights.len()
            );
        }
        if let Some(target) = self.targets.iter().find(|t| **t as usize >= width) {
            candle_core::bail!("target {target} is outside the vocabulary of {width}");
        }
        Ok(width)
    }

    fn log_likelihoods(&self, logits: &[f32], width: usize) -> Vec<f32> {
        logits
            .par_chunks(width)
            .zip(&self.targets)
            .map_init(
                || vec![0.0; width],
                |scratch, (row, target)| {
                    scratch.copy_from_slice(row);
                    row[*target as usize] - softmax_row(scratch)
                },
            )
            .collect()
    }
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = self.check(layout)?;
        let likelihoods = self.log_likelihoods(cpu_slice(logits, layout)?, width);
        let loss = likelihoods.iter().zip(&self.weights).map(|(l, w)| -l * w).sum();
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let scale = grad.to_scalar::<f32>()?;
        let width = logits.dim(1)?;
        let mut gradient = values(logits)?;
        gradient.par_chunks_mut(width).zip(&self.targets).zip(&self.weights).for_each(|((row, target), weight)| {
            softmax_row(row);
            row[*target as usize] -= 1.0;
            row.iter_mut().for_each(|g| *g *= weight * scale);
        });
        Ok(Some(cpu_tensor(gradient, logits)?))
    }
}
