//! Training samples: what stands before the answer, and the answer.

mod answer;

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
use crate::recipe::Stage;

/// Bytes of text that surely hold one chunk of any tokenizer in use, and then some.
const BYTES_PER_CHUNK: usize = 2_048;
/// Draws before giving up on a corpus that yields no sample.
const DRAWS: usize = 1_000;
/// Share of samples that are instructed in the words of serving.
const USUAL_WORDING: f64 = 0.5;

/// What the decoder is asked to do with the soft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Regenerate the text: the paper's understanding objective.
    Reconstruct,
    /// Write the text that follows.
    Continue,
    /// Write the abstract, from soft tokens with some chunks as raw text among them.
    Summarize,
    /// Do what a task asks for: with summaries, the paper's reasoning objective.
    Answer,
}

impl Objective {
    /// Its name in recipes and curves.
    pub fn as_str(self) -> &'static str {
        match self {
            Objective::Reconstruct => "reconstruct",
            Objective::Continue => "continue",
            Objective::Summarize => "summarize",
            Objective::Answer => "answer",
        }
    }
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
    /// What it trains.
    pub objective: Objective,
    /// What the decoder reads.
    pub before: Vec<Part>,
    /// What it shall write.
    pub target: Vec<u32>,
    /// What a teacher reads in place of `before`: the same with every chunk as text. Empty unless the sampler was told to.
    pub full: Vec<u32>,
}

/// Draws samples from a corpus; the same (settings, seed, number) always gives the same sample.
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
    /// Fewest and most chunks to summarize or to answer from.
    pub window: (usize, usize),
    /// Probability that one of those is raw text.
    pub expand: f64,
    /// Whether samples carry the full text for a teacher.
    pub teacher: bool,
}

impl Sampler {
    /// Takes a stage's settings: target length, window, expansion, and whether there is a teacher.
    pub fn configure(&mut self, stage: &Stage) {
        self.max_target = stage.max_target;
        self.window = stage.window;
        self.expand = stage.expand;
        self.teacher = stage.distill > 0.0;
    }

    /// One that limits nothing until a stage configures it.
    pub fn new(tokenizer: Arc<TextTokenizer>, chunker: Arc<Chunker>, frame: Frame, end: u32) -> Self {
        let (max_target, window) = (usize::MAX, (3, 8));
        Self { tokenizer, chunker, frame, end, max_target, window, expand: 0.0, teacher: false }
    }

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
        let sources = if objective == Objective::Answer { corpus.tasks.len() } else { corpus.documents.len() };
        for _ in 0..if sources > 0 { DRAWS } else { 0 } {
            let source = rng.random_range(0..sources);
            let count = rng.random_range(chunks.0..=chunks.1);
            let sample = match objective {
                Objective::Answer => self.answer(&corpus.tasks[source], &mut rng)?,
                Objective::Summarize => self.summary(&corpus.documents[source], &mut rng)?,
                _ => self.passage(&corpus.documents[source], objective, count, &mut rng)?,
            };
            if let Some(sample) = sample {
                return Ok(sample);
            }
        }
        Err(TrainError::Invalid(format!(
            "the corpus has nothing for objective {objective:?}: reconstruct and continue need documents longer than a sample, \
             summarize documents with an abstract, answer lines of {{\"id\", \"context\", \"prompt\", \"answer\"}}"
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
        let (target, wordings) = match objective {
            Objective::Continue => (chunks[count].to_owned(), prompt::CONTINUE_WORDINGS),
            _ => (chunks.concat(), prompt::REPEAT_WORDINGS),
        };
        let parts = chunks[..count].iter().map(|c| Part::Chunk((*c).to_owned())).collect();
        self.compose(objective, wording(&wordings, rng), parts, &target)
    }

    /// A sample whose document is `parts` and whose answer is the text `target`, instructed as in serving.
    pub fn passage_sample(&self, objective: Objective, parts: Vec<Part>, target: &str) -> Result<Option<Sample>> {
        let instruction = match objective {
            Objective::Reconstruct => prompt::REPEAT,
            Objective::Continue => prompt::CONTINUE,
            Objective::Summarize | Objective::Answer => prompt::SUMMARIZE,
        };
        self.compose(objective, instruction, parts, target)
    }

    fn compose(
        &self,
        objective: Objective,
        instruction: &str,
        parts: Vec<Part>,
        target: &str,
    ) -> Result<Option<Sample>> {
        let mut target = self.tokenizer.encode_plain(target.trim())?;
        let is_whole = target.len() < self.max_target;
        target.truncate(self.max_target);
        match objective {
            // An answer may be one word, and ends; one that was cut does not, or stopping in mid-sentence would be learned.
            Objective::Summarize | Objective::Answer if is_whole => target.push(self.end),
            Objective::Answer if !target.is_empty() => {}
            _ if target.len() < 4 => return Ok(None),
            _ => {}
        }
        let mut before = vec![Part::Tokens(self.frame.prefix.clone())];
        before.extend(parts);
        let mut after = self.tokenizer.encode_plain(&prompt::after_document(instruction))?;
        after.extend(&self.frame.suffix);
        before.push(Part::Tokens(after));
        let full = if self.teacher { self.full(&before)? } else { vec![] };
        Ok(Some(Sample { objective, before, target, full }))
    }

    fn full(&self, parts: &[Part]) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for part in parts {
            match part {
                Part::Tokens(tokens) => ids.extend(tokens),
                Part::Chunk(text) => ids.extend(self.tokenizer.encode_plain(text)?),
            }
        }
        Ok(ids)
    }

    /// Soft tokens of a document's first chunks, with its opening and some others as raw text where expansion is trained.
    fn summary(&self, document: &Document, rng: &mut ChaCha8Rng) -> Result<Option<Sample>> {
        let Some(summary) = document.summary.as_deref().filter(|s| s.len() > 80) else { return Ok(None) };
        let wanted = rng.random_range(self.window.0..=self.window.1);
        let chunks = self.chunks(&document.text, wanted)?;
        if chunks.len() < wanted {
            return Ok(None);
        }
        let mut raw: Vec<usize> = (0..chunks.len()).filter(|_| rng.random::<f64>() < self.expand).collect();
        if self.expand > 0.0 && raw.first() != Some(&0) {
            raw.insert(0, 0);
        }
        let parts = self.expanded(&chunks, &raw)?;
        self.compose(Objective::Summarize, wording(&prompt::SUMMARIZE_WORDINGS, rng), parts, summary)
    }

    /// The chunks, those of `raw` as text; one always stays soft, for without soft tokens there is nothing to learn.
    fn expanded(&self, chunks: &[&str], raw: &[usize]) -> Result<Vec<Part>> {
        let raw = &raw[..raw.len().min(chunks.len().saturating_sub(1))];
        let part = |(index, chunk): (usize, &&str)| {
            Ok(if raw.contains(&index) {
                Part::Tokens(self.tokenizer.encode_plain(chunk)?)
            } else {
                Part::Chunk((*chunk).to_owned())
            })
        };
        chunks.iter().enumerate().map(part).collect()
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

/// The first wording, or as often one of the others.
fn wording<'w, T: AsRef<str>>(wordings: &'w [T], rng: &mut ChaCha8Rng) -> &'w str {
    let usual = rng.random::<f64>() < USUAL_WORDING || wordings.len() < 2;
    let index = if usual { 0 } else { rng.random_range(1..wordings.len()) };
    wordings.get(index).map_or("", AsRef::as_ref)
}

/// The start of the line that holds byte `at`.
fn line_start(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1)
}
