//! Training samples: what stands before the answer, and the answer.

use std::sync::Arc;

use e2llm_model::TextTokenizer;
use e2llm_model::chunk::Chunker;
use e2llm_model::prompt;
use e2llm_model::template::Frame;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::corpus::{Corpus, Document};
use crate::error::{Result, TrainError};

/// Bytes of text that surely hold one chunk of any tokenizer in use, and then some.
const BYTES_PER_CHUNK: usize = 2_048;
/// Draws before giving up on a corpus that yields no sample.
const DRAWS: usize = 1_000;

/// What the decoder is asked to do with the soft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Regenerate the text.
    Reconstruct,
    /// Write the text that follows.
    Continue,
    /// Write the abstract, from soft tokens with some chunks as raw text among them.
    Summarize,
}

/// A stretch of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Token ids.
    Tokens(Vec<u32>),
    /// A chunk's text, to be replaced by its soft tokens.
    Chunk(String),
}

/// A prompt and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// What the decoder reads.
    pub before: Vec<Part>,
    /// What it shall write.
    pub target: Vec<u32>,
}

/// Draws samples from a corpus; the same (seed, number) always gives the same sample.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Decoder tokenizer.
    pub tokenizer: Arc<TextTokenizer>,
    /// Chunker of the bundle.
    pub chunker: Arc<Chunker>,
    /// The chat template around a user's turn.
    pub frame: Frame,
    /// End-of-turn token.
    pub end: u32,
    /// Most target tokens.
    pub max_target: usize,
}

impl Sampler {
    /// Sample `number` of a stage.
    pub fn draw(
        &self,
        corpus: &Corpus,
        mix: &[(Objective, f64)],
        chunks: (usize, usize),
        seed: u64,
        number: u64,
    ) -> Result<Sample> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        let objective = pick(mix, &mut rng)?;
        for _ in 0..DRAWS {
            let document = &corpus.documents[rng.random_range(0..corpus.documents.len())];
            let count = rng.random_range(chunks.0..=chunks.1);
            let sample = match objective {
                Objective::Summarize => self.summary(document, &mut rng)?,
                _ => self.passage(document, objective, count, &mut rng)?,
            };
            if let Some(sample) = sample {
                return Ok(sample);
            }
        }
        Err(TrainError::Invalid(format!(
            "no document of the corpus is long enough for objective {objective:?} (or has an abstract)"
        )))
    }

    fn passage(
        &self,
        document: &Document,
        objective: Objective,
        count: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Option<Sample>> {
        let wanted = count + usize::from(objective == Objective::Continue);
        let start = line_start(&document.text, rng.random_range(0..document.text.len().max(1)));
        let chunks = self.chunks(&document.text[start..], wanted)?;
        if chunks.len() < wanted {
            return Ok(None);
        }
        let target = match objective {
            Objective::Continue => chunks[count].to_owned(),
            _ => chunks.concat(),
        };
        self.passage_sample(objective, chunks[..count].iter().map(|c| Part::Chunk((*c).to_owned())).collect(), &target)
    }

    /// A sample whose document is `parts` and whose answer is the text `target`.
    pub fn passage_sample(&self, objective: Objective, parts: Vec<Part>, target: &str) -> Result<Option<Sample>> {
        let instruction = match objective {
            Objective::Reconstruct => prompt::REPEAT,
            Objective::Continue => prompt::CONTINUE,
            Objective::Summarize => prompt::SUMMARIZE,
        };
        let mut target = self.tokenizer.encode_plain(target.trim())?;
        if target.len() < 4 {
            return Ok(None);
        }
        target.truncate(self.max_target);
        if objective == Objective::Summarize {
            target.push(self.end);
        }
        let mut before = vec![Part::Tokens(self.frame.prefix.clone())];
        before.extend(parts);
        let mut after = self.tokenizer.encode_plain(&prompt::after_document(instruction))?;
        after.extend(&self.frame.suffix);
        before.push(Part::Tokens(after));
        Ok(Some(Sample { before, target }))
    }

    /// The opening as raw text, soft tokens of the chunks that follow, one of them again as raw text.
    fn summary(&self, document: &Document, rng: &mut ChaCha8Rng) -> Result<Option<Sample>> {
        let Some(summary) = document.summary.as_deref().filter(|s| s.len() > 80) else { return Ok(None) };
        let wanted = rng.random_range(3..=8);
        let chunks = self.chunks(&document.text, wanted)?;
        if chunks.len() < wanted {
            return Ok(None);
        }
        let raw = rng.random_range(1..chunks.len());
        let parts = chunks.iter().enumerate().map(|(index, chunk)| {
            Ok(if index == 0 || index == raw {
                Part::Tokens(self.tokenizer.encode_plain(chunk)?)
            } else {
                Part::Chunk((*chunk).to_owned())
            })
        });
        self.passage_sample(Objective::Summarize, parts.collect::<Result<_>>()?, summary)
    }

    fn chunks<'t>(&self, text: &'t str, wanted: usize) -> Result<Vec<&'t str>> {
        let mut end = text.len().min((wanted + 1) * BYTES_PER_CHUNK);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let window = &text[..end];
        let chunks: Vec<&str> =
            self.chunker.chunks(window).take(wanted).map(|c| Ok(c?.text(window))).collect::<Result<_>>()?;
        Ok(chunks.into_iter().filter(|c| !c.trim().is_empty()).collect())
    }
}

fn pick(mix: &[(Objective, f64)], rng: &mut ChaCha8Rng) -> Result<Objective> {
    let total: f64 = mix.iter().map(|(_, share)| share).sum();
    let mut at = rng.random::<f64>() * total;
    for (objective, share) in mix {
        if at < *share {
            return Ok(*objective);
        }
        at -= share;
    }
    mix.last()
        .map(|(objective, _)| *objective)
        .ok_or_else(|| TrainError::Invalid("the mix of a stage is empty; name at least one objective".to_owned()))
}

/// The start of the line that holds byte `at`.
fn line_start(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1)
}
