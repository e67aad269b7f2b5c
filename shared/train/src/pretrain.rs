//! Adapter pretraining without the decoder in the loop: word pieces into the decoder's embedding space.
//!
//! For each word piece the value path predicts the decoder token that covers it (sampled softmax over the tied
//! embedding, plus its squared distance); each segment approaches the idf-weighted mix of its tokens' embeddings.
//!
//! All that is needed of the decoder is its token embeddings and where its tokens end in the texts: [`TokenEmbeddings`] and
//! [`Passage`], which an encoder in another process can be sent.

use std::collections::{BTreeSet, HashMap};

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use e2llm_model::ops::{cross_entropy, frozen_linear, rms_norm};
use e2llm_model::{Adapter, AdapterConfig, Decoder, TextEncoder, TextTokenizer};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, Parameters};
use crate::recipe::PretrainStage;
use crate::session::tokenize;
use crate::workers::Workers;

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

/// Passages encoded in one go by one worker.
const ENCODED_TOGETHER: usize = 16;

impl Pool {
    /// Encodes `passages` once, on all cores; `seen` hears how many are done.
    pub fn encode(
        passages: &[Passage],
        encoder: &TextEncoder,
        pieces: &TextTokenizer,
        mut seen: impl FnMut(usize),
    ) -> Result<Self> {
        let workers = Workers::on(encoder.device())?;
        let mut chunks: Vec<Encoded> = Vec::with_capacity(passages.len());
        for batch in passages.chunks(ENCODED_TOGETHER * workers.count()) {
            let shares: Vec<&[Passage]> = batch.chunks(ENCODED_TOGETHER).collect();
            for share in workers.run(&shares, |share| encode_share(share, encoder, pieces)) {
                chunks.extend(share?);
            }
            seen(chunks.len());
        }
        if chunks.is_empty() {
            return Err(TrainError::Invalid("no chunk of the corpus could be aligned with decoder tokens".to_owned()));
        }
        let mut documents: HashMap<u32, usize> = HashMap::new();
        for chunk in &chunks {
            let distinct: BTreeSet<u32> = chunk.aligned.iter().copied().collect();
            distinct.into_iter().for_each(|id| *documents.entry(id).or_default() += 1);
        }
        let total = chunks.len() as f32;
        let idf = documents.into_iter().map(|(id, n)| (id, (total / n as f32).ln())).collect();
        Ok(Self { chunks, idf })
    }
}

/// Those of the texts whose word pieces could all be aligned.
fn encode_share(passages: &[Passage], encoder: &TextEncoder, pieces: &TextTokenizer) -> Result<Vec<Encoded>> {
    let texts: Vec<&str> = passages.iter().map(|passage| passage.text.as_str()).collect();
    let tokenized = tokenize(pieces, &texts)?;
    let features = Adapter::features(&encoder.states(&tokenized.sequences)?, &tokenized.content)?;
    let mut start = 0;
    let mut chunks = Vec::with_capacity(texts.len());
    for (passage, count) in passages.iter().zip(&tokenized.content.pieces) {
        let aligned = align(passage, pieces)?;
        if aligned.len() == *count && *count > 0 {
            chunks.push(Encoded { features: own_rows(&features, start, *count)?, aligned });
        }
        start += count;
    }
    Ok(chunks)
}

/// Rows with storage of their own, so that a chunk does not keep the states of its neighbours; `Tensor::copy` would copy
/// those, too.
fn own_rows(features: &Tensor, start: usize, count: usize) -> Result<Tensor> {
    Ok(features.narrow(0, start, count)?.force_contiguous()?)
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
    let device = parameters.device();
    let embeddings = &TokenEmbeddings(embeddings.0.to_device(&device)?);
    let adapter = Adapter::new(config.clone(), parameters.tensors(), &device)?;
    // The output scale gets no gradient here: the segment loss compares directions at the embeddings' own scale.
    let trained = parameters.0.iter().filter(|(name, _)| name.as_str() != "scale").map(|(n, v)| (n.clone(), v.clone()));
    let mut optimizer = AdamW::new(Parameters(trained.collect()), stage.adapter);
    let vocabulary = embeddings.vocabulary()?;
    let workers = Workers::on(&device)?;
    for step in 0..stage.steps {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(step as u64);
        let batch: Vec<&Encoded> =
            (0..stage.batch).map(|_| &pool.chunks[rng.random_range(0..pool.chunks.len())]).collect();
        let mut sampled: BTreeSet<u32> = batch.iter().flat_map(|c| c.aligned.iter().copied()).collect();
        while sampled.len() < stage.negatives.min(vocabulary as usize) {
            sampled.insert(rng.random_range(0..vocabulary));
        }
        let sampled: Vec<u32> = sampled.into_iter().collect();
        let goal =
            Goal { adapter: &adapter, candidates: embeddings.rows(&sampled)?, sampled, embeddings, idf: &pool.idf };
        let (loss, accuracy) = goal.accumulate(&batch, &workers, &mut optimizer)?;
        let done = step as f64 / stage.steps as f64;
        optimizer.step(0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()))?;
        if !loss.is_finite() {
            return Err(TrainError::Diverged { step, loss });
        }
        if !report(step, PretrainProgress { loss, accuracy }) {
            return Err(TrainError::Stopped);
        }
    }
    Ok(())
}

/// What the values of one step are held to.
struct Goal<'a> {
    adapter: &'a Adapter,
    /// Vocabulary of the sampled softmax, ascending, and its embeddings `[sampled, d_model]`.
    sampled: Vec<u32>,
    candidates: Tensor,
    embeddings: &'a TokenEmbeddings,
    idf: &'a HashMap<u32, f32>,
}

/// Loss of a worker's share of a batch.
struct ShareResult {
    loss: f32,
    right: usize,
    gradients: GradStore,
}

impl Goal<'_> {
    /// Mean loss and accuracy of the batch, its gradients added up in the optimizer.
    fn accumulate(&self, batch: &[&Encoded], workers: &Workers, optimizer: &mut AdamW) -> Result<(f32, f32)> {
        let pieces: usize = batch.iter().map(|c| c.aligned.len()).sum();
        let soft: usize = batch.iter().map(|c| self.adapter.config().soft_tokens(c.aligned.len())).sum();
        let shares: Vec<&[&Encoded]> = batch.chunks(batch.len().div_ceil(workers.count()).max(1)).collect();
        let (mut loss, mut right) = (0.0, 0);
        for share in workers.run(&shares, |share| self.backward(share, pieces, soft)) {
            let share = share?;
            loss += share.loss;
            right += share.right;
            optimizer.accumulate(&share.gradients)?;
        }
        Ok((loss, right as f32 / pieces as f32))
    }

    /// `pieces` and `soft` count those of the whole batch, of which this share's means are a part.
    fn backward(&self, share: &[&Encoded], pieces: usize, soft: usize) -> Result<ShareResult> {
        let aligned: Vec<u32> = share.iter().flat_map(|c| c.aligned.iter().copied()).collect();
        let features = Tensor::cat(&share.iter().map(|c| c.features.clone()).collect::<Vec<_>>(), 0)?;
        let counts: Vec<usize> = share.iter().map(|c| c.aligned.len()).collect();
        let targets: Vec<u32> = aligned.iter().map(|id| self.sampled.partition_point(|s| s < id) as u32).collect();
        let values = self.adapter.values(&features)?;
        let logits = frozen_linear(&values, &self.candidates)?;
        let right = right(&logits, &targets)?;
        let classified = cross_entropy(&logits, &targets, &vec![1.0 / pieces as f32; targets.len()])?;
        let config = self.adapter.config();
        // Squares are measured in those of an embedding.
        let unit = f64::from(config.embedding_rms).powi(2) * config.d_model as f64;
        let embeddings = self.embeddings.rows(&aligned)?;
        let distance = ((values - &embeddings)?.sqr()?.sum_all()? * (0.5 / (unit * pieces as f64)))?;
        let mixes = segment_mixes(&embeddings, &aligned, &counts, config, self.idf)?;
        let segments = (self.adapter.soft_tokens(&features, &counts)? - mixes)?;
        let segments = (segments.sqr()?.sum_all()? * (1.0 / (unit * soft as f64)))?;
        let loss = ((classified + distance)? + segments)?;
        Ok(ShareResult { gradients: loss.backward()?, loss: loss.to_scalar()?, right })
    }
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
        for segment in config.segments(count) {
            let rows = start + segment.start..start + segment.end;
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
    let rows = mixes.len() / d;
    let mixes = Tensor::from_vec(mixes, (rows, d), embeddings.device())?;
    let unit = Tensor::full(config.embedding_rms, d, embeddings.device())?;
    Ok(rms_norm(&mixes, &unit, 1e-12)?)
}

fn right(logits: &Tensor, targets: &[u32]) -> Result<usize> {
    let best = logits.argmax(1)?.to_vec1::<u32>()?;
    Ok(best.iter().zip(targets).filter(|(a, b)| a == b).count())
}

#[cfg(test)]
mod tests {
    use candle_core::{CpuStorage, Device, Storage};

    use super::*;

    #[test]
    fn rows_of_a_batch_hold_no_more_than_themselves() {
        let batch = Tensor::arange(0.0_f32, 60.0, &Device::Cpu).unwrap().reshape((20, 3)).unwrap();
        let rows = own_rows(&batch, 4, 2).unwrap();
        assert_eq!(rows.to_vec2::<f32>().unwrap(), [[12.0, 13.0, 14.0], [15.0, 16.0, 17.0]]);
        let (storage, _) = rows.storage_and_layout();
        let Storage::Cpu(CpuStorage::F32(held)) = &*storage else { panic!("not f32 on the CPU") };
        assert_eq!(held.len(), 6);
    }
}
