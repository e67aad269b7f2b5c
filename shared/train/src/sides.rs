//! The two sides of a training pair, each built from what it holds itself.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use e2llm_model::{AdapterConfig, Decoder, DocumentEncoder};

use crate::error::{Result, TrainError};
use crate::optimizer::AdamW;
use crate::recipe::{Features, Recipe, Stage};
use crate::run::adapter_shape;
use crate::session::{EncoderSession, LocalSession, initial_adapter, initial_lora};
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

/// The adapter's shape under a recipe.
pub fn adapter_config(recipe: &Recipe, d_enc: usize, target: Target) -> AdapterConfig {
    adapter_shape(recipe, d_enc, target)
}

/// The encoder side as the recipe begins it, with the optimizer settings of a stage.
///
/// # Errors
/// Controls that put the decoder's words beside the encoder's states are trained in one process only.
pub fn encoder_side(recipe: &Recipe, stage: usize, encoder: &DocumentEncoder, target: Target) -> Result<LocalSession> {
    if recipe.features != Features::Encoder {
        let problem = "a recipe with the word-piece table is trained in one process; use `e2llm train`";
        return Err(TrainError::Invalid(problem.to_owned()));
    }
    let config = adapter_config(recipe, encoder.d_enc(), target);
    let adapter = initial_adapter(&config, recipe.seed)?;
    let optimizer = stage_of(recipe, stage)?.adapter;
    LocalSession::new(encoder.text_encoder().clone(), encoder.tokenizer().clone(), config, adapter, optimizer, None)
}

/// The decoder side as the recipe begins it, driving `session`.
pub fn decoder_side<S: EncoderSession>(
    recipe: &Recipe,
    stage: usize,
    session: S,
    decoder: Decoder,
) -> Result<Trainer<S>> {
    let lora = initial_lora(&decoder.lora_shapes(recipe.lora_rank)?, recipe.seed + 1)?;
    let optimizer = AdamW::new(lora, stage_of(recipe, stage)?.lora);
    Trainer::new(session, decoder, optimizer, recipe.lora_rank, recipe.lora_scale)
}

fn stage_of(recipe: &Recipe, stage: usize) -> Result<&Stage> {
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
