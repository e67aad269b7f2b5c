//! What a run is built of: adapter, encoder session, decoder with what of it is trained.

use std::sync::Arc;

use candle_core::{Tensor, Var};
use e2llm_model::chunk::Chunker;
use e2llm_model::{AdapterConfig, Bridge, Decoder};

use super::{Models, Report};
use crate::corpus::Corpus;
use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, AdamWConfig, Parameters};
use crate::pretrain::{Pool, pretrain};
use crate::recipe::{DecoderMode, Features, PretrainStage, Recipe, Stage};
use crate::sample::{Objective, Sampler};
use crate::session::{LocalSession, initial_adapter, initial_lora, order_heads};
use crate::table::word_piece_table;
use crate::trainer::Trainer;
use crate::warm;

/// Hidden widths of the adapter's paths, as in the measured recipe.
const VALUE_HIDDEN: usize = 1_536;
const GATE_HIDDEN: usize = 64;
const SEGMENT_HIDDEN: usize = 1_024;
/// Memory for states of a frozen encoder: about 5,000 chunks of MiniLM.
const CACHED_STATES: usize = 1 << 30;

pub(crate) fn adapter_config(recipe: &Recipe, ratio: usize, models: &Models) -> Result<AdapterConfig> {
    let vocabulary = models.decoder.vocabulary()? as u32;
    let ids: Vec<u32> = (0..vocabulary).collect();
    let mean_square = models.decoder.embed(&ids)?.sqr()?.mean_all()?.to_scalar::<f32>()?;
    Ok(AdapterConfig {
        form: recipe.form,
        ratio,
        d_enc: models.encoder.width(),
        d_model: models.decoder.config().d_model,
        value_hidden: VALUE_HIDDEN,
        gate_hidden: GATE_HIDDEN,
        segment_hidden: SEGMENT_HIDDEN,
        embedding_rms: mean_square.sqrt(),
        gate_heads: recipe.gate_heads,
    })
}

/// The adapter before any training.
pub(crate) fn start_adapter(recipe: &Recipe, ratio: usize, models: &Models) -> Result<(AdapterConfig, Parameters)> {
    let config = adapter_config(recipe, ratio, models)?;
    config.check()?;
    let mut parameters = initial_adapter(&config, recipe.seed)?;
    if recipe.ordered_heads {
        order_heads(&mut parameters)?;
    }
    Ok((config, parameters))
}

/// The adapter that the first stage starts from: pretrained where the recipe says so, and at that stage's ratio.
pub(super) fn pretrained_adapter(
    recipe: &Recipe,
    models: &Models,
    sampler: &Sampler,
    corpus: &Corpus,
    report: &mut dyn FnMut(Report),
) -> Result<(AdapterConfig, Parameters)> {
    let ratio = recipe.ratio_at(0);
    let Some(stage) = &recipe.pretrain else { return start_adapter(recipe, ratio, models) };
    let (config, mut parameters) = start_adapter(recipe, stage.ratio.unwrap_or(ratio), models)?;
    let texts = passages(recipe, stage, sampler, corpus)?;
    let pool = Pool::encode(&texts, &models.encoder, &models.pieces, &models.tokens, |chunks| {
        report(Report::Pooling { chunks, of: stage.passages });
    })?;
    pretrain(&config, parameters.clone(), stage, &pool, &models.decoder, recipe.seed, |step, p| {
        report(Report::Pretrain { step: step + 1, of: stage.steps, loss: p.loss, accuracy: p.accuracy });
    })?;
    parameters.0.extend(warm::resized(&parameters, &config, ratio)?);
    Ok((AdapterConfig { ratio, ..config }, parameters))
}

/// Numbers from the top, so that no passage of pretraining is drawn again by the stages that follow.
fn passages(recipe: &Recipe, stage: &PretrainStage, sampler: &Sampler, corpus: &Corpus) -> Result<Vec<String>> {
    let text = |i: u64| {
        let sample = sampler.draw(corpus, &[(Objective::Reconstruct, 1.0)], (1, 1), recipe.seed, u64::MAX - i)?;
        Ok(crate::batch::chunks(std::slice::from_ref(&sample)).concat())
    };
    (0..stage.passages as u64).map(text).collect()
}

/// A sampler for these models; `max_target` 0 means no limit.
pub fn sampler(models: &Models, chunk_tokens: usize, max_target: usize) -> Result<Sampler> {
    let end = models.decoder.config().eos.first().copied();
    Ok(Sampler {
        tokenizer: models.tokens.clone(),
        chunker: Arc::new(Chunker::new(models.pieces.clone(), chunk_tokens)?),
        frame: models.frame.clone(),
        end: end.ok_or_else(|| TrainError::Invalid("the decoder names no end-of-turn token".to_owned()))?,
        max_target: if max_target == 0 { usize::MAX } else { max_target },
        window: (3, 8),
        expand: 0.0,
        teacher: false,
    })
}

pub(super) fn trainer(
    recipe: &Recipe,
    stage: usize,
    config: AdapterConfig,
    adapter: Parameters,
    models: Models,
) -> Result<Trainer<LocalSession>> {
    let stage = recipe.stages.get(stage).or(recipe.stages.last());
    let stage = stage.ok_or_else(|| TrainError::Invalid("recipe: there is no stage to train".to_owned()))?;
    let session = session(recipe, stage, config, adapter, &models)?;
    let parameters = AdamW::new(decoder_parameters(recipe, &models.decoder)?, stage.lora);
    match recipe.decoder {
        DecoderMode::Full => Trainer::full(session, models.decoder, parameters),
        _ => Trainer::new(session, models.decoder, parameters, recipe.lora_rank, recipe.lora_scale),
    }
}

/// What of the decoder is trained, as it starts.
pub(crate) fn decoder_parameters(recipe: &Recipe, decoder: &Decoder) -> Result<Parameters> {
    match recipe.decoder {
        DecoderMode::Frozen => Ok(Parameters::default()),
        DecoderMode::Lora => initial_lora(&decoder.lora_shapes(recipe.lora_rank)?, recipe.seed + 1),
        DecoderMode::Full => {
            let vars = decoder.linears()?.into_iter().map(|(name, weight)| Ok((name, Var::from_tensor(&weight)?)));
            Ok(Parameters(vars.collect::<Result<_>>()?))
        }
    }
}

pub(crate) fn session(
    recipe: &Recipe,
    stage: &Stage,
    config: AdapterConfig,
    adapter: Parameters,
    models: &Models,
) -> Result<LocalSession> {
    let bridge = bridge(recipe, models)?;
    let settings: AdamWConfig = stage.adapter;
    let (encoder, pieces) = (models.encoder.clone(), models.pieces.clone());
    let mut session = LocalSession::new(encoder, pieces, config, adapter, settings, bridge)?;
    session.cache_states(CACHED_STATES);
    let Some(lora) = recipe.encoder_lora else { return Ok(session) };
    let parameters = initial_lora(&models.encoder.lora_shapes(lora.rank)?, recipe.seed + 2)?;
    session.with_lora(parameters, lora, stage.encoder)
}

/// The table of the control recipes. Gates open by vocabulary rank: pieces are numbered by falling frequency.
fn bridge(recipe: &Recipe, models: &Models) -> Result<Option<Bridge>> {
    if recipe.features == Features::Encoder {
        return Ok(None);
    }
    let values = word_piece_table(&models.pieces, &models.tokens, &models.decoder)?;
    let rarity: Vec<f32> = (0..models.pieces.vocab_size()).map(|rank| 1.5 * (rank as f32 + 1.0).ln()).collect();
    let gates = Tensor::new(rarity, values.device())?;
    Ok(Some(Bridge { values, gates, without_states: recipe.features == Features::TableOnly }))
}
