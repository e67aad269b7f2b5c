//! A linear layer over a base weight, dense or quantised, frozen or trained, with an optional LoRA beside it.

use std::sync::Arc;

use candle_core::quantized::{QMatMul, QTensor};
use candle_core::{DType, Device, Module, Tensor};

use crate::error::Result;
use crate::ops::{frozen_linear, trained_linear};

/// From this many rows on, expanding a quantised weight once and using f32 GEMM beats quantised dot products.
const GEMM_ROWS: usize = 16;

/// A matrix `[out, in]`.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Values of the blocks' dtype, frozen.
    Dense(Tensor),
    /// f32 values under training: they get gradients.
    Trained(Tensor),
    /// Blocks as they stand in the GGUF file; expanded to f32 for the length of one prefill product only.
    Quantized(Arc<QTensor>),
}

impl Weight {
    /// `[out, in]`.
    pub fn dims(&self) -> Result<(usize, usize)> {
        Ok(match self {
            Weight::Dense(t) | Weight::Trained(t) => t.dims2()?,
            Weight::Quantized(t) => t.shape().dims2()?,
        })
    }

    /// The same weight as values.
    pub fn to_dense(&self, device: &Device) -> Result<Tensor> {
        Ok(match self {
            Weight::Dense(t) | Weight::Trained(t) => t.clone(),
            Weight::Quantized(t) => t.dequantize(device)?,
        })
    }

    /// `x · weightᵀ`. x `[rows, in]`, of the weight's dtype, f32 where that is quantised.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Weight::Dense(weight) => frozen_linear(x, weight)?,
            Weight::Trained(weight) => trained_linear(x, weight)?,
            Weight::Quantized(weight) if x.dim(0)? >= GEMM_ROWS => frozen_linear(x, &weight.dequantize(x.device())?)?,
            Weight::Quantized(weight) => QMatMul::QTensor(weight.clone()).forward(x)?,
        })
    }

    /// Rows `ids` `[ids, in]`, of the weight's dtype, f32 where that is quantised.
    pub fn rows(&self, ids: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Weight::Dense(weight) | Weight::Trained(weight) => weight.index_select(ids, 0)?,
            Weight::Quantized(weight) => QMatMul::QTensor(weight.clone()).embedding(ids)?,
        })
    }
}

/// Low-rank update `scale · B·A` of a frozen weight (LoRA).
#[derive(Debug, Clone)]
pub struct Lora {
    /// `[rank, in]`, f32.
    pub a: Tensor,
    /// `[out, rank]`, f32.
    pub b: Tensor,
    /// alpha / rank.
    pub scale: f64,
}

impl Lora {
    /// `weight + scale · B·A`, `[out, in]`: the two as one matrix.
    pub fn merged_into(&self, weight: &Tensor) -> Result<Tensor> {
        let update = (self.b.matmul(&self.a)? * self.scale)?;
        Ok((weight + update.to_dtype(weight.dtype())?)?)
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let low = x.to_dtype(DType::F32)?.matmul(&self.a.t()?)?;
        Ok((low.matmul(&self.b.t()?)? * self.scale)?.to_dtype(x.dtype())?)
    }
}

/// `x · weightᵀ + bias + LoRA`.
#[derive(Debug, Clone)]
pub struct Linear {
    /// The base matrix.
    pub weight: Weight,
    /// `[out]`, f32.
    pub bias: Option<Tensor>,
    /// Trained update, if any.
    pub lora: Option<Lora>,
}

impl Linear {
    /// A plain layer.
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias, lora: None }
    }

    /// Adds the LoRA into a dense base weight, which then costs nothing more per row. Beside a quantised weight it stays:
    /// the sum would have to be quantised anew.
    pub fn merge(&mut self) -> Result<()> {
        if let (Weight::Dense(weight), Some(lora)) = (&self.weight, &self.lora) {
            self.weight = Weight::Dense(lora.merged_into(weight)?);
            self.lora = None;
        }
        Ok(())
    }

    /// x `[rows, in]` → `[rows, out]`, of one dtype.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut out = self.weight.forward(x)?;
        if let Some(bias) = &self.bias {
            out = out.broadcast_add(&bias.to_dtype(out.dtype())?)?;
        }
        if let Some(lora) = &self.lora {
            out = (out + lora.forward(x)?)?;
        }
        Ok(out)
    }
}
