//! A whole training run: pretraining, the recipe's stages, checkpoints, export.

pub(crate) mod build;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use e2llm_model::template::Frame;
use e2llm_model::{Bundle, Decoder, TextEncoder, TextTokenizer};
use serde::Serialize;

pub use build::{pretrain_passages, sampler};

use crate::checkpoint::{Checkpoint, Checkpoints};
use crate::corpus::Corpus;
use crate::error::{Result, TrainError};
use crate::evaluate::{Evaluation, evaluate};
use crate::export::{BundleFiles, BundleParts, Names, write_bundle};
use crate::learned::teach;
use crate::optimizer::Parameters;
use crate::recipe::{DecoderMode, Recipe, Stage};
use crate::sample::{Objective, Sampler};
use crate::session::LocalSession;
use crate::trainer::{ObjectiveLoss, Progress, Trainer};

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
    /// What a recipe with `start: bundle` starts from.
    pub bundle: Option<Bundle>,
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
        losses: BTreeMap<Objective, ObjectiveLoss>,
        #[serde(skip_serializing_if = "Option::is_none")]
        divergence: Option<f32>,
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
        let resumed = checkpoints.latest(&digest)?;
        let sampler = sampler(&models, recipe.chunk_tokens, 0)?;
        let fresh = Checkpoint { recipe: digest.clone(), stage: 0, step: 0, samples: 0, seconds: 0.0, targets: 0 };
        let is_fresh = resumed.is_none();
        let (state, tensors) = resumed.unwrap_or((fresh, HashMap::new()));
        let (config, adapter) = if is_fresh {
            build::first_adapter(recipe, &models, &sampler, corpus, report)?
        } else {
            build::start_adapter(recipe, recipe.ratio_at(state.stage), &models)?
        };
        let trainer = build::trainer(recipe, state.stage, config, adapter, models)?;
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
            self.trainer.configure_stage(&self.recipe, self.state.stage)?;
            self.sampler.configure(&stage);
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
        let samples = (0..stage.batch as u64)
            .map(|i| self.sampler.draw(self.corpus, &stage.mix, stage.chunks, self.recipe.seed, self.state.samples + i))
            .collect::<Result<Vec<_>>>()?;
        let Progress { loss, losses, divergence, adapter_norm, lora_norm, positions, targets } =
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
            losses,
            divergence,
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
        sampler.teacher = false;
        let mut decoder = self.trainer.decoder.clone();
        if self.recipe.decoder != DecoderMode::Frozen {
            teach(&self.recipe, self.trainer.lora().parameters(), &mut decoder)?;
        }
        let evaluation = evaluate(&sampler, corpus, &mut self.trainer.session, &decoder, passages, self.recipe.seed)?;
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

    /// Writes `bundle.json`, `adapter.safetensors` and, where they were trained, `lora.safetensors` and
    /// `encoder_lora.safetensors` (f16) into `directory`. Refused for what no bundle can hold, see [`Recipe::makes_bundle`].
    pub fn export(&self, directory: &Path, name: &str, encoder: &str, decoder: &str) -> Result<()> {
        if !self.recipe.makes_bundle() {
            let problem = "this recipe makes no bundle (table features, or a decoder trained in full); measure it with `train evaluate`";
            return Err(TrainError::Invalid(problem.to_owned()));
        }
        let session = &self.trainer.session;
        let parts = BundleParts {
            adapter: session.parameters().tensors(),
            lora: self.trainer.lora().parameters().tensors(),
            encoder_lora: session.lora_parameters().map(Parameters::tensors).unwrap_or_default(),
        };
        let names = Names { bundle: name, encoder, decoder };
        let bundle = BundleFiles::new(&self.recipe, names, session.adapter().config().clone(), &parts)?;
        write_bundle(directory, &bundle.files)
    }
}

/// Where the run in `directory` stands, when it has finished `recipe`: there is nothing to train then, and no model to load.
pub fn finished(recipe: &Recipe, directory: &Path) -> Result<Option<Checkpoint>> {
    let state = Checkpoints::at(directory).state(&digest(recipe)?)?;
    Ok(state.filter(|state| state.stage >= recipe.stages.len()))
}

pub(crate) fn digest(recipe: &Recipe) -> Result<String> {
    let text = serde_json::to_vec(recipe).map_err(|e| TrainError::Invalid(e.to_string()))?;
    Ok(blake3::hash(&text).to_hex()[..32].to_owned())
}
