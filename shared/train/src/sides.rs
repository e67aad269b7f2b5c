//! The two sides of a training pair, each built from what it holds itself.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use e2llm_model::{Decoder, DocumentEncoder};

use crate::error::{Result, TrainError};
use crate::optimizer::AdamW;
use crate::recipe::{Recipe, Stage, Start};
use crate::run::build;
use crate::session::{EncoderSession, LocalSession};
use crate::trainer::Trainer;

/// What the adapter has to know of the decoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Target {
    /// Width of its embeddings, d_model.
    pub d_model: usize,
    /// Root mean square of its token embeddings.
    pub embedding_rms: f32,
}

impl Target {
    /// Measures a decoder. Reads its whole embedding table once.
    pub fn of(decoder: &Decoder) -> Result<Self> {
        let ids: Vec<u32> = (0..decoder.vocabulary()? as u32).collect();
        let mean_square = decoder.embed(&ids)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
        Ok(Self { d_model: decoder.config().d_model, embedding_rms: mean_square.sqrt() })
    }
}

/// The encoder side as the recipe begins it, at `ratio` word pieces per soft token: that of the state it is to be given. The
/// encoder is frozen, or carries the LoRA that the recipe asks for.
///
/// # Errors
/// For what no bundle can hold, see [`Recipe::makes_bundle`], and for what starts from one: that is trained in one process only.
pub fn encoder_side(
    recipe: &Recipe,
    stage: usize,
    ratio: usize,
    encoder: &DocumentEncoder,
    target: Target,
) -> Result<LocalSession> {
    if !recipe.makes_bundle() || recipe.start == Start::Bundle {
        let problem = "a recipe with the word-piece table, that trains the decoder in full, or that starts from a bundle, is \
                       trained in one process; use `e2llm train`";
        return Err(TrainError::Invalid(problem.to_owned()));
    }
    let stage = stage_of(recipe, stage)?;
    let device = encoder.base_encoder().device().clone();
    let (config, adapter) = build::fresh_adapter(recipe, ratio, encoder.d_enc(), target, &device)?;
    let (encoder, pieces) = (encoder.base_encoder().clone(), encoder.tokenizer().clone());
    build::encoder_session(recipe, stage, config, adapter, (encoder, pieces), None)
}

/// The decoder side as the recipe begins it, with the settings of a stage, driving `session`.
pub fn decoder_side<S: EncoderSession>(
    recipe: &Recipe,
    stage: usize,
    session: S,
    decoder: Decoder,
) -> Result<Trainer<S>> {
    let settings = stage_of(recipe, stage)?;
    let optimizer = AdamW::new(build::decoder_parameters(recipe, &decoder)?, settings.lora);
    let mut trainer = Trainer::new(session, decoder, optimizer, recipe.lora_rank, recipe.lora_scale)?;
    trainer.configure_stage(recipe, stage)?;
    Ok(trainer)
}

pub(crate) fn stage_of(recipe: &Recipe, stage: usize) -> Result<&Stage> {
    let missing =
        || TrainError::Invalid(format!("the recipe has {} stages, no stage {}", recipe.stages.len(), stage + 1));
    recipe.stages.get(stage).ok_or_else(missing)
}

/// Tensors as safetensors, ordered by name: equal states are equal bytes.
pub fn serialize(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let named = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.clone()));
    safetensors::tensor::serialize(named.collect::<Vec<_>>(), None)
        .map_err(|error| TrainError::Invalid(format!("the state cannot be written: {error}")))
}

/// What [`serialize`] wrote.
pub fn deserialize(bytes: &[u8]) -> Result<HashMap<String, Tensor>> {
    Ok(candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?)
}

/// The parameters among a state's tensors, under their own names: those of `side`.
pub fn parameters_of(state: &HashMap<String, Tensor>, side: &str) -> HashMap<String, Tensor> {
    let prefix = format!("{side}.value.");
    let own = state.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(&prefix)?.to_owned(), tensor.clone())));
    own.collect()
}
