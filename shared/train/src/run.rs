//! A whole training run: pretraining, the recipe's stages, checkpoints, export.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use e2llm_model::chunk::Chunker;
use e2llm_model::template::Frame;
use e2llm_model::{AdapterConfig, AdapterForm, Bridge, Decoder, TextEncoder, TextTokenizer};
use serde::Serialize;

use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::corpus::Corpus;
use crate::error::{Result, TrainError};
use crate::evaluate::{Evaluation, evaluate};
use crate::export::{BundleFiles, Names};
use crate::optimizer::{AdamW, AdamWConfig, Parameters};
use crate::pretrain::{Passage, Pool, TokenEmbeddings, pretrain};
use crate::recipe::{Features, PretrainStage, Recipe, Stage};
use crate::sample::{Objective, Sampler};
use crate::session::{LocalSession, initial_adapter, initial_lora};
use crate::sides::Target;
use crate::table::word_piece_table;
use crate::trainer::{Progress, Trainer};

/// Hidden widths of the adapter's paths, as in the measured recipe.
const VALUE_HIDDEN: usize = 1_536;
const GATE_HIDDEN: usize = 64;
const SEGMENT_HIDDEN: usize = 1_024;

/// The models of a run. The decoder is dense.
pub struct Models {
    /// Frozen text encoder.
    pub encoder: Arc<TextEncoder>,
    /// Its tokenizer.
    pub pieces: Arc<TextTokenizer>,
    /// The decoder, weights expanded to f32.
    pub decoder: Decoder,
    /// Its tokenizer.
    pub tokens: Arc<TextTokenizer>,
    /// Its chat template around a user's turn.
    pub frame: Frame,
}

/// News of a run.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Report {
    Pooling {
        chunks: usize,
        of: usize,
    },
    Pretrain {
        step: usize,
        of: usize,
        loss: f32,
        accuracy: f32,
    },
    Step {
        stage: usize,
        step: usize,
        of: usize,
        loss: f32,
        adapter_norm: f64,
        lora_norm: f64,
        positions: usize,
        targets: usize,
        samples: u64,
        seconds: f64,
    },
    Evaluated {
        stage: usize,
        step: usize,
        seconds: f64,
        evaluation: Evaluation,
    },
    Saved {
        stage: usize,
        step: usize,
    },
}

/// How often things happen besides training.
#[derive(Debug, Clone)]
pub struct Rhythm {
    /// Steps between checkpoints.
    pub save_every: usize,
    /// Steps between evaluations on `held_out`; 0: never.
    pub evaluate_every: usize,
    /// Passages per evaluation.
    pub passages: usize,
    /// Stop (with a checkpoint) after this long.
    pub budget: Option<Duration>,
}

/// A run in progress.
pub struct Run<'a> {
    recipe: Recipe,
    digest: String,
    trainer: Trainer<LocalSession>,
    sampler: Sampler,
    corpus: &'a Corpus,
    held_out: Option<&'a Corpus>,
    checkpoints: Checkpoints,
    state: Checkpoint,
}

impl<'a> Run<'a> {
    /// Builds models and optimizers; resumes the newest checkpoint in `directory`, else pretrains.
    pub fn start(
        recipe: &Recipe,
        models: Models,
        corpus: &'a Corpus,
        held_out: Option<&'a Corpus>,
        directory: &Path,
        report: &mut dyn FnMut(Report),
    ) -> Result<Self> {
        let digest = digest(recipe)?;
        let checkpoints = Checkpoints::at(directory);
        let config = adapter_config(recipe, &models)?;
        let adapter = initial_adapter(&config, recipe.seed)?;
        let sampler = sampler(&models, recipe.chunk_tokens, 0)?;
        let resumed = checkpoints.latest(&digest)?;
        if let (None, Some(_)) = (&resumed, &recipe.pretrain) {
            pretrain_adapter(recipe, &config, &adapter, &models, &sampler, corpus, report)?;
        }
        let fresh = Checkpoint { recipe: digest.clone(), stage: 0, step: 0, samples: 0, seconds: 0.0, targets: 0 };
        let (state, tensors) = resumed.unwrap_or((fresh, HashMap::new()));
        let lora = initial_lora(&models.decoder.lora_shapes(recipe.lora_rank)?, recipe.seed + 1)?;
        let trainer = trainer(recipe, state.stage, config, adapter, lora, models)?;
        let mut run = Self { recipe: recipe.clone(), digest, trainer, sampler, corpus, held_out, checkpoints, state };
        if tensors.is_empty() {
            run.save(report)?;
        } else {
            run.trainer.restore(&tensors)?;
        }
        Ok(run)
    }

    /// Where the run stands.
    pub fn state(&self) -> &Checkpoint {
        &self.state
    }

    /// Trains until the recipe's end or the budget's. Returns whether the recipe is done.
    pub fn advance(&mut self, rhythm: &Rhythm, report: &mut dyn FnMut(Report)) -> Result<bool> {
        let begun = Instant::now();
        while let Some(stage) = self.recipe.stages.get(self.state.stage).cloned() {
            self.trainer.configure(stage.adapter, stage.lora);
            while self.state.step < stage.steps {
                if rhythm.budget.is_some_and(|budget| begun.elapsed() > budget) {
                    self.save(report)?;
                    return Ok(false);
                }
                self.step(&stage, report)?;
                if rhythm.evaluate_every > 0 && self.state.step.is_multiple_of(rhythm.evaluate_every) {
                    self.evaluate(rhythm.passages, report)?;
                }
                if self.state.step.is_multiple_of(rhythm.save_every) {
                    self.save(report)?;
                }
            }
            self.state.stage += 1;
            self.state.step = 0;
        }
        self.save(report)?;
        Ok(true)
    }

    fn step(&mut self, stage: &Stage, report: &mut dyn FnMut(Report)) -> Result<()> {
        let begun = Instant::now();
        self.sampler.max_target = stage.max_target;
        let samples = (0..stage.batch as u64)
            .map(|i| self.sampler.draw(self.corpus, &stage.mix, stage.chunks, self.recipe.seed, self.state.samples + i))
            .collect::<Result<Vec<_>>>()?;
        let Progress { loss, adapter_norm, lora_norm, positions, targets } =
            self.trainer.step(&samples, stage.schedule(self.state.step), self.state.step)?;
        self.state.step += 1;
        self.state.samples += stage.batch as u64;
        self.state.targets += targets as u64;
        self.state.seconds += begun.elapsed().as_secs_f64();
        report(Report::Step {
            stage: self.state.stage,
            step: self.state.step,
            of: stage.steps,
            loss,
            adapter_norm,
            lora_norm,
            positions,
            targets,
            samples: self.state.samples,
            seconds: self.state.seconds,
        });
        Ok(())
    }

    fn evaluate(&mut self, passages: usize, report: &mut dyn FnMut(Report)) -> Result<()> {
        let Some(corpus) = self.held_out else { return Ok(()) };
        let mut sampler = self.sampler.clone();
        sampler.max_target = usize::MAX;
        let evaluation =
            evaluate(&sampler, corpus, &mut self.trainer.session, &self.trainer.decoder, passages, self.recipe.seed)?;
        report(Report::Evaluated {
            stage: self.state.stage,
            step: self.state.step,
            seconds: self.state.seconds,
            evaluation,
        });
        Ok(())
    }

    fn save(&self, report: &mut dyn FnMut(Report)) -> Result<()> {
        debug_assert_eq!(self.state.recipe, self.digest);
        self.checkpoints.save(&self.state, &self.trainer.save()?)?;
        report(Report::Saved { stage: self.state.stage, step: self.state.step });
        Ok(())
    }

    /// Writes `bundle.json`, `adapter.safetensors` and `lora.safetensors` (f16) into `directory`.
    pub fn export(&self, directory: &Path, name: &str, encoder: &str, decoder: &str) -> Result<()> {
        std::fs::create_dir_all(directory).map_err(TrainError::io(directory))?;
        let names = Names { bundle: name, encoder, decoder };
        let (session, lora) = (&self.trainer.session, self.trainer.lora().parameters());
        let adapter = session.adapter().config().clone();
        let bundle = BundleFiles::new(&self.recipe, names, adapter, &session.parameters().tensors(), &lora.tensors())?;
        for (name, bytes) in bundle.files {
            let path = directory.join(name);
            std::fs::write(&path, bytes).map_err(TrainError::io(&path))?;
        }
        Ok(())
    }
}

pub(crate) fn digest(recipe: &Recipe) -> Result<String> {
    let text = serde_json::to_vec(recipe).map_err(|e| TrainError::Invalid(e.to_string()))?;
    Ok(blake3::hash(&text).to_hex()[..32].to_owned())
}

pub(crate) fn adapter_config(recipe: &Recipe, models: &Models) -> Result<AdapterConfig> {
    Ok(adapter_shape(recipe, models.encoder.width(), Target::of(&models.decoder)?))
}

pub(crate) fn adapter_shape(recipe: &Recipe, d_enc: usize, target: Target) -> AdapterConfig {
    AdapterConfig {
        form: AdapterForm::GatedSegments,
        ratio: recipe.ratio,
        d_enc,
        d_model: target.d_model,
        value_hidden: VALUE_HIDDEN,
        gate_hidden: GATE_HIDDEN,
        segment_hidden: SEGMENT_HIDDEN,
        embedding_rms: target.embedding_rms,
    }
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
    })
}

fn pretrain_adapter(
    recipe: &Recipe,
    config: &AdapterConfig,
    adapter: &Parameters,
    models: &Models,
    sampler: &Sampler,
    corpus: &Corpus,
    report: &mut dyn FnMut(Report),
) -> Result<()> {
    let Some(stage) = &recipe.pretrain else { return Ok(()) };
    let passages = pretrain_passages(recipe, stage, sampler, corpus)?;
    let embeddings = TokenEmbeddings::of(&models.decoder)?;
    let pool = Pool::encode(&passages, &models.encoder, &models.pieces, |chunks| {
        report(Report::Pooling { chunks, of: stage.passages })
    })?;
    pretrain(config, adapter.clone(), stage, &pool, &embeddings, recipe.seed, |step, p| {
        report(Report::Pretrain { step: step + 1, of: stage.steps, loss: p.loss, accuracy: p.accuracy });
        true
    })
}

/// The passages of a recipe's pretraining, with the decoder's tokens of them.
pub fn pretrain_passages(
    recipe: &Recipe,
    stage: &PretrainStage,
    sampler: &Sampler,
    corpus: &Corpus,
) -> Result<Vec<Passage>> {
    // Numbers from the top, so that no passage of pretraining is drawn again by the stages that follow.
    let texts = (0..stage.passages as u64).map(|i| {
        let sample = sampler.draw(corpus, &[(Objective::Reconstruct, 1.0)], (1, 1), recipe.seed, u64::MAX - i)?;
        Passage::new(crate::trainer::chunks(std::slice::from_ref(&sample)).concat(), &sampler.tokenizer)
    });
    texts.collect()
}

fn trainer(
    recipe: &Recipe,
    stage: usize,
    config: AdapterConfig,
    adapter: Parameters,
    lora: Parameters,
    models: Models,
) -> Result<Trainer<LocalSession>> {
    let stage = recipe.stages.get(stage).or(recipe.stages.last());
    let stage = stage.ok_or_else(|| TrainError::Invalid("recipe: there is no stage to train".to_owned()))?;
    let session = session(recipe, stage.adapter, config, adapter, &models)?;
    Trainer::new(session, models.decoder, AdamW::new(lora, stage.lora), recipe.lora_rank, recipe.lora_scale)
}

pub(crate) fn session(
    recipe: &Recipe,
    optimizer: AdamWConfig,
    config: AdapterConfig,
    adapter: Parameters,
    models: &Models,
) -> Result<LocalSession> {
    let bridge = bridge(recipe, models)?;
    LocalSession::new(models.encoder.clone(), models.pieces.clone(), config, adapter, optimizer, bridge)
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
