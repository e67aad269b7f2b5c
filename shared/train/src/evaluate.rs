//! Held-out losses: is the decoder reading the soft tokens?
//!
//! The gap between *wrong* (another document's chunk of equal length) and *right* is the only evidence that it does; a
//! low *right* alone may be domain adaptation.

use serde::Serialize;

use e2llm_model::Decoder;
use e2llm_model::ops::log_likelihoods;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::batch::{Batch, Shard, encode_samples, shards};
use crate::corpus::{Corpus, Document};
use crate::error::{Result, TrainError};
use crate::sample::{Objective, Part, Sample, Sampler};
use crate::session::EncoderSession;
use crate::workers::Workers;

/// Samples per forward pass.
const BATCH: usize = 8;

/// Chunks that an answer is written from: a little more text than its tokens, as in training.
const ANSWER_CHUNKS: usize = 6;

/// Nats of one passage's target, summed over its tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PassageLosses {
    /// Id of its document.
    pub document: String,
    /// Target tokens.
    pub tokens: f64,
    /// With the soft tokens of the right chunks.
    pub right: f64,
    /// With those of as much text from another document.
    pub wrong: f64,
    /// With no document at all.
    pub none: f64,
    /// With the chunks' text itself.
    pub full: f64,
}

/// Mean nats per target token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Losses {
    /// With the soft tokens of the right chunks.
    pub right: f64,
    /// With those of as much text from another document.
    pub wrong: f64,
    /// With no document at all.
    pub none: f64,
    /// With the chunks' text itself.
    pub full: f64,
    /// wrong − right.
    pub gap: f64,
    /// Standard error of the gap over samples.
    pub gap_error: f64,
    /// What these are means of, for paired comparisons.
    #[serde(skip)]
    pub passages: Vec<PassageLosses>,
}

/// Losses of both halves of the understanding objective, and of the reasoning objective.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evaluation {
    /// Regenerate the chunk.
    #[serde(flatten)]
    pub reconstruction: Losses,
    /// Write the chunk that follows.
    pub continuation: Losses,
    /// Write the abstract, from the beginning of the document; none where fewer than two documents have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<Losses>,
    /// Passages measured.
    pub samples: usize,
    /// Target tokens of the reconstruction.
    pub tokens: usize,
}

/// What is shown, and what shall be written.
struct Case {
    document: String,
    chunks: Vec<String>,
    /// The stretch of the document that the chunks are.
    text: String,
    target: String,
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
    let workers = Workers::on(decoder.device())?;
    let mut measure =
        |objective: Objective, cases: &[Case]| losses(sampler, cases, objective, session, decoder, &workers);
    let case = |(document, [chunk, next]): &(usize, [String; 2]), target: usize| Case {
        document: corpus.documents[*document].id.clone(),
        chunks: vec![chunk.clone()],
        text: chunk.clone(),
        target: [chunk, next][target].clone(),
    };
    let same: Vec<Case> = passages.iter().map(|passage| case(passage, 0)).collect();
    let following: Vec<Case> = passages.iter().map(|passage| case(passage, 1)).collect();
    let (reconstruction, tokens) = measure(Objective::Reconstruct, &same)?;
    let (continuation, _) = measure(Objective::Continue, &following)?;
    let summaries = abstracts(sampler, corpus, count, seed)?;
    let answers = match summaries.len() {
        0 | 1 => None,
        _ => Some(measure(Objective::Summarize, &summaries)?.0),
    };
    Ok(Evaluation { reconstruction, continuation, answers, samples: passages.len(), tokens })
}

/// Documents that have an abstract, drawn by `seed`, with their first chunks.
fn abstracts(sampler: &Sampler, corpus: &Corpus, count: usize, seed: u64) -> Result<Vec<Case>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..corpus.documents.len()).collect();
    order.shuffle(&mut rng);
    let mut cases = Vec::new();
    for document in order {
        let Document { id, text, summary } = &corpus.documents[document];
        let Some(summary) = summary.as_ref().filter(|summary| summary.len() > 80) else { continue };
        let (mut chunks, mut end) = (Vec::new(), 0);
        for chunk in sampler.chunker.chunks(text).take(ANSWER_CHUNKS) {
            let chunk = chunk?;
            chunks.push(chunk.text(text).to_owned());
            end = chunk.end;
        }
        let text = text[..end].trim().to_owned();
        cases.push(Case { document: id.clone(), chunks, text, target: summary.clone() });
        if cases.len() == count {
            break;
        }
    }
    Ok(cases)
}

/// Documents with two consecutive chunks of each.
fn draw(sampler: &Sampler, corpus: &Corpus, count: usize, seed: u64) -> Result<Vec<(usize, [String; 2])>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut passages = Vec::new();
    let draws = if corpus.documents.is_empty() { 0 } else { count * 50 };
    for draw in 0..draws {
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
            passages.push((document, [chunks[at].to_owned(), chunks[at + 1].to_owned()]));
        }
    }
    if passages.is_empty() {
        return Err(TrainError::Invalid("no document has two chunks to measure on; give longer texts".to_owned()));
    }
    Ok(passages)
}

/// For each case the one of another document whose text is nearest in length.
fn others(cases: &[Case]) -> Result<Vec<usize>> {
    let nearest = |own: &Case| {
        let others = cases.iter().enumerate().filter(|(_, case)| case.document != own.document);
        others.min_by_key(|(_, case)| case.text.len().abs_diff(own.text.len())).map(|(index, _)| index)
    };
    let found: Option<Vec<usize>> = cases.iter().map(nearest).collect();
    found.ok_or_else(|| {
        TrainError::Invalid("the wrong-chunk control needs at least two documents; give more".to_owned())
    })
}

fn losses(
    sampler: &Sampler,
    cases: &[Case],
    objective: Objective,
    session: &mut impl EncoderSession,
    decoder: &Decoder,
    workers: &Workers,
) -> Result<(Losses, usize)> {
    let wrong = others(cases)?;
    let mut columns = [vec![], vec![], vec![], vec![]];
    let mut tokens = 0;
    for start in (0..cases.len()).step_by(BATCH) {
        let rows = start..(start + BATCH).min(cases.len());
        for (kind, column) in columns.iter_mut().enumerate() {
            let samples = rows
                .clone()
                .map(|i| context(sampler, [&cases[i], &cases[wrong[i]]], kind, objective))
                .collect::<Result<Vec<_>>>()?;
            column.extend(sample_losses(&samples, session, decoder, workers)?);
            tokens += if kind == 0 { samples.iter().map(|s| s.target.len()).sum() } else { 0 };
        }
    }
    let passage = |i: usize| {
        let [right, wrong, none, full] = [0, 1, 2, 3].map(|kind: usize| columns[kind][i].0);
        PassageLosses { document: cases[i].document.clone(), tokens: columns[0][i].1, right, wrong, none, full }
    };
    Ok((Losses::of((0..cases.len()).map(passage).collect()), tokens))
}

impl Losses {
    fn of(passages: Vec<PassageLosses>) -> Self {
        let total: f64 = passages.iter().map(|p| p.tokens).sum();
        let mean = |nats: fn(&PassageLosses) -> f64| passages.iter().map(nats).sum::<f64>() / total;
        let (right, wrong) = (mean(|p| p.right), mean(|p| p.wrong));
        let gaps: Vec<f64> = passages.iter().map(|p| (p.wrong - p.right) / p.tokens).collect();
        let (none, full) = (mean(|p| p.none), mean(|p| p.full));
        Self { right, wrong, none, full, gap: wrong - right, gap_error: standard_error(&gaps), passages }
    }
}

/// The sample of a case: with its soft tokens, those of the wrong one, nothing, or text.
fn context(sampler: &Sampler, [right, wrong]: [&Case; 2], kind: usize, objective: Objective) -> Result<Sample> {
    let soft = |case: &Case| case.chunks.iter().map(|chunk| Part::Chunk(chunk.clone())).collect();
    let parts = match kind {
        0 => soft(right),
        1 => soft(wrong),
        2 => vec![],
        _ => vec![Part::Tokens(sampler.tokenizer.encode_plain(&right.text)?)],
    };
    let sample = sampler.passage_sample(objective, parts, &right.target)?;
    sample.ok_or_else(|| {
        TrainError::Invalid(format!("the passage of document {} is too short to measure", right.document))
    })
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
