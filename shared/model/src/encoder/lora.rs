//! LoRA on the encoder: beside the weights under training, merged into them for inference.

use std::collections::HashMap;

use candle_core::{DType, Tensor};

use super::{Layer, TextEncoder};
use crate::decoder::{Linear, Lora, check_lora};
use crate::error::Result;

/// Linears of a layer that LoRA adapts, with their names in LoRA files. `qkv` is query, key and value as one matrix.
const TARGETS: [&str; 4] = ["qkv", "output", "up", "down"];

impl TextEncoder {
    /// Shapes of the LoRA parameters of `rank`: `layers.<i>.<target>.a` `[rank, in]` and `.b` `[out, rank]`, targets
    /// `qkv`, `output`, `up` and `down`.
    pub fn lora_shapes(&self, rank: usize) -> Result<Vec<(String, [usize; 2])>> {
        let mut shapes = Vec::new();
        for (index, layer) in self.layers.iter().enumerate() {
            for (target, linear) in TARGETS.iter().zip(layer.linears()) {
                let (outputs, inputs) = linear.weight.dims()?;
                shapes.push((format!("layers.{index}.{target}.a"), [rank, inputs]));
                shapes.push((format!("layers.{index}.{target}.b"), [outputs, rank]));
            }
        }
        Ok(shapes)
    }

    /// Puts LoRA parameters (named as in [`TextEncoder::lora_shapes`]) beside the weights: states are then differentiable in
    /// them. An empty map removes them.
    pub fn set_lora(&mut self, parameters: &HashMap<String, Tensor>, rank: usize, scale: f64) -> Result<()> {
        if parameters.is_empty() {
            self.layers.iter_mut().flat_map(Layer::linears_mut).for_each(|linear| linear.lora = None);
            return Ok(());
        }
        check_lora(parameters, &self.lora_shapes(rank)?, rank)?;
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for (target, linear) in TARGETS.iter().zip(layer.linears_mut()) {
                let part = |side: &str| -> Result<Tensor> {
                    Ok(parameters[&format!("layers.{index}.{target}.{side}")].to_dtype(DType::F32)?)
                };
                linear.lora = Some(Lora { a: part("a")?, b: part("b")?, scale });
            }
        }
        Ok(())
    }

    /// Adds LoRA parameters into the weights, once: inference then costs what it costs without.
    pub fn merge_lora(&mut self, parameters: &HashMap<String, Tensor>, rank: usize, scale: f64) -> Result<()> {
        self.set_lora(parameters, rank, scale)?;
        self.layers.iter_mut().flat_map(Layer::linears_mut).try_for_each(Linear::merge)
    }
}

impl Layer {
    fn linears(&self) -> [&Linear; 4] {
        [&self.qkv, &self.output, &self.up, &self.down]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 4] {
        [&mut self.qkv, &mut self.output, &mut self.up, &mut self.down]
    }
}
