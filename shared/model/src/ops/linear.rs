//! Products with a weight matrix that is frozen, or trained.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::{cpu_slice, cpu_tensor, is_fused, values};
use e2llm_kernels::gemm::{Mat, Threads, matmul};

/// `x · weightᵀ` with a weight that never gets a gradient. x `[tokens, in]`, weight `[out, in]`, of one dtype.
pub fn frozen_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() && !is_fused(x) {
        return x.matmul(&weight.detach().t()?);
    }
    x.apply_op1(FrozenLinear { weight: weight.clone() })
}

struct FrozenLinear {
    weight: Tensor,
}

impl FrozenLinear {
    /// `rows · weightᵀ`, or `rows · weight` when `transposed`.
    fn product(&self, rows: &[f32], tokens: usize, transposed: bool) -> Result<Vec<f32>> {
        let (outputs, inputs) = self.weight.dims2()?;
        let (storage, layout) = self.weight.storage_and_layout();
        let candle_core::Storage::Cpu(storage) = &*storage else {
            candle_core::bail!("frozen_linear runs on CPU tensors only");
        };
        let weight = Mat::new(cpu_slice(storage, layout)?, outputs, inputs, inputs);
        let (width_in, width_out) = if transposed { (outputs, inputs) } else { (inputs, outputs) };
        let mut out = vec![0.0; tokens * width_out];
        let weight = if transposed { weight } else { weight.t() };
        matmul(&mut out, width_out, Mat::new(rows, tokens, width_in, width_in), weight, 1.0, false, Threads::All);
        Ok(out)
    }
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, inputs) = layout.shape().dims2()?;
        let (outputs, expected) = self.weight.dims2()?;
        if inputs != expected {
            candle_core::bail!("linear expects rows of {expected} values, got {inputs}");
        }
        let out = self.product(cpu_slice(x, layout)?, tokens, false)?;
        Ok((CpuStorage::F32(out), Shape::from((tokens, outputs))))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, x: &candle_core::CudaStorage, layout: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (tokens, inputs) = layout.shape().dims2()?;
        let (outputs, _) = self.weight.dims2()?;
        let (storage, weight) = self.weight.storage_and_layout();
        let candle_core::Storage::Cuda(storage) = &*storage else {
            candle_core::bail!("the rows of a linear are on the GPU, its weight is not");
        };
        let out = x.matmul(storage, (1, tokens, outputs, inputs), layout, &weight.transpose(0, 1)?)?;
        Ok((out, Shape::from((tokens, outputs))))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        if !is_fused(x) {
            return grad.matmul(&self.weight.detach()).map(Some);
        }
        let dx = self.product(&values(grad)?, x.dim(0)?, true)?;
        Ok(Some(cpu_tensor(dx, x)?))
    }
}

/// `x · weightᵀ` with a weight under training: [`frozen_linear`] with a gradient for the weight too, and without the
/// transposed copies that candle's product makes. x `[tokens, in]`, weight `[out, in]`, f32 whatever the dtype of x.
pub fn trained_linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    if is_fused(x) { x.apply_op2(weight, TrainedLinear) } else { x.matmul(&weight.to_dtype(x.dtype())?.t()?) }
}

struct TrainedLinear;

impl CustomOp2 for TrainedLinear {
    fn name(&self) -> &'static str {
        "trained-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, inputs) = x_layout.shape().dims2()?;
        let (outputs, expected) = weight_layout.shape().dims2()?;
        if inputs != expected {
            candle_core::bail!("linear expects rows of {expected} values, got {inputs}");
        }
        let mut out = vec![0.0; tokens * outputs];
        let x = Mat::new(cpu_slice(x, x_layout)?, tokens, inputs, inputs);
        let weight = Mat::new(cpu_slice(weight, weight_layout)?, outputs, inputs, inputs);
        matmul(&mut out, outputs, x, weight.t(), 1.0, false, Threads::All);
        Ok((CpuStorage::F32(out), Shape::from((tokens, outputs))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((tokens, inputs), outputs) = (x.dims2()?, weight.dim(0)?);
        let (x_values, weight_values, grad) = (values(x)?, values(weight)?, values(grad)?);
        let grad = Mat::new(&grad, tokens, outputs, outputs);
        let (mut dx, mut dw) = (vec![0.0; tokens * inputs], vec![0.0; outputs * inputs]);
        let weight_rows = Mat::new(&weight_values, outputs, inputs, inputs);
        matmul(&mut dx, inputs, grad, weight_rows, 1.0, false, Threads::All);
        matmul(&mut dw, inputs, grad.t(), Mat::new(&x_values, tokens, inputs, inputs), 1.0, false, Threads::All);
        Ok((Some(cpu_tensor(dx, x)?), Some(cpu_tensor(dw, weight)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::check::assert_gradient;

    #[test]
    fn a_frozen_linear_passes_the_gradient_through() {
        let weight = Tensor::from_vec((0..16).map(|i| (i as f32).sin()).collect(), (4, 4), &Device::Cpu).unwrap();
        assert_gradient(|x| frozen_linear(x, &weight).unwrap());
    }

    #[test]
    fn a_trained_linear_has_both_gradients() {
        let fixed = |rows: usize| {
            Tensor::from_vec((0..rows * 4).map(|i| (i as f32).sin()).collect(), (rows, 4), &Device::Cpu).unwrap()
        };
        assert_gradient(|x| trained_linear(x, &fixed(4)).unwrap());
        // As the weight of `[3, 4]` outputs over 4 rows, brought back to the shape of x.
        assert_gradient(|w| trained_linear(&fixed(4), w).unwrap().t().unwrap().contiguous().unwrap());
    }
}
