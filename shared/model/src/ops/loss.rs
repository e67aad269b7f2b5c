//! Losses over a large vocabulary without keeping log-probabilities: cross-entropy with the written token, and divergence
//! from a teacher's distribution.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{composed, cpu_slice, cpu_tensor, is_fused, values};
use e2llm_kernels::element::{dot, softmax_row};

/// `Σ weightᵢ · −ln p(targetᵢ)` in nats. logits `[targets, vocabulary]`; the result is a scalar, f32.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], weights: &[f32]) -> Result<Tensor> {
    let op = CrossEntropy { targets: targets.to_vec(), weights: weights.to_vec() };
    if is_fused(logits) {
        return logits.apply_op1(op);
    }
    op.check(logits.layout())?;
    let weights = Tensor::new(weights, logits.device())?;
    (composed::log_likelihoods(logits, targets)? * weights)?.sum_all()?.neg()
}

/// `ln p(targetᵢ)` in nats, without gradient. logits `[targets, vocabulary]`.
pub fn log_likelihoods(logits: &Tensor, targets: &[u32]) -> Result<Vec<f32>> {
    let op = CrossEntropy { targets: targets.to_vec(), weights: vec![1.0; targets.len()] };
    let width = op.check(logits.layout())?;
    Ok(op.log_likelihoods(&values(&logits.to_dtype(DType::F32)?)?, width))
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

/// `−ln p(targetᵢ)` in nats, one value per row, with gradient. logits `[targets, vocabulary]` → `[targets]`, f32.
pub fn token_losses(logits: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let op = CrossEntropy { targets: targets.to_vec(), weights: vec![1.0; targets.len()] };
    op.check(logits.layout())?;
    if is_fused(logits) {
        return logits.apply_op1(TokenLosses(op));
    }
    composed::log_likelihoods(logits, targets)?.neg()
}

struct TokenLosses(CrossEntropy);

impl CustomOp1 for TokenLosses {
    fn name(&self) -> &'static str {
        "token-losses"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = self.0.check(layout)?;
        let losses: Vec<f32> =
            self.0.log_likelihoods(cpu_slice(logits, layout)?, width).into_iter().map(|l| -l).collect();
        let rows = losses.len();
        Ok((CpuStorage::F32(losses), Shape::from(rows)))
    }

    fn bwd(&self, logits: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (width, grad) = (logits.dim(1)?, values(grad)?);
        let mut gradient = values(logits)?;
        gradient.par_chunks_mut(width).zip(&self.0.targets).zip(&grad).for_each(|((row, target), grad)| {
            softmax_row(row);
            row[*target as usize] -= 1.0;
            row.iter_mut().for_each(|g| *g *= grad);
        });
        Ok(Some(cpu_tensor(gradient, logits)?))
    }
}

/// Probabilities of logits `[rows, vocabulary]`, same shape, f32, without gradient: a teacher's side of [`divergences`].
pub fn probabilities(logits: &Tensor) -> Result<Tensor> {
    if !is_fused(logits) {
        return composed::probabilities(logits);
    }
    let mut rows = values(logits)?;
    rows.par_chunks_mut(logits.dim(1)?).for_each(|row| {
        softmax_row(row);
    });
    cpu_tensor(rows, logits)
}

/// `KL(teacherᵢ ‖ studentᵢ)` in nats, one value per row, with gradient for the student's logits only: `grad · (p − teacher)`.
///
/// logits and teacher `[rows, vocabulary]` → `[rows]`, f32; teacher holds probabilities.
pub fn divergences(logits: &Tensor, teacher: &Tensor) -> Result<Tensor> {
    if logits.shape() != teacher.shape() {
        candle_core::bail!("student logits {:?} do not fit teacher probabilities {:?}", logits.dims(), teacher.dims());
    }
    if !is_fused(logits) {
        return composed::divergences(logits, teacher);
    }
    logits.apply_op1(Divergences { teacher: values(teacher)? })
}

struct Divergences {
    teacher: Vec<f32>,
}

impl CustomOp1 for Divergences {
    fn name(&self) -> &'static str {
        "divergences"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, width) = layout.shape().dims2()?;
        let losses: Vec<f32> = cpu_slice(logits, layout)?
            .par_chunks(width)
            .zip(self.teacher.par_chunks(width))
            .map_init(
                || vec![0.0; width],
                |scratch, (row, teacher)| {
                    scratch.copy_from_slice(row);
                    // Σ t·(ln t − logit) + ln Σ e^logit, as Σ t = 1; no ln p is ever formed.
                    let log_sum = softmax_row(scratch);
                    let entropy: f32 = teacher.iter().filter(|t| **t > 0.0).map(|t| t * t.ln()).sum();
                    entropy - dot(teacher, row) + log_sum
                },
            )
            .collect();
        Ok((CpuStorage::F32(losses), Shape::from(rows)))
    }

    fn bwd(&self, logits: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (width, grad) = (logits.dim(1)?, values(grad)?);
        let mut gradient = values(logits)?;
        gradient.par_chunks_mut(width).zip(self.teacher.par_chunks(width)).zip(&grad).for_each(
            |((row, teacher), grad)| {
                softmax_row(row);
                row.iter_mut().zip(teacher).for_each(|(p, t)| *p = (*p - t) * grad);
            },
        );
        Ok(Some(cpu_tensor(gradient, logits)?))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::check::assert_slope;

    fn rows(seed: f32) -> Tensor {
        let values = (0..15).map(|i| (i as f32 * 0.9 + seed).sin() * 2.0).collect();
        Tensor::from_vec(values, (3, 5), &Device::Cpu).unwrap()
    }

    fn weighted(losses: Tensor) -> Tensor {
        let weights = Tensor::new(&[0.5f32, 2.0, -1.0], &Device::Cpu).unwrap();
        (losses * weights).unwrap().sum_all().unwrap()
    }

    #[test]
    fn token_losses_have_the_gradient_of_their_formula_and_sum_to_the_cross_entropy() {
        let targets = [4, 0, 2];
        assert_slope(&rows(0.3), |x| weighted(token_losses(x, &targets).unwrap()));
        let summed = weighted(token_losses(&rows(0.3), &targets).unwrap()).to_scalar::<f32>().unwrap();
        let whole = cross_entropy(&rows(0.3), &targets, &[0.5, 2.0, -1.0]).unwrap().to_scalar::<f32>().unwrap();
        assert!((summed - whole).abs() < 1e-5, "{summed} {whole}");
    }

    #[test]
    fn divergences_have_the_gradient_of_their_formula() {
        let teacher = probabilities(&rows(1.7)).unwrap();
        assert_slope(&rows(0.3), |x| weighted(divergences(x, &teacher).unwrap()));
    }

    #[test]
    fn nothing_diverges_from_itself() {
        let own = divergences(&rows(0.3), &probabilities(&rows(0.3)).unwrap()).unwrap();
        assert!(own.to_vec1::<f32>().unwrap().iter().all(|d| d.abs() < 1e-5), "{own}");
    }
}
