//! The decoder half of a bundle: prompts of tokens and soft tokens in, text out.

mod backend;
mod sequence;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

use backend::{Backend, Past, Rows};
pub use sequence::Sequence;

use crate::bundle::Bundle;
use crate::cpu::{PageName, Prefixes, Workspace};
use crate::decoder::Decoder;
use crate::error::{ModelError, Result};
use crate::gguf::GgufFile;
use crate::ops::log_likelihoods;
use crate::sample::SamplerOptions;
use crate::template::{ChatTemplate, Frame};
use crate::tokenizer::TextTokenizer;

/// Bytes of keys and values that are kept of prompts read before: some 23,000 positions of the default decoder.
pub const PREFIX_BYTES: u64 = 512 << 20;

/// Rows of a prompt that are read at once by who has nobody to let go first.
pub const PROMPT_ROWS: usize = 512;

/// Decoder, tokenizer and chat template of a bundle.
#[derive(Debug)]
pub struct Generator {
    backend: Backend,
    tokenizer: Arc<TextTokenizer>,
    frame: Frame,
    stops: Vec<u32>,
    prefixes: Prefixes,
}

/// A stretch of a prompt.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Token ids.
    Tokens(Vec<u32>),
    /// Soft tokens `[count, d_model]`, f32, row-major.
    Soft(Vec<f32>),
}

/// A prompt that is about to be read.
struct Opened {
    /// `[positions, d_model]`, row-major.
    rows: Vec<f32>,
    past: Past,
    /// Names of the pages to remember once it is read.
    names: Vec<PageName>,
    /// Positions that `past` holds already.
    read: usize,
}

/// When to stop and how to choose tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Most tokens to write.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampler: SamplerOptions,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended its turn, or a stop text came.
    Stop,
    /// The most tokens were written, or the window is full.
    Length,
    /// The receiver is gone.
    Cancelled,
}

/// What a generation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generated {
    /// Tokens written.
    pub tokens: usize,
    /// Why it ended.
    pub finish: Finish,
}

/// Where a decoder's files are.
#[derive(Debug, Clone)]
pub struct DecoderFiles {
    /// One GGUF file, or the shards of a safetensors checkpoint.
    pub weights: Vec<PathBuf>,
    /// `config.json`; not needed for GGUF.
    pub config: Option<PathBuf>,
    /// `tokenizer.json`; not needed for GGUF.
    pub tokenizer: Option<PathBuf>,
}

impl DecoderFiles {
    /// Decoder, tokenizer and chat template, the weights as they are in the files.
    pub fn load(&self, device: &Device) -> Result<(Decoder, TextTokenizer, ChatTemplate)> {
        let first = self
            .weights
            .first()
            .ok_or_else(|| ModelError::Config { problem: "the decoder has no weight file".to_owned() })?;
        if first.extension().is_some_and(|e| e == "gguf") {
            let file = GgufFile::open(first)?;
            let (tokenizer, template) =
                (TextTokenizer::from_gguf(file.metadata())?, ChatTemplate::from_gguf(file.metadata())?);
            return Ok((Decoder::from_gguf(first, device)?, tokenizer, template));
        }
        let missing =
            |name: &str| ModelError::Config { problem: format!("{} needs a {name} beside it", first.display()) };
        let config = self.config.as_deref().ok_or_else(|| missing("config.json"))?;
        let text = std::fs::read_to_string(config).map_err(ModelError::io(config))?;
        let tokenizer = TextTokenizer::from_file(self.tokenizer.as_deref().ok_or_else(|| missing("tokenizer.json"))?)?;
        let template = ChatTemplate::from_dir(config.parent().unwrap_or(Path::new(".")))?;
        Ok((Decoder::from_safetensors(&self.weights, &text, device)?, tokenizer, template))
    }
}

impl Generator {
    /// Loads decoder weights, tokenizer and template, and puts the bundle's LoRA beside the weights.
    pub fn load(bundle: &Bundle, files: &DecoderFiles, device: &Device) -> Result<Self> {
        let (mut decoder, tokenizer, template) = files.load(device)?;
        if let Some(lora) = &bundle.config.lora {
            decoder.set_lora(&bundle.lora(device)?, lora.rank, lora.scale)?;
            decoder.merge_lora()?;
        }
        let width = decoder.config().d_model;
        if width != bundle.config.adapter.d_model {
            let problem = format!(
                "the decoder's embeddings have width {width}, the bundle was trained on {}",
                bundle.config.adapter.d_model
            );
            return Err(ModelError::Config { problem });
        }
        let frame = template.frame(&tokenizer, None)?;
        let mut stops = tokenizer.stop_ids();
        stops.extend(&decoder.config().eos);
        let prefixes = Prefixes::new(PREFIX_BYTES);
        Ok(Self { backend: Backend::new(decoder)?, tokenizer: Arc::new(tokenizer), frame, stops, prefixes })
    }

    /// Keeps `bytes` of keys and values of prompts read before, instead of [`PREFIX_BYTES`].
    #[must_use]
    pub fn with_prefix_bytes(self, bytes: u64) -> Self {
        Self { prefixes: Prefixes::new(bytes), ..self }
    }

    /// Most positions a prompt and its answer may take together.
    pub fn window(&self) -> usize {
        self.backend.config().context
    }

    /// Width of a soft token.
    pub fn d_model(&self) -> usize {
        self.backend.config().d_model
    }

    /// The decoder's tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// A whole prompt: the template's frame around the document's pieces and the instruction.
    pub fn prompt(&self, document: Vec<Piece>, instruction: &str) -> Result<Vec<Piece>> {
        let mut pieces = vec![Piece::Tokens(self.frame.prefix.clone())];
        pieces.extend(document);
        let mut after = self.tokenizer.encode_plain(&crate::prompt::after_document(instruction))?;
        after.extend(&self.frame.suffix);
        pieces.push(Piece::Tokens(after));
        Ok(pieces)
    }

    /// Decoder positions of a prompt.
    pub fn positions(&self, pieces: &[Piece]) -> usize {
        let width = self.d_model();
        pieces
            .iter()
            .map(|p| match p {
                Piece::Tokens(ids) => ids.len(),
                Piece::Soft(values) => values.len() / width,
            })
            .sum()
    }

    /// Writes an answer; `emit` gets its text piece by piece and returns false to cancel.
    pub fn generate(
        &self,
        prompt: &[Piece],
        options: &Options,
        mut emit: impl FnMut(&str) -> bool,
    ) -> Result<Generated> {
        let (mut sequence, mut work) = (self.begin(prompt, options)?, Workspace::default());
        loop {
            let finished = sequence.finished();
            let text = sequence.take_text();
            if !text.is_empty() && !emit(&text) {
                let tokens = finished.map_or(0, |generated| generated.tokens);
                return Ok(Generated { tokens, finish: Finish::Cancelled });
            }
            if let Some(generated) = finished {
                return Ok(generated);
            }
            self.step(&mut [&mut sequence], PROMPT_ROWS, &mut work)?;
            if let Some(error) = sequence.take_failure() {
                return Err(error);
            }
        }
    }

    /// Log-likelihood in nats of each answer after the prompt, and its token count. The prompt is read once where it can be shared.
    pub fn score(&self, prompt: &[Piece], answers: &[String]) -> Result<Vec<(f64, usize)>> {
        let targets = answers.iter().map(|answer| self.targets(answer)).collect::<Result<Vec<_>>>()?;
        let longest = targets.iter().map(Vec::len).max().unwrap_or(0);
        let mut work = Workspace::default();
        let shared = |work: &mut Workspace| -> Result<(Past, Vec<f32>)> {
            let Opened { rows, mut past, names, read } = self.open(prompt, longest.saturating_sub(1))?;
            let mut last = Vec::new();
            for input in rows[read * self.d_model()..].chunks(PROMPT_ROWS * self.d_model()) {
                last = self
                    .backend
                    .read(vec![Rows { input, past: &mut past, wanted: 1 }], work)?
                    .pop()
                    .unwrap_or_default();
            }
            past.keep(&self.prefixes, &names);
            Ok((past, last))
        };
        let (past, first) = shared(&mut work)?;
        let score = |targets: Vec<u32>| {
            let mut past = match past.fork() {
                Some(past) => past,
                None => shared(&mut work)?.0,
            };
            let mut logits = vec![first.clone()];
            let shown = &targets[..targets.len() - 1];
            if !shown.is_empty() {
                let input = self.backend.embed(shown)?;
                let rows = Rows { input: &input, past: &mut past, wanted: shown.len() };
                logits.extend(self.backend.read(vec![rows], &mut work)?);
            }
            let shape = (targets.len(), first.len());
            let likelihoods = log_likelihoods(&Tensor::from_vec(logits.concat(), shape, &Device::Cpu)?, &targets)?;
            Ok((likelihoods.iter().map(|l| f64::from(*l)).sum(), targets.len()))
        };
        targets.into_iter().map(score).collect()
    }

    /// Token ids of an answer to be scored: at least one.
    fn targets(&self, answer: &str) -> Result<Vec<u32>> {
        let targets = self.tokenizer.encode_plain(answer)?;
        if targets.is_empty() {
            return Err(ModelError::Setting {
                name: "choice",
                value: answer.to_owned(),
                expected: "a text of at least one token",
            });
        }
        Ok(targets)
    }

    /// A prompt with what is known of it from earlier ones, and room for `more` positions.
    fn open(&self, prompt: &[Piece], more: usize) -> Result<Opened> {
        let rows = self.embed(prompt)?;
        let (past, names) = self.backend.open(&self.prefixes, &rows, rows.len() / self.d_model() + more)?;
        Ok(Opened { read: past.found(), rows, past, names })
    }

    /// Rows of a prompt `[positions, d_model]`, row-major.
    fn embed(&self, pieces: &[Piece]) -> Result<Vec<f32>> {
        let mut rows = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Tokens(ids) => rows.extend(self.backend.embed(ids)?),
                Piece::Soft(values) => rows.extend_from_slice(values),
            }
        }
        Ok(rows)
    }
}
