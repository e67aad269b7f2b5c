//! Fused tensor operations with analytic gradients.
//!
//! candle's own fused ops (`rms_norm`, `softmax_last_dim`, rotary embedding) have no backward and drop gradients
//! silently; its differentiable forms are several times slower. These run forward and backward on CPU slices of f32; on
//! other devices, and for other dtypes, the same operations are composed of candle's.
//! Frozen operands (norm weights, base linears) get no gradient at all.

mod attention;
#[cfg(test)]
pub(crate) mod check;
mod composed;
mod fused;
mod linear;
mod loss;
mod rope;

pub use attention::{Attention, Span};
pub use fused::{gelu, layer_norm, rms_norm, swiglu};
pub use linear::{frozen_linear, trained_linear};
pub use loss::{cross_entropy, divergences, log_likelihoods, probabilities, token_losses};
pub use rope::{Rope, RopePairs, RopeTable};

use candle_core::{CpuStorage, DType, Layout, Result, Tensor};

/// Whether the fused form takes a tensor.
fn is_fused(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// The contiguous f32 values behind a layout.
fn cpu_slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("fused operations need contiguous tensors, got strides {:?}", layout.stride());
    };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

/// All values of a tensor, row-major.
fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    tensor.flatten_all()?.to_vec1::<f32>()
}

/// A tensor of `like`'s shape on its device.
fn cpu_tensor(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}
