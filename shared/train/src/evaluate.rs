//! Held-out losses: is the decoder reading the soft tokens?
//!
//! The gap between *wrong* (another document's chunk of equal length) and *right* is the only evidence that it does; a
//! low *right* alone may be domain adaptation.

use serde::Serialize;

use e2llm_model::Decoder;
use e2llm_model::ops::log_likelihoods;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::batch::{Batch, Shard, encode_samples, shards};
use crate::corpus::Corpus;
use crate::error::{Result, TrainError};
use crate::sample::{Objective, Part, Sample, Sampler};
use crate::session::EncoderSession;
use crate::workers::Workers;

/// Samples per forward pass.
const BATCH: usize = 8;

/// Mean nats per target token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Losses {
    /// With the soft tokens of the right chunk.
    pub right: f64,
    /// With those of a chunk of equal length from another document.
    pub wrong: f64,
    /// With no document at all.
    pub none: f64,
    /// With the chunk's text itself.
    pub full: f64,
    /// wrong − right.
    pub gap: f64,
    /// Standard error of the gap over samples.
    pub gap_error: f64,
}

/// Losses of both halves of the understanding objective.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Regenerate the chunk.
    #[serde(flatten)]
    pub reconstruction: Losses,
    /// Write the chunk that follows.
    pub continuation: Losses,
    /// Passages measured.
    pub samples: usize,
    /// Target tokens of the reconstruction.
    pub tokens: usize,
}

struct Passage {
    document: usize,
    chunk: String,
    next: String,
}

/// Measures `count` passages of `corpus`, drawn by `seed`, with the decoder as it stands (LoRA or not).
pub fn evaluate(
    sampler: &Sampler,
    corpus: &Corpus,
    session: &mut impl EncoderSession,
    decoder: &Decoder,
    count: usize,
    seed: u64,
) -> Result<Evaluation> {
    let passages = draw(sampler, corpus, count, seed)?;
    let wrong = others(&passages)?;
    let workers = Workers::on(decoder.device())?;
    let measure = |objective: Objective, session: &mut _| {
        losses(sampler, &passages, &wrong, objective, session, decoder, &workers)
    };
    let (reconstruction, tokens) = measure(Objective::Reconstruct, session)?;
    let (continuation, _) = measure(Objective::Continue, session)?;
    Ok(Evaluation { reconstruction, continuation, samples: passages.len(), tokens })
}

fn draw(sampler: &Sampler, corpus: &Corpus, count: usize, seed: u64) -> Result<Vec<Passage>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut passages = Vec::new();
    for draw in 0..count * 50 {
        if passages.len() == count {
            break;
        }
        let document = draw % corpus.documents.len();
        let text = &corpus.documents[document].text;
        let chunks: Vec<&str> = sampler.chunker.chunks(text).map(|c| Ok(c?.text(text))).collect::<Result<_>>()?;
        if chunks.len() < 2 {
            continue;
        }
        let at = rng.random_range(0..chunks.len() - 1);
        if sampler.tokenizer.count(chunks[at])? >= 8 && sampler.tokenizer.count(chunks[at + 1])? >= 8 {
            passages.push(Passage { document, chunk: chunks[at].to_owned(), next: chunks[at + 1].to_owned() });
        }
    }
    if passages.is_empty() {
        return Err(TrainError::Invalid("no document has two chunks to measure on; give longer texts".to_owned()));
    }
    Ok(passages)
}

/// For each passage the one of another document whose chunk is nearest in length.
fn others(passages: &[Passage]) -> Result<Vec<usize>> {
    let nearest = |own: &Passage| {
        let others = passages.iter().enumerate().filter(|(_, p)| p.document != own.document);
        others.min_by_key(|(_, p)| p.chunk.len().abs_diff(own.chunk.len())).map(|(index, _)| index)
    };
    let found: Option<Vec<usize>> = passages.iter().map(nearest).collect();
    found.ok_or_else(|| {
        TrainError::Invalid("the wrong-chunk control needs at least two documents; give more".to_owned())
    })
}

fn losses(
    sampler: &Sampler,
    passages: &[Passage],
    wrong: &[usize],
    objective: Objective,
    session: &mut impl EncoderSession,
    decoder: &Decoder,
    workers: &Workers,
) -> Result<(Losses, usize)> {
    let mut columns = [vec![], vec![], vec![], vec![]];
    let mut tokens = 0;
    for start in (0..passages.len()).step_by(BATCH) {
        let rows = start..(start + BATCH).min(passages.len());
        for (kind, column) in columns.iter_mut().enumerate() {
            let samples = rows
                .clone()
                .map(|i| context(sampler, passages, wrong, i, kind, objective))
                .collect::<Result<Vec<_>>>()?;
            column.extend(sample_losses(&samples, session, decoder, workers)?);
            tokens += if kind == 0 { samples.iter().map(|s| s.target.len()).sum() } else { 0 };
        }
    }
    let total: f64 = columns[0].iter().map(|(_, n)| n).sum();
    let mean = |column: &[(f64, f64)]| column.iter().map(|(sum, _)| sum).sum::<f64>() / total;
    let [right, wrong, none, full] = [0, 1, 2, 3].map(|kind| mean(&columns[kind]));
    let gaps: Vec<f64> = columns[0].iter().zip(&columns[1]).map(|((r, n), (w, _))| (w - r) / n).collect();
    Ok((Losses { right, wrong, none, full, gap: wrong - right, gap_error: standard_error(&gaps) }, tokens))
}

fn context(
    sampler: &Sampler,
    passages: &[Passage],
    wrong: &[usize],
    index: usize,
    kind: usize,
    objective: Objective,
) -> Result<Sample> {
    let passage = &passages[index];
    let parts = match kind {
        0 => vec![Part::Chunk(passage.chunk.clone())],
        1 => vec![Part::Chunk(passages[wrong[index]].chunk.clone())],
        2 => vec![],
        _ => vec![Part::Tokens(sampler.tokenizer.encode_plain(&passage.chunk)?)],
    };
    let target = if objective == Objective::Continue { &passage.next } else { &passage.chunk };
    let sample = sampler.passage_sample(objective, parts, target)?;
    sample
        .ok_or_else(|| TrainError::Invalid(format!("passage of document {} is too short to measure", passage.document)))
}

/// Sum of nats and number of target tokens of each sample.
fn sample_losses(
    samples: &[Sample],
    session: &mut impl EncoderSession,
    decoder: &Decoder,
    workers: &Workers,
) -> Result<Vec<(f64, f64)>> {
    let soft = encode_samples(session, samples)?;
    let shards = shards(samples, soft.as_ref(), workers.count())?;
    let mut losses = vec![(0.0, 0.0); samples.len()];
    for (shard, likelihoods) in shards.iter().zip(workers.run(&shards, |shard| shard.likelihoods(decoder))) {
        let likelihoods = likelihoods?;
        let mut rest = likelihoods.as_slice();
        for (place, sample) in shard.places.iter().zip(&shard.samples) {
            let (own, later) = rest.split_at(sample.target.len());
            rest = later;
            losses[*place] = (own.iter().map(|l| -f64::from(*l)).sum(), own.len() as f64);
        }
    }
    Ok(losses)
}

impl Shard<'_> {
    fn likelihoods(&self, decoder: &Decoder) -> Result<Vec<f32>> {
        let batch = Batch::new(&self.samples, &self.counts);
        Ok(log_likelihoods(&batch.logits(decoder, self.soft.as_ref())?, batch.targets())?)
    }
}

fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (variance / n).sqrt()
}
