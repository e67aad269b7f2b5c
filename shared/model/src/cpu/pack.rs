//! Weights as the kernels read them.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use e2llm_kernels::{Format, Linear, Lora, Matrix};

use crate::decoder::{self, Weight};
use crate::error::{ModelError, Result};

pub(super) fn kernel(problem: String) -> ModelError {
    ModelError::Config { problem }
}

/// All values, row-major.
pub(super) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// A weight in its own form: GGUF's 4- and 8-bit blocks as they are, other blocks in 8 bits, dense values in 16.
pub(super) fn matrix(weight: &Weight) -> Result<Matrix> {
    let (rows, cols) = weight.dims()?;
    let packed = match weight {
        Weight::Quantized(tensor) => quantized(tensor, rows, cols)?,
        Weight::Dense(tensor) | Weight::Trained(tensor) => Matrix::i16_from_f32(rows, cols, &values(tensor)?),
    };
    packed.map_err(kernel)
}

fn quantized(tensor: &QTensor, rows: usize, cols: usize) -> Result<std::result::Result<Matrix, String>> {
    Ok(match tensor.dtype() {
        GgmlDType::Q4_1 => Matrix::from_q4_1(rows, cols, &tensor.data()?),
        GgmlDType::Q4_0 => Matrix::from_q4_0(rows, cols, &tensor.data()?),
        GgmlDType::Q8_0 => Matrix::from_q8_0(rows, cols, &tensor.data()?),
        _ => Matrix::i8_from_f32(rows, cols, &values(&tensor.dequantize(&Device::Cpu)?)?),
    })
}

/// Layers on the same input as one; of different forms, all in 8 bits.
pub(super) fn stack(layers: &[&decoder::Linear]) -> Result<Linear> {
    let mut parts = layers.iter().map(|layer| matrix(&layer.weight)).collect::<Result<Vec<_>>>()?;
    if parts.windows(2).any(|pair| pair[0].format() != pair[1].format()) {
        for (part, layer) in parts.iter_mut().zip(layers) {
            let (rows, cols) = layer.weight.dims()?;
            let dense = values(&layer.weight.to_dense(&Device::Cpu)?)?;
            *part = Matrix::i8_from_f32(rows, cols, &dense).map_err(kernel)?;
        }
    }
    let inputs = parts.first().map_or(0, Matrix::cols);
    let whole = Matrix::stack(parts).map_err(kernel)?;
    let format = whole.format();
    let linear = Linear::new(whole, bias(layers)?).map_err(kernel)?;
    match lora(layers, inputs)? {
        Some(_) if format == Format::I16 => Err(kernel("LoRA beside dense weights: merge it first".to_owned())),
        Some(lora) => linear.with_lora(lora).map_err(kernel),
        None => Ok(linear),
    }
}

/// Biases one after the other; empty when no layer has one.
fn bias(layers: &[&decoder::Linear]) -> Result<Vec<f32>> {
    if layers.iter().all(|layer| layer.bias.is_none()) {
        return Ok(Vec::new());
    }
    let own = |layer: &&decoder::Linear| match &layer.bias {
        Some(bias) => values(bias),
        None => Ok(vec![0.0; layer.weight.dims()?.0]),
    };
    Ok(layers.iter().map(own).collect::<Result<Vec<_>>>()?.concat())
}

fn lora(layers: &[&decoder::Linear], inputs: usize) -> Result<Option<Lora>> {
    let mut parts = Vec::new();
    for layer in layers {
        let Some(lora) = &layer.lora else { continue };
        let b = values(&(lora.b.to_dtype(DType::F32)? * lora.scale)?)?;
        parts.push((layer.weight.dims()?.0, values(&lora.a)?, b, lora.a.dim(0)?));
    }
    if parts.is_empty() {
        return Ok(None);
    }
    let rank = parts[0].3;
    if parts.len() != layers.len() || parts.iter().any(|part| part.3 != rank) {
        return Err(kernel("layers on the same input have LoRA of different ranks".to_owned()));
    }
    let borrowed: Vec<_> = parts.iter().map(|(rows, a, b, _)| (*rows, a.as_slice(), b.as_slice())).collect();
    Lora::new(&borrowed, rank, inputs).map(Some).map_err(kernel)
}
