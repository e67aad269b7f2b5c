//! Training samples: what stands before the answer, and the answer.

mod answer;

use std::sync::Arc;

use e2llm_model::TextTokenizer;
use e2llm_model::chunk::{Chunk, Chunker, trim_blank};
use e2llm_model::prompt;
use e2llm_model::template::Frame;
use rand::seq::SliceRandom;
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
    /// Write the abstract, from soft tokens with raw text of some chunks behind them.
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
    /// Share of those samples with raw text behind the soft tokens.
    pub expand: f64,
    /// Fewest and most chunks of it.
    pub excerpts: (usize, usize),
    /// Whether samples carry the full text for a teacher.
    pub teacher: bool,
}

impl Sampler {
    /// Takes a stage's settings: target length, window, expansion, and whether there is a teacher.
    pub fn configure(&mut self, stage: &Stage) {
        self.max_target = stage.max_target;
        self.window = stage.window;
        self.expand = stage.expand;
        self.excerpts = stage.excerpts;
        self.teacher = stage.distill > 0.0;
    }

    /// One that limits nothing until a stage configures it.
    pub fn new(tokenizer: Arc<TextTokenizer>, chunker: Arc<Chunker>, frame: Frame, end: u32) -> Self {
        let (max_target, window, excerpts) = (usize::MAX, (3, 8), (1, 6));
        Self { tokenizer, chunker, frame, end, max_target, window, expand: 0.0, excerpts, teacher: false }
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
        let parts = soft(&chunks[..count]);
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

    /// Soft tokens of a document's first chunks, and raw text of its opening and some others behind them.
    fn summary(&self, document: &Document, rng: &mut ChaCha8Rng) -> Result<Option<Sample>> {
        let Some(summary) = document.summary.as_deref().filter(|s| s.len() > 80) else { return Ok(None) };
        let wanted = rng.random_range(self.window.0..=self.window.1);
        let chunks = self.chunks(&document.text, wanted)?;
        if chunks.len() < wanted {
            return Ok(None);
        }
        let mut order: Vec<usize> = (1..chunks.len()).collect();
        order.shuffle(rng);
        order.insert(0, 0);
        order.truncate(self.excerpts(rng));
        let parts = self.with_excerpts(&chunks, order)?;
        self.compose(Objective::Summarize, wording(&prompt::SUMMARIZE_WORDINGS, rng), parts, summary)
    }

    /// How many chunks of a sample are raw text.
    fn excerpts(&self, rng: &mut ChaCha8Rng) -> usize {
        let count = rng.random_range(self.excerpts.0..=self.excerpts.1);
        if rng.random::<f64>() < self.expand { count } else { 0 }
    }

    /// Soft tokens of all chunks, and raw text of those of `excerpts` behind them, laid out as in serving.
    fn with_excerpts(&self, chunks: &[&str], mut excerpts: Vec<usize>) -> Result<Vec<Part>> {
        excerpts.sort_unstable();
        let mut parts = soft(chunks);
        let mut previous = None;
        for index in excerpts {
            let gap = match previous {
                Some(before) if follows(chunks[before], chunks[index]) => prompt::gap_after(chunks[before]),
                _ => prompt::BETWEEN,
            };
            let text = format!("{gap}{}", trim_blank(chunks[index]));
            parts.push(Part::Tokens(self.tokenizer.encode_plain(&text)?));
            previous = Some(index);
        }
        Ok(parts)
    }

    /// The first `wanted` chunks with the blanks around them, without those that are blank.
    fn chunks<'t>(&self, text: &'t str, wanted: usize) -> Result<Vec<&'t str>> {
        let chunks = self.cut(text, wanted)?;
        Ok(chunks.into_iter().filter(|chunk| !trim_blank(chunk).is_empty()).collect())
    }

    /// The first `wanted` chunks: each begins where the one before ends.
    fn cut<'t>(&self, text: &'t str, wanted: usize) -> Result<Vec<&'t str>> {
        let mut end = text.len().min(wanted.saturating_add(1).saturating_mul(BYTES_PER_CHUNK));
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let window = &text[..end];
        let range = |chunk: e2llm_model::Result<Chunk>| chunk.map(|chunk| &window[chunk.start..chunk.end]);
        self.chunker.chunks(window).take(wanted).map(|chunk| Ok(range(chunk)?)).collect()
    }
}

/// Whether `after` begins where `before` ends, both being parts of one text.
fn follows(before: &str, after: &str) -> bool {
    std::ptr::eq(before.as_bytes().as_ptr_range().end, after.as_ptr())
}

/// Chunks as their soft tokens.
fn soft(chunks: &[&str]) -> Vec<Part> {
    chunks.iter().map(|chunk| Part::Chunk(trim_blank(chunk).to_owned())).collect()
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
