//! Adapter pretraining without the decoder in the loop: word pieces into the decoder's embedding space.
//!
//! For each word piece the value path predicts the decoder token that covers it (sampled softmax over the tied
//! embedding, plus its squared distance); each segment approaches the idf-weighted mix of its tokens' embeddings.

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
    /// Encodes `texts` once.
    pub fn encode(
        texts: &[String],
        encoder: &TextEncoder,
        pieces: &TextTokenizer,
        tokens: &TextTokenizer,
        mut seen: impl FnMut(usize),
    ) -> Result<Self> {
        let mut chunks = Vec::with_capacity(texts.len());
        let mut documents: HashMap<u32, usize> = HashMap::new();
        for batch in texts.chunks(32) {
            let texts: Vec<&str> = batch.iter().map(String::as_str).collect();
            let tokenized = tokenize(pieces, &texts)?;
            let features = Adapter::features(&encoder.states(&tokenized.sequences)?, &tokenized.content)?;
            let mut start = 0;
            for (text, count) in texts.iter().zip(&tokenized.content.pieces) {
                let aligned = align(text, pieces, tokens)?;
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
fn align(text: &str, pieces: &TextTokenizer, tokens: &TextTokenizer) -> Result<Vec<u32>> {
    let tokens = tokens.encode_with_offsets(text)?;
    let mut at = 0;
    let aligned = pieces.encode_with_offsets(text)?.into_iter().filter_map(|piece| {
        while at + 1 < tokens.len() && tokens[at].end <= piece.start {
            at += 1;
        }
        tokens.get(at).map(|t| t.id)
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

/// Trains `parameters` in place; `report` sees every step.
pub fn pretrain(
    config: &AdapterConfig,
    parameters: Parameters,
    stage: &PretrainStage,
    pool: &Pool,
    decoder: &Decoder,
    seed: u64,
    mut report: impl FnMut(usize, PretrainProgress),
) -> Result<()> {
    let adapter = Adapter::new(config.clone(), parameters.tensors(), &Device::Cpu)?;
    // The output scale gets no gradient here: the segment loss compares directions at the embeddings' own scale.
    let trained = parameters.0.iter().filter(|(name, _)| name.as_str() != "scale").map(|(n, v)| (n.clone(), v.clone()));
    let mut optimizer = AdamW::new(Parameters(trained.collect()), stage.adapter);
    let vocabulary = decoder.vocabulary()? as u32;
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
        let (loss, accuracy) = loss(&adapter, &batch, &aligned, sampled, decoder, &pool.idf)?;
        let done = step as f64 / stage.steps as f64;
        optimizer.accumulate(&loss.backward()?)?;
        optimizer.step(0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))?;
        let loss: f32 = loss.to_scalar()?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, loss });
        }
        report(step, PretrainProgress { loss, accuracy });
    }
    Ok(())
}

fn loss(
    adapter: &Adapter,
    batch: &[&Encoded],
    aligned: &[u32],
    sampled: BTreeSet<u32>,
    decoder: &Decoder,
    idf: &HashMap<u32, f32>,
) -> Result<(Tensor, f32)> {
    let features = Tensor::cat(&batch.iter().map(|c| c.features.clone()).collect::<Vec<_>>(), 0)?;
    let pieces: Vec<usize> = batch.iter().map(|c| c.aligned.len()).collect();
    let sampled: Vec<u32> = sampled.into_iter().collect();
    let targets: Vec<u32> = aligned.iter().map(|id| sampled.partition_point(|s| s < id) as u32).collect();
    let values = adapter.values(&features)?;
    let logits = frozen_linear(&values, &decoder.embed(&sampled)?)?;
    let accuracy = accuracy(&logits, &targets)?;
    let weight = vec![1.0 / targets.len() as f32; targets.len()];
    let classified = cross_entropy(&logits, &targets, &weight)?;
    let power = f64::from(adapter.config().embedding_rms).powi(2);
    let embeddings = decoder.embed(aligned)?;
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
