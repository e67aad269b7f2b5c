//! Adapter pretraining without the decoder in the loop: word pieces into the decoder's embedding space.
//!
//! For each word piece the value path predicts the decoder token that covers it (sampled softmax over the tied
//! embedding, plus its squared distance); each segment approaches the idf-weighted mix of its tokens' embeddings.
//!
//! All that is needed of the decoder is its token embeddings and where its tokens end in the texts: [`TokenEmbeddings`] and
//! [`Passage`], which an encoder in another process can be sent.

use std::collections::{BTreeSet, HashMap};

use candle_core::{Device, Tensor};
use e2llm_model::ops::{cross_entropy, frozen_linear, rms_norm};
use e2llm_model::{Adapter, AdapterConfig, Decoder, TextEncoder, TextTokenizer};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, Parameters};
use crate::recipe::PretrainStage;
use crate::session::tokenize;

/// Weight of a token's idf in the mix a segment approaches: peaked, for a plain mean is unreadable.
const IDF_PEAK: f32 = 1.5;

/// A text and the decoder's tokens of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// The text.
    pub text: String,
    /// Its token ids.
    pub tokens: Vec<u32>,
    /// The byte at which each token ends.
    pub ends: Vec<usize>,
}

impl Passage {
    /// Tokenises a text as the decoder reads it.
    pub fn new(text: String, tokens: &TextTokenizer) -> Result<Self> {
        let spans = tokens.encode_with_offsets(&text)?;
        let (tokens, ends) = spans.iter().map(|token| (token.id, token.end)).unzip();
        Ok(Self { text, tokens, ends })
    }
}

/// The decoder's token embeddings `[vocabulary, d_model]`, f32.
#[derive(Debug, Clone)]
pub struct TokenEmbeddings(Tensor);

impl TokenEmbeddings {
    /// Those of a decoder.
    pub fn of(decoder: &Decoder) -> Result<Self> {
        let ids: Vec<u32> = (0..decoder.vocabulary()? as u32).collect();
        Ok(Self(decoder.embed(&ids)?))
    }

    /// From a table.
    ///
    /// # Errors
    /// When it has not two dimensions.
    pub fn new(table: Tensor) -> Result<Self> {
        table.dims2()?;
        Ok(Self(table))
    }

    /// The table.
    pub fn table(&self) -> &Tensor {
        &self.0
    }

    fn vocabulary(&self) -> Result<u32> {
        Ok(u32::try_from(self.0.dim(0)?).unwrap_or(u32::MAX))
    }

    fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        let vocabulary = self.vocabulary()?;
        if let Some(id) = ids.iter().find(|id| **id >= vocabulary) {
            return Err(TrainError::Invalid(format!("token {id} is outside the vocabulary of {vocabulary}")));
        }
        Ok(self.0.index_select(&Tensor::new(ids, self.0.device())?, 0)?)
    }
}

/// Chunks with what the encoder says of them and which decoder token each word piece belongs to.
pub struct Pool {
    chunks: Vec<Encoded>,
    idf: HashMap<u32, f32>,
}

struct Encoded {
    features: Tensor,
    aligned: Vec<u32>,
}

impl Pool {
    /// Encodes `passages` once.
    pub fn encode(
        passages: &[Passage],
        encoder: &TextEncoder,
        pieces: &TextTokenizer,
        mut seen: impl FnMut(usize),
    ) -> Result<Self> {
        let mut chunks = Vec::with_capacity(passages.len());
        let mut documents: HashMap<u32, usize> = HashMap::new();
        for batch in passages.chunks(32) {
            let texts: Vec<&str> = batch.iter().map(|passage| passage.text.as_str()).collect();
            let tokenized = tokenize(pieces, &texts)?;
            let features = Adapter::features(&encoder.states(&tokenized.sequences)?, &tokenized.content)?;
            let mut start = 0;
            for (passage, count) in batch.iter().zip(&tokenized.content.pieces) {
                let aligned = align(passage, pieces)?;
                if aligned.len() == *count && *count > 0 {
                    aligned
                        .iter()
                        .collect::<BTreeSet<_>>()
                        .into_iter()
                        .for_each(|id| *documents.entry(*id).or_default() += 1);
                    chunks.push(Encoded { features: features.narrow(0, start, *count)?, aligned });
                }
                start += count;
            }
            seen(chunks.len());
        }
        if chunks.is_empty() {
            return Err(TrainError::Invalid("no chunk of the corpus could be aligned with decoder tokens".to_owned()));
        }
        let total = chunks.len() as f32;
        let idf = documents.into_iter().map(|(id, n)| (id, (total / n as f32).ln())).collect();
        Ok(Self { chunks, idf })
    }
}

/// For every word piece, the decoder token that covers its first byte.
fn align(passage: &Passage, pieces: &TextTokenizer) -> Result<Vec<u32>> {
    let mut at = 0;
    let aligned = pieces.encode_with_offsets(&passage.text)?.into_iter().filter_map(|piece| {
        while at + 1 < passage.tokens.len() && passage.ends.get(at).is_some_and(|end| *end <= piece.start) {
            at += 1;
        }
        passage.tokens.get(at).copied()
    });
    Ok(aligned.collect())
}

/// What one step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PretrainProgress {
    /// Total loss.
    pub loss: f32,
    /// Share of word pieces whose value is nearest to its own token among the sampled vocabulary.
    pub accuracy: f32,
}

/// Trains `parameters` in place; `report` sees every step and says whether to go on.
pub fn pretrain(
    config: &AdapterConfig,
    parameters: Parameters,
    stage: &PretrainStage,
    pool: &Pool,
    embeddings: &TokenEmbeddings,
    seed: u64,
    mut report: impl FnMut(usize, PretrainProgress) -> bool,
) -> Result<()> {
    let adapter = Adapter::new(config.clone(), parameters.tensors(), &Device::Cpu)?;
    // The output scale gets no gradient here: the segment loss compares directions at the embeddings' own scale.
    let trained = parameters.0.iter().filter(|(name, _)| name.as_str() != "scale").map(|(n, v)| (n.clone(), v.clone()));
    let mut optimizer = AdamW::new(Parameters(trained.collect()), stage.adapter);
    let vocabulary = embeddings.vocabulary()?;
    for step in 0..stage.steps {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step as u64);
        let batch: Vec<&Encoded> =
            (0..stage.batch).map(|_| &pool.chunks[rng.random_range(0..pool.chunks.len())]).collect();
        let aligned: Vec<u32> = batch.iter().flat_map(|c| c.aligned.iter().copied()).collect();
        let mut sampled: BTreeSet<u32> = aligned.iter().copied().collect();
        while sampled.len() < stage.negatives.min(vocabulary as usize) {
            sampled.insert(rng.random_range(0..vocabulary));
        }
        let (loss, accuracy) = loss(&adapter, &batch, &aligned, sampled, embeddings, &pool.idf)?;
        let done = step as f64 / stage.steps as f64;
        optimizer.accumulate(&loss.backward()?)?;
        optimizer.step(0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))?;
        let loss: f32 = loss.to_scalar()?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, loss });
        }
        if !report(step, PretrainProgress { loss, accuracy }) {
            return Err(TrainError::Stopped);
        }
    }
    Ok(())
}

fn loss(
    adapter: &Adapter,
    batch: &[&Encoded],
    aligned: &[u32],
    sampled: BTreeSet<u32>,
    decoder: &TokenEmbeddings,
    idf: &HashMap<u32, f32>,
) -> Result<(Tensor, f32)> {
    let features = Tensor::cat(&batch.iter().map(|c| c.features.clone()).collect::<Vec<_>>(), 0)?;
    let pieces: Vec<usize> = batch.iter().map(|c| c.aligned.len()).collect();
    let sampled: Vec<u32> = sampled.into_iter().collect();
    let targets: Vec<u32> = aligned.iter().map(|id| sampled.partition_point(|s| s < id) as u32).collect();
    let values = adapter.values(&features)?;
    let logits = frozen_linear(&values, &decoder.rows(&sampled)?)?;
    let accuracy = accuracy(&logits, &targets)?;
    let weight = vec![1.0 / targets.len() as f32; targets.len()];
    let classified = cross_entropy(&logits, &targets, &weight)?;
    let power = f64::from(adapter.config().embedding_rms).powi(2);
    let embeddings = decoder.rows(aligned)?;
    let distance = ((values - &embeddings)?.sqr()?.mean_all()? / power)?;
    let mixes = segment_mixes(&embeddings, aligned, &pieces, adapter.config(), idf)?;
    let soft = adapter.soft_tokens(&features, &pieces)?;
    let segment = ((soft - mixes)?.sqr()?.mean_all()? / power)?;
    Ok(((classified + (distance * 0.5)?)?.add(&segment)?, accuracy))
}

/// The idf-weighted mix of each segment's embeddings, scaled to the embeddings' RMS: `[segments, d_model]`.
fn segment_mixes(
    embeddings: &Tensor,
    aligned: &[u32],
    pieces: &[usize],
    config: &AdapterConfig,
    idf: &HashMap<u32, f32>,
) -> Result<Tensor> {
    let (_, d) = embeddings.dims2()?;
    let values = embeddings.to_vec2::<f32>()?;
    let mut mixes = Vec::new();
    let mut start = 0;
    for &count in pieces {
        for segment in (start..start + count).step_by(config.ratio) {
            let rows = segment..(segment + config.ratio).min(start + count);
            let weights: Vec<f32> =
                rows.clone().map(|r| (IDF_PEAK * idf.get(&aligned[r]).copied().unwrap_or(0.0)).exp()).collect();
            let total: f32 = weights.iter().sum();
            let mut mix = vec![0.0; d];
            for (row, weight) in rows.zip(&weights) {
                mix.iter_mut().zip(&values[row]).for_each(|(m, v)| *m += weight / total * v);
            }
            mixes.extend(mix);
        }
        start += count;
    }
    let mixes = Tensor::from_vec(mixes.clone(), (mixes.len() / d, d), &Device::Cpu)?;
    let unit = Tensor::full(config.embedding_rms, d, &Device::Cpu)?;
    Ok(rms_norm(&mixes, &unit, 1e-12)?)
}

fn accuracy(logits: &Tensor, targets: &[u32]) -> Result<f32> {
    let best = logits.argmax(1)?.to_vec1::<u32>()?;
    let right = best.iter().zip(targets).filter(|(a, b)| a == b).count();
    Ok(right as f32 / targets.len() as f32)
}
