//! Answers in progress, any number of them in one batch.

use candle_core::{Device, Tensor};

use super::backend::{Past, Rows};
use super::{Finish, Generated, Generator, Opened, Options, Piece};
use crate::cpu::{PageName, Workspace};
use crate::error::{ModelError, Result};
use crate::sample::{Sampler, StopMatcher};
use crate::tokenizer::StreamDecoder;

/// One answer in progress: first its prompt is read, in as many steps as the budget takes, then it is written token by token.
#[derive(Debug)]
pub struct Sequence {
    /// Rows still to be read, row-major: of the prompt, later the last token's.
    input: Vec<f32>,
    past: Past,
    sampler: Sampler,
    stream: StreamDecoder,
    stops: StopMatcher,
    written: Vec<u32>,
    /// Most tokens to write.
    limit: usize,
    /// Written, but not taken yet.
    text: String,
    finish: Option<Finish>,
    /// Why it cannot go on.
    failure: Option<ModelError>,
    positions: usize,
    /// Of these, positions that an earlier prompt had read.
    reused: usize,
    /// Pages to remember once the prompt is read.
    names: Vec<PageName>,
}

impl Sequence {
    /// Decoder positions of its prompt.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Most positions it will take, its answer included.
    pub fn capacity(&self) -> usize {
        self.positions + self.limit
    }

    /// Of its prompt's positions, those that were read for an earlier prompt that began alike.
    pub fn reused(&self) -> usize {
        self.reused
    }

    /// Rows of its prompt that are not read yet, or the one row of its last token.
    fn rows(&self, d_model: usize) -> usize {
        self.input.len() / d_model
    }

    /// The text that was written since it was last asked for.
    pub fn take_text(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// What was done, once it is complete.
    pub fn finished(&self) -> Option<Generated> {
        self.finish.map(|finish| Generated { tokens: self.written.len(), finish })
    }

    /// Why it cannot go on, if so; others of its batch can.
    pub fn take_failure(&mut self) -> Option<ModelError> {
        self.failure.take()
    }

    /// Chooses the token after the last row read.
    fn write(&mut self, generator: &Generator, logits: &[f32]) -> Result<()> {
        let token = self.sampler.sample(&Tensor::from_slice(logits, logits.len(), &Device::Cpu)?, &self.written)?;
        if generator.stops.contains(&token) {
            return self.end(Finish::Stop);
        }
        self.written.push(token);
        self.text.push_str(&self.stops.push(&self.stream.push(token)?));
        if self.stops.stopped() {
            return self.end(Finish::Stop);
        }
        if self.written.len() == self.limit {
            return self.end(Finish::Length);
        }
        self.input = generator.backend.embed(&[token])?;
        Ok(())
    }

    fn end(&mut self, finish: Finish) -> Result<()> {
        let rest = self.stream.finish()?;
        self.text.push_str(&self.stops.push(&rest));
        self.text.push_str(&self.stops.finish());
        self.input.clear();
        self.finish = Some(finish);
        Ok(())
    }
}

impl Generator {
    /// An answer to `prompt`, of which nothing is read yet.
    ///
    /// # Errors
    /// [`ModelError::WindowExceeded`] if the prompt leaves no room for an answer, [`ModelError::Setting`] for bad options.
    pub fn begin(&self, prompt: &[Piece], options: &Options) -> Result<Sequence> {
        let positions = self.positions(prompt);
        if positions == 0 {
            return Err(ModelError::Config { problem: "a prompt without a position".to_owned() });
        }
        if positions >= self.window() {
            return Err(ModelError::WindowExceeded { positions, window: self.window() });
        }
        let limit = options.max_tokens.min(self.window() - positions);
        let Opened { mut rows, past, names, read } = self.open(prompt, limit)?;
        rows.drain(..read * self.d_model());
        let mut sequence = Sequence {
            input: rows,
            past,
            sampler: Sampler::new(options.sampler)?,
            stream: StreamDecoder::new(self.tokenizer.clone()),
            stops: StopMatcher::new(options.stop.iter().cloned()),
            written: Vec::new(),
            limit,
            text: String::new(),
            finish: None,
            failure: None,
            positions,
            reused: read,
            names,
        };
        if limit == 0 {
            sequence.end(Finish::Length)?;
        }
        Ok(sequence)
    }

    /// Takes unfinished sequences one step further, in one batch: those that write by a token, those that read by their share of
    /// `prompt_rows`, which the first ones get first. What goes wrong in one sequence is its [`Sequence::take_failure`].
    ///
    /// # Errors
    /// Of the batch as a whole; the sequences cannot go on then.
    pub fn step(&self, sequences: &mut [&mut Sequence], prompt_rows: usize, work: &mut Workspace) -> Result<()> {
        let d = self.d_model();
        let mut budget = prompt_rows;
        let mut shares = Vec::with_capacity(sequences.len());
        for sequence in sequences.iter() {
            let rows = match sequence.rows(d) {
                rows if sequence.written.is_empty() => rows.min(budget),
                rows => rows,
            };
            if sequence.written.is_empty() {
                budget -= rows;
            }
            shares.push(rows);
        }
        let mut batch = Vec::with_capacity(sequences.len());
        for (sequence, rows) in sequences.iter_mut().zip(&shares) {
            let Sequence { input, past, .. } = &mut **sequence;
            if *rows > 0 {
                let wanted = usize::from(rows * d == input.len());
                batch.push(Rows { input: &input[..rows * d], past, wanted });
            }
        }
        let mut logits = self.backend.read(batch, work)?.into_iter();
        for (sequence, rows) in sequences.iter_mut().zip(shares) {
            if rows > 0 && rows * d == sequence.input.len() {
                sequence.past.keep(&self.prefixes, &std::mem::take(&mut sequence.names));
                let logits = logits.next().unwrap_or_default();
                if let Err(error) = sequence.write(self, &logits) {
                    sequence.input.clear();
                    sequence.failure = Some(error);
                }
            } else {
                sequence.input.drain(..rows * d);
            }
        }
        Ok(())
    }
}
