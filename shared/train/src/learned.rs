//! What a run has learned so far, to be measured without training on.

use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;

use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, AdamWConfig};
use crate::recipe::Recipe;
use crate::run::{Models, adapter_config, digest, session};
use crate::session::{EncoderSession, LocalSession, initial_adapter, initial_lora};

/// The newest checkpoint of a run, whatever its recipe's features: a table-only control has no bundle to be loaded from.
pub struct Learned {
    /// Encoder side with the trained adapter.
    pub session: LocalSession,
    /// LoRA tensors by name, for [`e2llm_model::Decoder::set_lora`].
    pub lora: HashMap<String, Tensor>,
    /// Where the run stands.
    pub state: Checkpoint,
}

impl Learned {
    /// Reads the checkpoint that a run of `recipe` left in `directory`.
    pub fn load(recipe: &Recipe, models: &Models, directory: &Path) -> Result<Self> {
        let latest = Checkpoints::at(directory).latest(&digest(recipe)?)?;
        let (state, tensors) = latest.ok_or_else(|| {
            TrainError::Invalid(format!("{} has no checkpoint; train first, with --output", directory.display()))
        })?;
        let config = adapter_config(recipe, models)?;
        let adapter = initial_adapter(&config, recipe.seed)?;
        let mut session = session(recipe, AdamWConfig::default(), config, adapter, models)?;
        session.restore(&tensors)?;
        let start = initial_lora(&models.decoder.lora_shapes(recipe.lora_rank)?, recipe.seed)?;
        let mut lora = AdamW::new(start, AdamWConfig::default());
        lora.restore("lora", &tensors)?;
        Ok(Self { session, lora: lora.parameters().tensors(), state })
    }
}
