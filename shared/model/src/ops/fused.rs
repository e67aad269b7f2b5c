//! Row-wise and element-wise operations: norms and activations.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{composed, cpu_slice, cpu_tensor, is_fused, values};
use e2llm_kernels::element;

/// Values per parallel unit of element-wise work.
const GRAIN: usize = 16 * 1024;

/// RMSNorm over the last dimension. x `[tokens, width]`, weight `[width]` (frozen, f32).
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if !is_fused(x) {
        return composed::rms_norm(x, weight, eps);
    }
    x.apply_op1(RmsNorm { weight: values(weight)?, eps })
}

struct RmsNorm {
    weight: Vec<f32>,
    eps: f32,
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu_slice(x, layout)?;
        let width = self.weight.len();
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(width)
            .with_min_len(GRAIN / width)
            .zip(x.par_chunks(width))
            .for_each(|(out, x)| element::rms_norm_row(out, x, &self.weight, self.eps));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (x_values, grad) = (values(x)?, values(grad)?);
        let width = self.weight.len();
        let mut dx = vec![0.0; x_values.len()];
        dx.par_chunks_mut(width)
            .with_min_len(GRAIN / width)
            .zip(x_values.par_chunks(width).zip(grad.par_chunks(width)))
            .for_each_init(
                || vec![0.0; width],
                |scratch, (dx, (x, grad))| element::rms_norm_row_backward(dx, x, &self.weight, grad, self.eps, scratch),
            );
        Ok(Some(cpu_tensor(dx, x)?))
    }
}

/// LayerNorm over the last dimension. x `[tokens, width]`, weight and bias `[width]` (frozen, f32).
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if !is_fused(x) {
        return composed::layer_norm(x, weight, bias, eps);
    }
    x.apply_op1(LayerNorm { weight: values(weight)?, bias: values(bias)?, eps })
}

struct LayerNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        "layer-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu_slice(x, layout)?;
        let width = self.weight.len();
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(width)
            .with_min_len(GRAIN / width)
            .zip(x.par_chunks(width))
            .for_each(|(out, x)| element::layer_norm_row(out, x, &self.weight, &self.bias, self.eps));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (x_values, grad) = (values(x)?, values(grad)?);
        let width = self.weight.len();
        let mut dx = vec![0.0; x_values.len()];
        dx.par_chunks_mut(width)
            .with_min_len(GRAIN / width)
            .zip(x_values.par_chunks(width).zip(grad.par_chunks(width)))
            .for_each_init(
                || vec![0.0; width],
                |scratch, (dx, (x, grad))| {
                    element::layer_norm_row_backward(dx, x, &self.weight, grad, self.eps, scratch)
                },
            );
        Ok(Some(cpu_tensor(dx, x)?))
    }
}

/// Exact GELU, element-wise.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if is_fused(x) { x.apply_op1(Gelu) } else { x.gelu_erf() }
}

struct Gelu;

impl CustomOp1 for Gelu {
    fn name(&self) -> &'static str {
        "gelu-erf"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = cpu_slice(x, layout)?;
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(GRAIN).zip(x.par_chunks(GRAIN)).for_each(|(out, x)| element::gelu(out, x));
        Ok((CpuStorage::F32(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _out: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (x_values, grad) = (values(x)?, values(grad)?);
        let mut dx = vec![0.0; x_values.len()];
        element::gelu_backward(&mut dx, &x_values, &grad);
        Ok(Some(cpu_tensor(dx, x)?))
    }
}

/// `silu(gate) · up`, element-wise, same shapes.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if is_fused(gate) { gate.apply_op2(up, SwiGlu) } else { composed::swiglu(gate, up) }
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (cpu_slice(gate, gate_layout)?, cpu_slice(up, up_layout)?);
        let mut out = vec![0.0; gate.len()];
        out.par_chunks_mut(GRAIN)
            .zip(gate.par_chunks(GRAIN).zip(up.par_chunks(GRAIN)))
            .for_each(|(out, (gate, up))| element::swiglu(out, gate, up));
        Ok((CpuStorage::F32(out), gate_layout.shape().clone()))
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _out: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gate_values, up_values, grad) = (values(gate)?, values(up)?, values(grad)?);
        let (mut d_gate, mut d_up) = (vec![0.0; grad.len()], vec![0.0; grad.len()]);
        d_gate
            .par_chunks_mut(GRAIN)
            .zip(d_up.par_chunks_mut(GRAIN))
            .zip(gate_values.par_chunks(GRAIN).zip(up_values.par_chunks(GRAIN)).zip(grad.par_chunks(GRAIN)))
            .for_each(|((d_gate, d_up), ((gate, up), grad))| element::swiglu_backward(d_gate, d_up, gate, up, grad));
        Ok((Some(cpu_tensor(d_gate, gate)?), Some(cpu_tensor(d_up, up)?)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::check::assert_gradient;

    #[test]
    fn gelu_has_the_gradient_of_its_formula() {
        assert_gradient(|x| gelu(x).unwrap());
    }

    #[test]
    fn rms_norm_has_the_gradient_of_its_formula() {
        let weight = Tensor::new(&[0.5f32, 1.0, -2.0, 0.1], &Device::Cpu).unwrap();
        assert_gradient(|x| rms_norm(x, &weight, 1e-5).unwrap());
    }

    #[test]
    fn swiglu_has_the_gradient_of_its_formula() {
        assert_gradient(|x| swiglu(x, &(x * 0.5).unwrap()).unwrap());
    }

    #[test]
    fn layer_norm_has_the_gradient_of_its_formula() {
        let weight = Tensor::new(&[0.5f32, 1.0, -2.0, 0.1], &Device::Cpu).unwrap();
        let bias = Tensor::new(&[0.1f32, 0.0, 1.0, -0.4], &Device::Cpu).unwrap();
        assert_gradient(|x| layer_norm(x, &weight, &bias, 1e-5).unwrap());
    }
}
