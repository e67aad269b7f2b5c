//! What of a decoder is trained: LoRA beside its linears, or the linears themselves.

use std::collections::HashMap;

use candle_core::{DType, Tensor};

use super::{Block, Decoder, Linear, Lora, Weight};
use crate::error::{ModelError, Result};

/// The linears of a block that LoRA adapts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Target {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

/// All linears of a block, with their names in LoRA files.
pub const LORA_TARGETS: [(Target, &str); 7] = [
    (Target::Q, "q"),
    (Target::K, "k"),
    (Target::V, "v"),
    (Target::O, "o"),
    (Target::Gate, "gate"),
    (Target::Up, "up"),
    (Target::Down, "down"),
];

/// Presence and shape of LoRA tensors.
pub(crate) fn check_lora(
    parameters: &HashMap<String, Tensor>,
    shapes: &[(String, [usize; 2])],
    rank: usize,
) -> Result<()> {
    for (name, shape) in shapes {
        let problem = match parameters.get(name) {
            Some(tensor) if tensor.dims() == shape => continue,
            Some(tensor) => {
                format!("LoRA tensor {name} has shape {:?}, rank {rank} asks for {shape:?}", tensor.dims())
            }
            None => format!("LoRA tensor {name} is missing"),
        };
        return Err(ModelError::Config { problem });
    }
    Ok(())
}

impl Decoder {
    /// Shapes of the LoRA parameters of `rank`: `blocks.<i>.<target>.a` `[rank, in]` and `.b` `[out, rank]`.
    pub fn lora_shapes(&self, rank: usize) -> Result<Vec<(String, [usize; 2])>> {
        let mut shapes = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            for (target, name) in LORA_TARGETS {
                let (outputs, inputs) = block.linear(target).weight.dims()?;
                shapes.push((format!("blocks.{index}.{name}.a"), [rank, inputs]));
                shapes.push((format!("blocks.{index}.{name}.b"), [outputs, rank]));
            }
        }
        Ok(shapes)
    }

    /// Puts LoRA parameters (named as in [`Decoder::lora_shapes`]) beside the base weights; an empty map removes them.
    pub fn set_lora(&mut self, parameters: &HashMap<String, Tensor>, rank: usize, scale: f64) -> Result<()> {
        if parameters.is_empty() {
            for block in &mut self.blocks {
                LORA_TARGETS.iter().for_each(|(target, _)| block.linear_mut(*target).lora = None);
            }
            return Ok(());
        }
        check_lora(parameters, &self.lora_shapes(rank)?, rank)?;
        for (index, block) in self.blocks.iter_mut().enumerate() {
            for (target, name) in LORA_TARGETS {
                let part = |side: &str| -> Result<Tensor> {
                    Ok(parameters[&format!("blocks.{index}.{name}.{side}")].to_dtype(DType::F32)?)
                };
                block.linear_mut(target).lora = Some(Lora { a: part("a")?, b: part("b")?, scale });
            }
        }
        Ok(())
    }

    /// Adds the LoRA into dense weights, for inference; beside quantised ones it stays.
    pub fn merge_lora(&mut self) -> Result<()> {
        for block in &mut self.blocks {
            for (target, _) in LORA_TARGETS {
                block.linear_mut(target).merge()?;
            }
        }
        Ok(())
    }

    /// The linears of all blocks as f32: `blocks.<i>.<target>.weight` `[out, in]`. What full training starts from.
    pub fn linears(&self) -> Result<Vec<(String, Tensor)>> {
        let mut weights = Vec::new();
        for (index, block) in self.blocks.iter().enumerate() {
            for (target, name) in LORA_TARGETS {
                let weight = block.linear(target).weight.to_dense(&self.device)?.to_dtype(DType::F32)?;
                weights.push((format!("blocks.{index}.{name}.weight"), weight));
            }
        }
        Ok(weights)
    }

    /// Replaces the linears of all blocks by tensors under training, named as in [`Decoder::linears`].
    pub fn set_linears(&mut self, parameters: &HashMap<String, Tensor>) -> Result<()> {
        for (index, block) in self.blocks.iter_mut().enumerate() {
            for (target, name) in LORA_TARGETS {
                let name = format!("blocks.{index}.{name}.weight");
                let linear = block.linear_mut(target);
                let (outputs, inputs) = linear.weight.dims()?;
                let weight = parameters.get(&name).filter(|tensor| tensor.dims() == [outputs, inputs]);
                let problem = || format!("decoder weight {name} is missing or not of shape [{outputs}, {inputs}]");
                let weight = weight.ok_or_else(|| ModelError::Config { problem: problem() })?;
                linear.weight = Weight::Trained(weight.clone());
            }
        }
        Ok(())
    }
}

impl Block {
    pub(super) fn linear(&self, target: Target) -> &Linear {
        match target {
            Target::Q => &self.q,
            Target::K => &self.k,
            Target::V => &self.v,
            Target::O => &self.o,
            Target::Gate => &self.gate,
            Target::Up => &self.up,
            Target::Down => &self.down,
        }
    }

    pub(super) fn linear_mut(&mut self, target: Target) -> &mut Linear {
        match target {
            Target::Q => &mut self.q,
            Target::K => &mut self.k,
            Target::V => &mut self.v,
            Target::O => &mut self.o,
            Target::Gate => &mut self.gate,
            Target::Up => &mut self.up,
            Target::Down => &mut self.down,
        }
    }
}
