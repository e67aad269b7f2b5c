//! The decoder side of training: drives an encoder session, owns what of the decoder is trained.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Tensor, Var};
use e2llm_model::Decoder;
use e2llm_model::ops::{divergences, probabilities, token_losses};
use serde::Serialize;

use crate::batch::{Batch, Shard, encode_samples, shards};
use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, AdamWConfig};
use crate::recipe::Recipe;
use crate::sample::{Objective, Part, Sample};
use crate::session::EncoderSession;
use crate::sides::stage_of;
use crate::workers::Workers;

/// Most decoder positions of one backward pass; larger batches are accumulated over several.
const MAX_POSITIONS: usize = 3_072;

/// Decoder, its optimizer and the encoder session they train with.
pub struct Trainer<S> {
    /// The encoder side.
    pub session: S,
    pub(crate) decoder: Decoder,
    /// The decoder before anything was trained: it reads the full text where a stage distills.
    teacher: Decoder,
    distill: f32,
    lora: AdamW,
    /// Of the decoder's tensors in checkpoints.
    prefix: &'static str,
    workers: Workers,
}

/// What one step did.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Mean loss in nats per target token: what was minimised, distillation included.
    pub loss: f32,
    /// Cross-entropy by objective.
    pub losses: BTreeMap<Objective, ObjectiveLoss>,
    /// Mean divergence from the teacher in nats per target token, where the stage distills.
    pub divergence: Option<f32>,
    /// Norm of the encoder side's gradient before clipping.
    pub adapter_norm: f64,
    /// Norm of the decoder's gradient before clipping.
    pub lora_norm: f64,
    /// Decoder positions read.
    pub positions: usize,
    /// Target tokens.
    pub targets: usize,
}

/// Cross-entropy of the samples of one objective.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ObjectiveLoss {
    /// Mean nats per target token.
    pub loss: f64,
    /// Target tokens.
    pub tokens: usize,
}

impl ObjectiveLoss {
    fn add(&mut self, nats: f64, tokens: usize) {
        let total = self.loss * self.tokens as f64 + nats;
        self.tokens += tokens;
        self.loss = total / self.tokens.max(1) as f64;
    }
}

impl<S: EncoderSession> Trainer<S> {
    /// Takes a dense decoder and puts the LoRA parameters of `lora` into it; without parameters the decoder stays frozen.
    pub fn new(session: S, decoder: Decoder, lora: AdamW, rank: usize, scale: f64) -> Result<Self> {
        let mut trainer = Self::around(session, decoder, lora, "lora")?;
        trainer.decoder.set_lora(&trainer.lora.parameters().tensors(), rank, scale)?;
        Ok(trainer)
    }

    /// Takes a dense decoder and trains its linears themselves: `weights` as [`Decoder::linears`] names them.
    pub fn full(session: S, decoder: Decoder, weights: AdamW) -> Result<Self> {
        let mut trainer = Self::around(session, decoder, weights, "decoder")?;
        trainer.decoder.set_linears(&trainer.lora.parameters().tensors())?;
        Ok(trainer)
    }

    fn around(session: S, decoder: Decoder, lora: AdamW, prefix: &'static str) -> Result<Self> {
        let workers = Workers::on(decoder.device())?;
        Ok(Self { session, teacher: decoder.clone(), decoder, distill: 0.0, lora, prefix, workers })
    }

    /// The decoder with its LoRA.
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// What of the decoder is trained, with its optimizer: the LoRA, the linears, or nothing.
    pub fn lora(&self) -> &AdamW {
        &self.lora
    }

    /// Gives the decoder back, as it came.
    pub fn into_decoder(self) -> Result<Decoder> {
        let mut decoder = self.decoder;
        decoder.set_lora(&HashMap::new(), 0, 0.0)?;
        Ok(decoder)
    }

    /// Parameters and moments of the decoder side.
    pub fn save_decoder(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        self.lora.save(self.prefix, &mut tensors)?;
        Ok(tensors)
    }

    /// Restores what [`Trainer::save_decoder`] gave.
    pub fn restore_decoder(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        self.lora.restore(self.prefix, tensors)
    }

    /// Optimizer settings of both sides from now on; moments stay.
    pub fn configure(&mut self, adapter: AdamWConfig, lora: AdamWConfig) {
        self.session.configure(adapter);
        self.lora.configure(lora);
    }

    /// Everything a stage sets: rates of all parts, ratio, distillation.
    pub fn configure_stage(&mut self, recipe: &Recipe, stage: usize) -> Result<()> {
        let (ratio, features) = (recipe.ratio_at(stage), recipe.features_at(stage));
        let stage = stage_of(recipe, stage)?;
        self.configure(stage.adapter, stage.lora);
        self.session.configure_encoder(stage.encoder);
        self.session.set_ratio(ratio)?;
        self.session.set_features(features)?;
        self.distill = stage.distill as f32;
        Ok(())
    }

    /// One optimizer step of both sides on `samples`.
    pub fn step(&mut self, samples: &[Sample], schedule: f64, number: usize) -> Result<Progress> {
        let targets: usize = samples.iter().map(|s| s.target.len()).sum();
        let mut progress = Progress {
            loss: 0.0,
            losses: BTreeMap::new(),
            divergence: (self.distill > 0.0).then_some(0.0),
            adapter_norm: 0.0,
            lora_norm: 0.0,
            positions: 0,
            targets,
        };
        let mut rest = samples;
        while !rest.is_empty() {
            let (micro, later) = rest.split_at(micro_batch(rest));
            rest = later;
            self.accumulate(micro, &mut progress)?;
        }
        if !progress.loss.is_finite() {
            return Err(TrainError::Diverged { step: number, loss: progress.loss });
        }
        progress.adapter_norm = self.session.step(schedule)?;
        progress.lora_norm = self.lora.step(schedule)?;
        Ok(progress)
    }

    fn accumulate(&mut self, samples: &[Sample], progress: &mut Progress) -> Result<()> {
        let soft = encode_samples(&mut self.session, samples)?;
        let shards = shards(samples, soft.as_ref(), self.workers.count())?;
        let goal = Goal { weight: 1.0 / progress.targets as f32, distill: self.distill, teacher: &self.teacher };
        let results = self.workers.run(&shards, |shard| shard.backward(&self.decoder, &goal));
        let mut gradients: Vec<Option<Tensor>> = vec![None; samples.len()];
        for (shard, result) in shards.iter().zip(results) {
            let result = result?;
            progress.add(shard, &result);
            self.lora.accumulate(&result.gradients)?;
            let mut start = 0;
            for (place, rows) in shard.places.iter().zip(&shard.rows) {
                if let Some(soft) = result.soft_gradient.as_ref().filter(|_| *rows > 0) {
                    gradients[*place] = Some(soft.narrow(0, start, *rows)?);
                }
                start += rows;
            }
        }
        let gradients: Vec<Tensor> = gradients.into_iter().flatten().collect();
        if gradients.is_empty() { Ok(()) } else { self.session.backward(&Tensor::cat(&gradients, 0)?) }
    }

    /// Everything a resumed run needs besides the step number.
    pub fn save(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        self.session.save(&mut tensors)?;
        self.lora.save(self.prefix, &mut tensors)?;
        Ok(tensors)
    }

    /// Restores what [`Trainer::save`] gave.
    pub fn restore(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        self.session.restore(tensors)?;
        self.lora.restore(self.prefix, tensors)
    }
}

impl Progress {
    fn add(&mut self, shard: &Shard<'_>, result: &ShardResult) {
        self.loss += result.loss;
        self.positions += result.positions;
        if let Some(divergence) = &mut self.divergence {
            *divergence += result.divergence / self.targets as f32;
        }
        let mut losses = result.losses.as_slice();
        for sample in &shard.samples {
            let (own, later) = losses.split_at(sample.target.len());
            losses = later;
            let nats = own.iter().map(|loss| f64::from(*loss)).sum();
            self.losses.entry(sample.objective).or_default().add(nats, own.len());
        }
    }
}

/// What a worker minimises.
struct Goal<'a> {
    /// Of one target token.
    weight: f32,
    distill: f32,
    teacher: &'a Decoder,
}

/// What a worker computed.
struct ShardResult {
    loss: f32,
    /// Cross-entropy of every target token.
    losses: Vec<f32>,
    /// Summed over target tokens.
    divergence: f32,
    positions: usize,
    soft_gradient: Option<Tensor>,
    gradients: GradStore,
}

impl Shard<'_> {
    fn backward(&self, decoder: &Decoder, goal: &Goal<'_>) -> Result<ShardResult> {
        let leaf = self.soft.as_ref().map(Var::from_tensor).transpose()?;
        let batch = Batch::new(&self.samples, &self.counts);
        let logits = batch.logits(decoder, leaf.as_ref().map(Var::as_tensor))?;
        let losses = token_losses(&logits, batch.targets())?;
        let mut loss = (losses.sum_all()? * f64::from(goal.weight * (1.0 - goal.distill)))?;
        let mut divergence = 0.0;
        if goal.distill > 0.0 {
            let teacher = Batch::of_full_text(&self.samples).logits(goal.teacher, None)?;
            let total = divergences(&logits, &probabilities(&teacher)?)?.sum_all()?;
            divergence = total.to_scalar()?;
            loss = (loss + (total * f64::from(goal.weight * goal.distill))?)?;
        }
        let mut gradients = loss.backward()?;
        let soft_gradient =
            leaf.as_ref().map(|leaf| gradients.remove(leaf.as_tensor()).ok_or_else(unreached)).transpose()?;
        let (loss, losses, positions) = (loss.to_scalar()?, losses.to_vec1()?, batch.positions());
        Ok(ShardResult { loss, losses, divergence, positions, soft_gradient, gradients })
    }
}

fn unreached() -> TrainError {
    TrainError::Invalid("the loss does not reach the soft tokens".to_owned())
}

/// How many samples fit one backward pass; at least one.
fn micro_batch(samples: &[Sample]) -> usize {
    let mut positions = 0;
    for (index, sample) in samples.iter().enumerate() {
        // Soft tokens are fewer than their chunk's bytes / 8 at every ratio in use: an estimate only.
        positions += sample.target.len();
        positions += sample
            .before
            .iter()
            .map(|p| match p {
                Part::Tokens(ids) => ids.len(),
                Part::Chunk(text) => text.len() / 16,
            })
            .sum::<usize>();
        if index > 0 && positions > MAX_POSITIONS {
            return index;
        }
    }
    samples.len()
}
