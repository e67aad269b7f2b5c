//! What a run is built of: adapter, encoder session, decoder with what of it is trained.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use e2llm_model::chunk::Chunker;
use e2llm_model::{AdapterConfig, Bridge, Bundle, Decoder, TextEncoder, TextTokenizer};

use super::{Models, Report};
use crate::corpus::Corpus;
use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, Parameters};
use crate::pretrain::{Passage, Pool, TokenEmbeddings, pretrain};
use crate::recipe::{DecoderMode, Features, PretrainStage, Recipe, Stage, Start};
use crate::sample::{Objective, Sampler};
use crate::session::{LocalSession, initial_adapter, initial_lora, order_heads, silence_values};
use crate::sides::Target;
use crate::table::word_piece_table;
use crate::trainer::Trainer;
use crate::warm;

/// Hidden widths of the adapter's paths, as in the measured recipe.
const VALUE_HIDDEN: usize = 1_536;
const GATE_HIDDEN: usize = 64;
const SEGMENT_HIDDEN: usize = 1_024;
/// Memory for states of a frozen encoder: about 5,000 chunks of MiniLM.
const CACHED_STATES: usize = 1 << 30;

pub(crate) fn adapter_config(recipe: &Recipe, ratio: usize, d_enc: usize, target: Target) -> AdapterConfig {
    AdapterConfig {
        form: recipe.form,
        ratio,
        d_enc,
        d_model: target.d_model,
        value_hidden: VALUE_HIDDEN,
        gate_hidden: GATE_HIDDEN,
        segment_hidden: SEGMENT_HIDDEN,
        embedding_rms: target.embedding_rms,
        gate_heads: recipe.gate_heads,
    }
}

/// The adapter before any training.
pub(crate) fn start_adapter(recipe: &Recipe, ratio: usize, models: &Models) -> Result<(AdapterConfig, Parameters)> {
    let (width, device) = (models.encoder.width(), models.encoder.device());
    fresh_adapter(recipe, ratio, width, Target::of(&models.decoder)?, device)
}

/// The same for whoever holds no decoder.
pub(crate) fn fresh_adapter(
    recipe: &Recipe,
    ratio: usize,
    d_enc: usize,
    target: Target,
    device: &Device,
) -> Result<(AdapterConfig, Parameters)> {
    let config = adapter_config(recipe, ratio, d_enc, target);
    config.check()?;
    let mut parameters = initial_adapter(&config, recipe.seed)?;
    if recipe.ordered_heads {
        order_heads(&mut parameters)?;
    }
    if recipe.features == Features::Bridge && recipe.pretrain.is_none() {
        silence_values(&mut parameters)?;
    }
    Ok((config, parameters.to_device(device)?))
}

/// The adapter that the first stage starts from, at that stage's ratio: the bundle's, or pretrained where the recipe says so.
pub(super) fn first_adapter(
    recipe: &Recipe,
    models: &Models,
    sampler: &Sampler,
    corpus: &Corpus,
    report: &mut dyn FnMut(Report),
) -> Result<(AdapterConfig, Parameters)> {
    let ratio = recipe.ratio_at(0);
    if recipe.start == Start::Bundle {
        return bundle_adapter(recipe, ratio, models);
    }
    let Some(stage) = &recipe.pretrain else { return start_adapter(recipe, ratio, models) };
    let (config, mut parameters) = start_adapter(recipe, stage.ratio.unwrap_or(ratio), models)?;
    let texts = pretrain_passages(recipe, stage, sampler, corpus)?;
    let pool = Pool::encode(&texts, &models.encoder, &models.pieces, |chunks| {
        report(Report::Pooling { chunks, of: stage.passages });
    })?;
    let embeddings = TokenEmbeddings::of(&models.decoder)?;
    pretrain(&config, parameters.clone(), stage, &pool, &embeddings, recipe.seed, |step, p| {
        report(Report::Pretrain { step: step + 1, of: stage.steps, loss: p.loss, accuracy: p.accuracy });
        true
    })?;
    parameters.0.extend(warm::resized(&parameters, &config, ratio)?);
    Ok((AdapterConfig { ratio, ..config }, parameters))
}

/// The bundle that a recipe starts from.
fn starting_bundle(models: &Models) -> Result<&Bundle> {
    let missing = "recipe: start: bundle needs a bundle of these models in use; name one with --bundle, without --encoder and --decoder";
    models.bundle.as_ref().ok_or_else(|| TrainError::Invalid(missing.to_owned()))
}

/// The adapter of the bundle in use, if it has the recipe's shape.
fn bundle_adapter(recipe: &Recipe, ratio: usize, models: &Models) -> Result<(AdapterConfig, Parameters)> {
    let bundle = starting_bundle(models)?;
    let (config, _) = start_adapter(recipe, ratio, models)?;
    let own = &bundle.config;
    let same_shape = AdapterConfig { ratio, embedding_rms: config.embedding_rms, ..own.adapter.clone() } == config;
    let same_rest = own.lora == recipe.lora() && own.encoder_lora.is_none() && own.chunk_tokens == recipe.chunk_tokens;
    if !same_shape || !same_rest {
        return Err(TrainError::Invalid(format!(
            "recipe: bundle {:?} has other chunks, another form of adapter, another LoRA or a trained encoder; start: bundle goes on \
             with what it has",
            own.name
        )));
    }
    let device = models.encoder.device();
    let mut parameters = variables(&bundle.adapter_parameters(device)?)?;
    parameters.0.extend(warm::resized(&parameters, &own.adapter, ratio)?);
    Ok((config, parameters))
}

fn variables(tensors: &HashMap<String, Tensor>) -> Result<Parameters> {
    let var = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), Var::from_tensor(tensor)?));
    Ok(Parameters(tensors.iter().map(var).collect::<Result<_>>()?))
}

/// The passages of a recipe's pretraining. Numbers from the top, so that none is drawn again by the stages that follow.
pub fn pretrain_passages(
    recipe: &Recipe,
    stage: &PretrainStage,
    sampler: &Sampler,
    corpus: &Corpus,
) -> Result<Vec<Passage>> {
    let text = |i: u64| {
        let sample = sampler.draw(corpus, &[(Objective::Reconstruct, 1.0)], (1, 1), recipe.seed, u64::MAX - i)?;
        Passage::new(crate::batch::chunks(std::slice::from_ref(&sample)).concat(), &sampler.tokenizer)
    };
    (0..stage.passages as u64).map(text).collect()
}

/// A sampler for these models; `max_target` 0 means no limit.
pub fn sampler(models: &Models, chunk_tokens: usize, max_target: usize) -> Result<Sampler> {
    let end = models.decoder.config().eos.first().copied();
    let end = end.ok_or_else(|| TrainError::Invalid("the decoder names no end-of-turn token".to_owned()))?;
    let chunker = Arc::new(Chunker::new(models.pieces.clone(), chunk_tokens)?);
    let sampler = Sampler::new(models.tokens.clone(), chunker, models.frame.clone(), end);
    Ok(Sampler { max_target: if max_target == 0 { usize::MAX } else { max_target }, ..sampler })
}

pub(super) fn trainer(
    recipe: &Recipe,
    stage: usize,
    config: AdapterConfig,
    adapter: Parameters,
    models: Models,
) -> Result<Trainer<LocalSession>> {
    let session = session(recipe, stage, config, adapter, &models)?;
    let stage = stage_or_last(recipe, stage)?;
    let parameters = match recipe.start {
        Start::Fresh => decoder_parameters(recipe, &models.decoder)?,
        Start::Bundle => variables(&starting_bundle(&models)?.lora(models.decoder.device())?)?,
    };
    let parameters = AdamW::new(parameters, stage.lora);
    match recipe.decoder {
        DecoderMode::Full => Trainer::full(session, models.decoder, parameters),
        _ => Trainer::new(session, models.decoder, parameters, recipe.lora_rank, recipe.lora_scale),
    }
}

/// What of the decoder is trained, as it starts.
pub(crate) fn decoder_parameters(recipe: &Recipe, decoder: &Decoder) -> Result<Parameters> {
    match recipe.decoder {
        DecoderMode::Frozen => Ok(Parameters::default()),
        DecoderMode::Lora => {
            initial_lora(&decoder.lora_shapes(recipe.lora_rank)?, recipe.seed + 1)?.to_device(decoder.device())
        }
        DecoderMode::Full => {
            let vars = decoder.linears()?.into_iter().map(|(name, weight)| Ok((name, Var::from_tensor(&weight)?)));
            Ok(Parameters(vars.collect::<Result<_>>()?))
        }
    }
}

/// The session of stage `stage`, or of the last one for a run that is done.
pub(crate) fn session(
    recipe: &Recipe,
    stage: usize,
    config: AdapterConfig,
    adapter: Parameters,
    models: &Models,
) -> Result<LocalSession> {
    let encoder = (models.encoder.clone(), models.pieces.clone());
    let bridge = bridge(recipe.features_at(stage), models)?;
    encoder_session(recipe, stage_or_last(recipe, stage)?, config, adapter, encoder, bridge)
}

fn stage_or_last(recipe: &Recipe, stage: usize) -> Result<&Stage> {
    let stage = recipe.stages.get(stage).or(recipe.stages.last());
    stage.ok_or_else(|| TrainError::Invalid("recipe: there is no stage to train".to_owned()))
}

/// The same for whoever holds no decoder: an encoder with its tokenizer.
pub(crate) fn encoder_session(
    recipe: &Recipe,
    stage: &Stage,
    config: AdapterConfig,
    adapter: Parameters,
    (encoder, pieces): (Arc<TextEncoder>, Arc<TextTokenizer>),
    bridge: Option<Bridge>,
) -> Result<LocalSession> {
    let device = encoder.device().clone();
    let lora_shapes = recipe.encoder_lora.map(|lora| encoder.lora_shapes(lora.rank)).transpose()?;
    let mut session = LocalSession::new(encoder, pieces, config, adapter, stage.adapter, bridge)?;
    session.cache_states(CACHED_STATES);
    let (Some(lora), Some(shapes)) = (recipe.encoder_lora, lora_shapes) else { return Ok(session) };
    session.with_lora(initial_lora(&shapes, recipe.seed + 2)?.to_device(&device)?, lora, stage.encoder)
}

/// The table of the control recipes. Gates open by vocabulary rank: pieces are numbered by falling frequency.
fn bridge(features: Features, models: &Models) -> Result<Option<Bridge>> {
    if features == Features::Encoder {
        return Ok(None);
    }
    let values = word_piece_table(&models.pieces, &models.tokens, &models.decoder)?;
    let rarity: Vec<f32> = (0..models.pieces.vocab_size()).map(|rank| 1.5 * (rank as f32 + 1.0).ln()).collect();
    let gates = Tensor::new(rarity, values.device())?;
    Ok(Some(Bridge { values, gates, without_states: features == Features::TableOnly }))
}
