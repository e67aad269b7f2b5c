//! What a run has learned so far, to be measured without training on.

use std::path::Path;

use e2llm_model::Decoder;

use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, AdamWConfig, Parameters};
use crate::recipe::{DecoderMode, Recipe};
use crate::run::build::{decoder_parameters, session, start_adapter};
use crate::run::{Models, digest};
use crate::session::{EncoderSession, LocalSession};

/// The newest checkpoint of a run, whatever its recipe trains: a table-only control or a decoder trained in full has no
/// bundle to be loaded from.
pub struct Learned {
    /// Encoder side with the trained adapter, and the encoder's LoRA where there is one.
    pub session: LocalSession,
    /// Where the run stands.
    pub state: Checkpoint,
    decoder: AdamW,
    recipe: Recipe,
}

impl Learned {
    /// Reads the checkpoint that a run of `recipe` left in `directory`.
    pub fn load(recipe: &Recipe, models: &Models, directory: &Path) -> Result<Self> {
        let latest = Checkpoints::at(directory).latest(&digest(recipe)?)?;
        let (state, tensors) = latest.ok_or_else(|| {
            TrainError::Invalid(format!("{} has no checkpoint; train first, with --output", directory.display()))
        })?;
        let (config, adapter) = start_adapter(recipe, recipe.ratio_at(state.stage), models)?;
        let mut session = session(recipe, state.stage, config, adapter, models)?;
        session.restore(&tensors)?;
        let mut decoder = AdamW::new(decoder_parameters(recipe, &models.decoder)?, AdamWConfig::default());
        let prefix = if recipe.decoder == DecoderMode::Full { "decoder" } else { "lora" };
        decoder.restore(prefix, &tensors)?;
        Ok(Self { session, state, decoder, recipe: recipe.clone() })
    }

    /// Whether anything of the decoder was trained.
    pub fn changes_decoder(&self) -> bool {
        self.recipe.decoder != DecoderMode::Frozen
    }

    /// Gives `decoder` what the run has taught it: its LoRA, or its linears.
    pub fn teach(&self, decoder: &mut Decoder) -> Result<()> {
        teach(&self.recipe, self.decoder.parameters(), decoder)
    }
}

/// Gives `decoder` these values apart from their graph: what it computes then keeps nothing for a backward pass.
pub(crate) fn teach(recipe: &Recipe, parameters: &Parameters, decoder: &mut Decoder) -> Result<()> {
    let tensors = parameters.tensors().into_iter().map(|(name, tensor)| (name, tensor.detach())).collect();
    match recipe.decoder {
        DecoderMode::Full => decoder.set_linears(&tensors)?,
        _ => decoder.set_lora(&tensors, recipe.lora_rank, recipe.lora_scale)?,
    }
    Ok(())
}
