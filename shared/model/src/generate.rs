//! The decoder half of a bundle: prompts of tokens and soft tokens in, text out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::bundle::Bundle;
use crate::decoder::{Decoder, KvCache};
use crate::error::{ModelError, Result};
use crate::gguf::GgufFile;
use crate::ops::log_likelihoods;
use crate::sample::{Sampler, SamplerOptions, StopMatcher};
use crate::template::{ChatTemplate, Frame};
use crate::tokenizer::{StreamDecoder, TextTokenizer};

/// Decoder, tokenizer and chat template of a bundle.
#[derive(Debug)]
pub struct Generator {
    decoder: Decoder,
    tokenizer: Arc<TextTokenizer>,
    frame: Frame,
    stops: Vec<u32>,
}

/// A stretch of a prompt.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Token ids.
    Tokens(Vec<u32>),
    /// Soft tokens `[count, d_model]`, f32, row-major.
    Soft(Vec<f32>),
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
        Ok(Self { decoder, tokenizer: Arc::new(tokenizer), frame, stops })
    }

    /// Most positions a prompt and its answer may take together.
    pub fn window(&self) -> usize {
        self.decoder.config().context
    }

    /// Width of a soft token.
    pub fn d_model(&self) -> usize {
        self.decoder.config().d_model
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
        let read = self.positions(prompt);
        if read >= self.window() {
            return Err(ModelError::WindowExceeded { positions: read, window: self.window() });
        }
        let limit = options.max_tokens.min(self.window() - read);
        let mut cache = self.cache(read + limit)?;
        let mut logits = self.next_logits(&self.embed(prompt)?, &mut cache)?;
        let mut sampler = Sampler::new(options.sampler)?;
        let mut stream = StreamDecoder::new(self.tokenizer.clone());
        let mut stops = StopMatcher::new(options.stop.iter().cloned());
        let mut written = Vec::new();
        let finish = loop {
            if written.len() == limit {
                break Finish::Length;
            }
            let token = sampler.sample(&logits, &written)?;
            if self.stops.contains(&token) {
                break Finish::Stop;
            }
            written.push(token);
            let text = stops.push(&stream.push(token)?);
            if !text.is_empty() && !emit(&text) {
                return Ok(Generated { tokens: written.len(), finish: Finish::Cancelled });
            }
            if stops.stopped() {
                break Finish::Stop;
            }
            if written.len() < limit {
                logits = self.next_logits(&self.decoder.embed(&[token])?, &mut cache)?;
            }
        };
        let held = format!("{}{}", stops.push(&stream.finish()?), stops.finish());
        if !held.is_empty() && !emit(&held) {
            return Ok(Generated { tokens: written.len(), finish: Finish::Cancelled });
        }
        Ok(Generated { tokens: written.len(), finish })
    }

    /// Log-likelihood in nats of `answer` after the prompt, and its token count.
    pub fn score(&self, prompt: &[Piece], answer: &str) -> Result<(f64, usize)> {
        let targets = self.tokenizer.encode_plain(answer)?;
        let Some((_, shown)) = targets.split_last() else {
            return Err(ModelError::Setting {
                name: "choice",
                value: String::new(),
                expected: "a text of at least one token",
            });
        };
        let read = self.positions(prompt);
        let mut cache = self.cache(read + shown.len())?;
        let mut input = self.embed(prompt)?;
        if !shown.is_empty() {
            input = Tensor::cat(&[input, self.decoder.embed(shown)?], 0)?;
        }
        let hidden = self.decoder.extend(&input, &mut cache)?.narrow(0, read - 1, targets.len())?;
        let likelihoods = log_likelihoods(&self.decoder.logits(&hidden.contiguous()?)?, &targets)?;
        Ok((likelihoods.iter().map(|l| f64::from(*l)).sum(), targets.len()))
    }

    fn embed(&self, pieces: &[Piece]) -> Result<Tensor> {
        let width = self.d_model();
        let parts =
            pieces.iter().filter(|p| !matches!(p, Piece::Tokens(ids) if ids.is_empty())).map(|piece| match piece {
                Piece::Tokens(ids) => self.decoder.embed(ids),
                Piece::Soft(values) => {
                    Ok(Tensor::from_slice(values, (values.len() / width, width), self.decoder.device())?)
                }
            });
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    fn cache(&self, capacity: usize) -> Result<KvCache> {
        KvCache::new(self.decoder.config(), capacity, self.decoder.dtype(), self.decoder.device())
    }

    /// Reads `input` and gives the logits `[vocabulary]` after its last row.
    fn next_logits(&self, input: &Tensor, cache: &mut KvCache) -> Result<Tensor> {
        let hidden = self.decoder.extend(input, cache)?;
        let last = hidden.narrow(0, hidden.dim(0)? - 1, 1)?.contiguous()?;
        Ok(self.decoder.logits(&last)?.squeeze(0)?)
    }
}
