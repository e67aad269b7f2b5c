//! The decoder side of training: drives an encoder session, owns the LoRA.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use e2llm_model::ops::cross_entropy;
use e2llm_model::{Decoder, Packing};

use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, AdamWConfig};
use crate::sample::{Part, Sample};
use crate::session::{EncoderSession, SoftBatch};
use crate::workers::Workers;

/// Most decoder positions of one backward pass; larger batches are accumulated over several.
const MAX_POSITIONS: usize = 3_072;

/// Decoder, LoRA optimizer and the encoder session they train with.
pub struct Trainer<S> {
    /// The encoder side.
    pub session: S,
    pub(crate) decoder: Decoder,
    lora: AdamW,
    workers: Workers,
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Mean loss in nats per target token.
    pub loss: f32,
    /// Norm of the adapter's gradient before clipping.
    pub adapter_norm: f64,
    /// Norm of the LoRA's gradient before clipping.
    pub lora_norm: f64,
    /// Decoder positions read.
    pub positions: usize,
    /// Target tokens.
    pub targets: usize,
}

impl<S: EncoderSession> Trainer<S> {
    /// Takes a dense decoder and puts the LoRA parameters of `lora` into it.
    pub fn new(session: S, mut decoder: Decoder, lora: AdamW, rank: usize, scale: f64) -> Result<Self> {
        decoder.set_lora(&lora.parameters().tensors(), rank, scale)?;
        Ok(Self { session, decoder, lora, workers: Workers::new()? })
    }

    /// The decoder with its LoRA.
    pub fn decoder_mut(&mut self) -> &mut Decoder {
        &mut self.decoder
    }

    /// The LoRA's parameters and optimizer.
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
        self.lora.save("lora", &mut tensors)?;
        Ok(tensors)
    }

    /// Restores what [`Trainer::save_decoder`] gave.
    pub fn restore_decoder(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        self.lora.restore("lora", tensors)
    }

    /// Optimizer settings of both sides from now on; moments stay.
    pub fn configure(&mut self, adapter: AdamWConfig, lora: AdamWConfig) {
        self.session.configure(adapter);
        self.lora.configure(lora);
    }

    /// One optimizer step of both sides on `samples`.
    pub fn step(&mut self, samples: &[Sample], schedule: f64, number: usize) -> Result<Progress> {
        let targets: usize = samples.iter().map(|s| s.target.len()).sum();
        let mut progress = Progress { loss: 0.0, adapter_norm: 0.0, lora_norm: 0.0, positions: 0, targets };
        let mut rest = samples;
        while !rest.is_empty() {
            let (micro, later) = rest.split_at(micro_batch(rest));
            rest = later;
            let (loss, positions) = self.accumulate(micro, targets)?;
            progress.loss += loss;
            progress.positions += positions;
        }
        if !progress.loss.is_finite() {
            return Err(TrainError::Diverged { step: number, loss: progress.loss });
        }
        progress.adapter_norm = self.session.step(schedule)?;
        progress.lora_norm = self.lora.step(schedule)?;
        Ok(progress)
    }

    fn accumulate(&mut self, samples: &[Sample], targets: usize) -> Result<(f32, usize)> {
        let soft = self.session.encode(&chunks(samples))?;
        let weight = 1.0 / targets as f32;
        let shards = self
            .workers
            .run(&shards(samples, &soft, self.workers.count())?, |shard| shard.backward(&self.decoder, weight));
        let (mut loss, mut positions, mut soft_gradients) = (0.0, 0, Vec::new());
        for shard in shards {
            let shard = shard?;
            loss += shard.loss;
            positions += shard.positions;
            soft_gradients.push(shard.soft_gradient);
            self.lora.accumulate(&shard.gradients)?;
        }
        self.session.backward(&Tensor::cat(&soft_gradients, 0)?)?;
        Ok((loss, positions))
    }

    /// Everything a resumed run needs besides the step number.
    pub fn save(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut tensors = BTreeMap::new();
        self.session.save(&mut tensors)?;
        self.lora.save("lora", &mut tensors)?;
        Ok(tensors)
    }

    /// Restores what [`Trainer::save`] gave.
    pub fn restore(&mut self, tensors: &HashMap<String, Tensor>) -> Result<()> {
        self.session.restore(tensors)?;
        self.lora.restore("lora", tensors)
    }
}

/// Samples of one worker with their soft tokens.
struct Shard<'a> {
    samples: &'a [Sample],
    soft: Tensor,
    counts: &'a [usize],
}

/// What a worker computed.
struct ShardResult {
    loss: f32,
    positions: usize,
    soft_gradient: Tensor,
    gradients: GradStore,
}

impl Shard<'_> {
    fn backward(&self, decoder: &Decoder, weight: f32) -> Result<ShardResult> {
        let leaf = Var::from_tensor(&self.soft)?;
        let batch = Batch::new(self.samples, self.counts);
        let loss = batch.loss(decoder, Some(leaf.as_tensor()), weight)?;
        let mut gradients = loss.backward()?;
        let soft_gradient = gradients.remove(leaf.as_tensor());
        let soft_gradient =
            soft_gradient.ok_or_else(|| TrainError::Invalid("the loss does not reach the soft tokens".to_owned()))?;
        Ok(ShardResult { loss: loss.to_scalar()?, positions: batch.positions(), soft_gradient, gradients })
    }
}

/// Cuts samples into `count` runs of about equal length, each with the rows of its own chunks.
fn shards<'a>(samples: &'a [Sample], soft: &'a SoftBatch, count: usize) -> Result<Vec<Shard<'a>>> {
    let size = samples.len().div_ceil(count).max(1);
    let (mut chunk, mut row) = (0, 0);
    samples
        .chunks(size)
        .map(|samples| {
            let chunks = chunks(samples).len();
            let counts = &soft.counts[chunk..chunk + chunks];
            let rows: usize = counts.iter().sum();
            let shard = Shard { samples, soft: soft.values.narrow(0, row, rows)?.contiguous()?, counts };
            chunk += chunks;
            row += rows;
            Ok(shard)
        })
        .collect()
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

/// All chunk texts of the samples, in order.
pub(crate) fn chunks(samples: &[Sample]) -> Vec<&str> {
    let parts = samples.iter().flat_map(|s| &s.before);
    parts.filter_map(|p| if let Part::Chunk(text) = p { Some(text.as_str()) } else { None }).collect()
}

/// Samples laid out as one packed decoder input.
pub(crate) struct Batch {
    /// All token ids, then all soft tokens; `order` says which stands where.
    tokens: Vec<u32>,
    order: Vec<u32>,
    lengths: Vec<usize>,
    /// Rows whose next token is a target, and the targets.
    rows: Vec<u32>,
    targets: Vec<u32>,
}

impl Batch {
    /// `counts`: soft tokens of each chunk, in the order of [`chunks`].
    pub(crate) fn new(samples: &[Sample], counts: &[usize]) -> Self {
        let total_tokens: usize = samples.iter().map(token_count).sum();
        let mut batch =
            Self { tokens: Vec::new(), order: Vec::new(), lengths: Vec::new(), rows: Vec::new(), targets: Vec::new() };
        let mut counts = counts.iter();
        let mut soft = total_tokens as u32;
        for sample in samples {
            let start = batch.order.len();
            for part in &sample.before {
                match part {
                    Part::Tokens(ids) => batch.push_tokens(ids),
                    Part::Chunk(_) => {
                        let count = counts.next().copied().unwrap_or(0) as u32;
                        batch.order.extend(soft..soft + count);
                        soft += count;
                    }
                }
            }
            batch.rows.extend((0..sample.target.len()).map(|i| (batch.order.len() + i - 1) as u32));
            batch.targets.extend(&sample.target);
            batch.push_tokens(&sample.target[..sample.target.len() - 1]);
            batch.lengths.push(batch.order.len() - start);
        }
        batch
    }

    fn push_tokens(&mut self, ids: &[u32]) {
        let first = self.tokens.len() as u32;
        self.order.extend(first..first + ids.len() as u32);
        self.tokens.extend(ids);
    }

    pub(crate) fn positions(&self) -> usize {
        self.order.len()
    }

    /// Logits at the target rows `[targets, vocabulary]`.
    pub(crate) fn logits(&self, decoder: &Decoder, soft: Option<&Tensor>) -> Result<Tensor> {
        let mut input = decoder.embed(&self.tokens)?;
        if let Some(soft) = soft {
            input = Tensor::cat(&[&input, soft], 0)?;
        }
        let input = input.index_select(&Tensor::new(self.order.as_slice(), &Device::Cpu)?, 0)?;
        let hidden = decoder.hidden(&input, &Packing::sequences(&self.lengths))?;
        let rows = Tensor::new(self.rows.as_slice(), &Device::Cpu)?;
        Ok(decoder.logits(&hidden.index_select(&rows, 0)?)?)
    }

    /// `weight · Σ −ln p(target)`.
    pub(crate) fn loss(&self, decoder: &Decoder, soft: Option<&Tensor>, weight: f32) -> Result<Tensor> {
        let logits = self.logits(decoder, soft)?;
        Ok(cross_entropy(&logits, &self.targets, &vec![weight; self.targets.len()])?)
    }

    pub(crate) fn targets(&self) -> &[u32] {
        &self.targets
    }
}

fn token_count(sample: &Sample) -> usize {
    let before: usize = sample.before.iter().map(|p| if let Part::Tokens(ids) = p { ids.len() } else { 0 }).sum();
    before + sample.target.len() - 1
}

/// Soft tokens of samples, or nothing when they hold no chunk.
pub(crate) fn encode_samples(session: &mut impl EncoderSession, samples: &[Sample]) -> Result<Option<SoftBatch>> {
    let chunks = chunks(samples);
    if chunks.is_empty() { Ok(None) } else { session.encode(&chunks).map(Some) }
}
