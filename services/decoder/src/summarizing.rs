//! Summaries of documents of any length.

use std::time::Instant;

use e2llm_api::v1::{Reading, Usage};
use e2llm_model::generate::{Options, Piece};
use futures::stream::{self, StreamExt, TryStreamExt};

use crate::answering::Answering;
use crate::engine::{Emit, Priority};
use crate::error::DecodeError;
use crate::layout::{Chunk, Layout, Material, Purpose};

/// How an answer or a summary is written: what all its prompts have in common.
#[derive(Clone)]
pub(crate) struct Writing {
    pub(crate) instruction: String,
    pub(crate) options: Options,
    pub(crate) priority: Priority,
    pub(crate) begun: Instant,
}

/// Windows of one document that are summarised in one batch: for a bulk job, and where the places of other questions would be taken.
const AT_ONCE: usize = 8;
const AT_ONCE_INTERACTIVE: usize = 2;
/// Partial summaries merged in one step when all of them do not fit a window.
const MERGED_AT_ONCE: usize = 4;

impl Answering {
    /// A document that fits one window is summarised at once; a longer one window by window, the partial summaries merged.
    pub(crate) async fn summarize(
        &self,
        material: &Material,
        writing: Writing,
        emit: Emit,
    ) -> Result<Usage, DecodeError> {
        let windows = windows(material);
        if let [window] = windows.as_slice() {
            let _room = self.room(writing.priority).await;
            let layout = material.lay_out(window, Purpose::Summary, self.tokenizer())?;
            return self.write(layout, writing, emit).await;
        }
        let (mut total, mut partials) = self.partials(material, &windows, &writing).await?;
        while self.tokens(&partials)? > material.budget.positions && partials.len() > 1 {
            let mut merged = Vec::new();
            for several in partials.chunks(MERGED_AT_ONCE) {
                let (usage, text) = self.collect(self.text_layout(several)?, writing.clone()).await?;
                add(&mut total, usage);
                merged.push(text);
            }
            partials = merged;
        }
        let last = self.write(self.text_layout(&partials)?, writing, emit).await?;
        total.first_token_us = last.first_token_us;
        total.finish_reason.clone_from(&last.finish_reason);
        add(&mut total, last);
        Ok(total)
    }

    /// The summaries of windows, several in one batch.
    async fn partials(
        &self,
        material: &Material,
        windows: &[Vec<Chunk>],
        writing: &Writing,
    ) -> Result<(Usage, Vec<String>), DecodeError> {
        let each: Vec<_> = windows.iter().map(|window| self.collect_window(material, window, writing)).collect();
        let at_once = if writing.priority == Priority::Bulk { AT_ONCE } else { AT_ONCE_INTERACTIVE };
        let mut written = stream::iter(each).buffered(at_once);
        let (mut total, mut partials) = (Usage::default(), Vec::with_capacity(windows.len()));
        while let Some((usage, text)) = written.try_next().await? {
            add(&mut total, usage);
            partials.push(text);
        }
        Ok((total, partials))
    }

    async fn collect_window(
        &self,
        material: &Material,
        window: &[Chunk],
        writing: &Writing,
    ) -> Result<(Usage, String), DecodeError> {
        let _room = self.room(writing.priority).await;
        let layout = material.lay_out(window, Purpose::Summary, self.tokenizer())?;
        self.collect(layout, writing.clone()).await
    }

    /// [`Answering::write`] with the text returned instead of emitted.
    async fn collect(&self, layout: Layout, writing: Writing) -> Result<(Usage, String), DecodeError> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let emit: Emit = Box::new(move |text| sender.send(text.to_owned()).is_ok());
        let usage = self.write(layout, writing, emit).await?;
        Ok((usage, receiver.try_iter().collect()))
    }

    fn text_layout(&self, texts: &[String]) -> Result<Layout, DecodeError> {
        let ids = self.tokenizer().encode_plain(&texts.join("\n\n"))?;
        Ok(Layout { pieces: vec![Piece::Tokens(ids)], usage: Usage::default() })
    }

    fn tokens(&self, texts: &[String]) -> Result<usize, DecodeError> {
        Ok(self.tokenizer().count(&texts.join("\n\n"))?)
    }
}

/// The chunks of each window: as many as fit it, or more where there may be no more windows. Raw text alone is read in one.
fn windows(material: &Material) -> Vec<Vec<Chunk>> {
    let chunks = material.chunks();
    if !matches!(material.reading, Reading::Unspecified | Reading::Soft) {
        return vec![chunks];
    }
    let fitting = fitting(material, &chunks);
    let most = material.max_windows;
    if most == 0 || fitting.len() <= most {
        return fitting;
    }
    chunks.chunks(chunks.len().div_ceil(most).max(1)).map(<[Chunk]>::to_vec).collect()
}

/// Runs of consecutive chunks whose soft tokens fit the budget beside the raw text.
fn fitting(material: &Material, chunks: &[Chunk]) -> Vec<Vec<Chunk>> {
    let budget = material.budget;
    let text = if budget.expand_chunks == 0 { 0 } else { budget.expand_positions };
    let room = budget.positions.saturating_sub(text).max(budget.positions / 4);
    let mut windows = vec![Vec::new()];
    let mut used = 0;
    for &chunk in chunks {
        let cost = material.soft_tokens(chunk);
        if used + cost > room && used > 0 {
            windows.push(Vec::new());
            used = 0;
        }
        used += cost;
        if let Some(window) = windows.last_mut() {
            window.push(chunk);
        }
    }
    windows
}

fn add(total: &mut Usage, part: Usage) {
    total.chunks_total += part.chunks_total;
    total.chunks_expanded += part.chunks_expanded;
    total.chunks_soft += part.chunks_soft;
    total.chunks_left_out += part.chunks_left_out;
    total.soft_positions += part.soft_positions;
    total.text_positions += part.text_positions;
    total.reused_positions += part.reused_positions;
    total.generated_tokens += part.generated_tokens;
    total.windows += part.windows;
    total.expanded.extend(part.expanded);
}
