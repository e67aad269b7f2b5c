use std::ops::Range;

use e2llm_api::v1::{ExpandedChunk, Reading, Usage};
use e2llm_model::TextTokenizer;
use e2llm_model::expand::{
    Budget, Candidate, Form, Known, ends, for_question, for_summary, opening, relevance, retrieved,
};
use e2llm_model::generate::Piece;
use e2llm_model::lexical;
use e2llm_model::prompt::BETWEEN;

use crate::document::{ChunkRef, LoadedDocument};
use crate::error::DecodeError;

/// What a sentence may end with.
const SENTENCE_ENDS: [char; 3] = ['.', '!', '?'];

/// The documents of a request, and how they are read.
#[derive(Debug)]
pub(crate) struct Material {
    pub(crate) documents: Vec<LoadedDocument>,
    /// Whose soft tokens stand in for theirs, as a control.
    pub(crate) donor: Option<LoadedDocument>,
    pub(crate) reading: Reading,
    /// Bytes of the only document whose chunks are expanded before all others, as a control.
    pub(crate) expand_first: Vec<Range<u64>>,
    pub(crate) budget: Budget,
    /// Most windows of a summary; 0: all that are needed.
    pub(crate) max_windows: usize,
}

/// A chunk with the index of its document.
pub(crate) type Chunk = (usize, ChunkRef);

/// Chunks of one or more documents, as they shall enter a prompt.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Soft tokens in document order, then raw text in document order.
    pub(crate) pieces: Vec<Piece>,
    /// What became of the chunks.
    pub(crate) usage: Usage,
}

/// What the chunks are wanted for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose<'a> {
    Question {
        /// Its unit vector `[d_enc]`.
        vector: &'a [f32],
        text: &'a str,
    },
    Summary,
}

impl Material {
    /// All chunks in document order.
    pub(crate) fn chunks(&self) -> Vec<Chunk> {
        let of = |(index, document): (usize, &LoadedDocument)| document.chunks().into_iter().map(move |c| (index, c));
        self.documents.iter().enumerate().flat_map(of).collect()
    }

    /// Soft tokens that a chunk costs compressed.
    pub(crate) fn soft_tokens(&self, (document, chunk): Chunk) -> usize {
        self.documents[document].candidate(chunk).soft_tokens
    }

    /// Lays out `chunks` within the budget.
    pub(crate) fn lay_out(
        &self,
        chunks: &[Chunk],
        purpose: Purpose<'_>,
        tokenizer: &TextTokenizer,
    ) -> Result<Layout, DecodeError> {
        match self.reading {
            Reading::Unspecified | Reading::Soft => self.soft_and_text(chunks, purpose, tokenizer),
            Reading::Retrieved | Reading::Filled | Reading::Opening | Reading::Full | Reading::None => {
                self.text_alone(chunks, purpose, tokenizer)
            }
        }
    }

    /// Soft tokens, and behind them raw text of some chunks.
    fn soft_and_text(
        &self,
        chunks: &[Chunk],
        purpose: Purpose<'_>,
        tokenizer: &TextTokenizer,
    ) -> Result<Layout, DecodeError> {
        let candidates = self.candidates(chunks);
        // A chunk whose text is not to be had stays compressed.
        let mut cost = |index: usize| self.text_cost(chunks[index], tokenizer).ok();
        let forms = match purpose {
            Purpose::Question { vector, text } => {
                let words = self.lexical_scores(chunks, text);
                let scores = relevance(&candidates, vector, &words);
                self.knowing(chunks, &words, |known| for_question(&candidates, &scores, known, self.budget, &mut cost))
            }
            Purpose::Summary => for_summary(&candidates, self.budget, &mut cost),
        };
        let mut layout = Layout::of(&forms);
        self.place_soft(&mut layout, chunks, &forms, tokenizer)?;
        self.place_text(&mut layout, chunks, &forms, tokenizer)?;
        Ok(layout)
    }

    /// `choose` with what is known of the chunks beside their vectors; `words` are their lexical scores.
    fn knowing<T>(&self, chunks: &[Chunk], words: &[f32], choose: impl FnOnce(Known<'_>) -> T) -> T {
        let stands_out = lexical::standing_out(words);
        choose(Known {
            comes_first: &|index| self.comes_first(chunks[index]),
            stands_out: &|index| stands_out.get(index).is_none_or(|stands_out| *stands_out),
            goes_on: &|index| self.goes_on(chunks, index),
        })
    }

    fn lexical_scores(&self, chunks: &[Chunk], question: &str) -> Vec<f32> {
        let texts: Vec<Option<&str>> =
            chunks.iter().map(|(index, chunk)| self.documents[*index].text(*chunk)).collect();
        lexical::scores(question, &texts)
    }

    fn comes_first(&self, (document, chunk): Chunk) -> bool {
        let own = self.documents[document].range(chunk);
        self.expand_first.iter().any(|range| (own.start as u64) < range.end && range.start < own.end as u64)
    }

    /// Whether the sentence that a chunk ends with goes on in the next one.
    fn goes_on(&self, chunks: &[Chunk], index: usize) -> bool {
        let (Some(&(document, chunk)), Some(&(next, _))) = (chunks.get(index), chunks.get(index + 1)) else {
            return false;
        };
        let document_of = &self.documents[document];
        let is_open = |text: &str| !text.ends_with(SENTENCE_ENDS);
        let gap = document_of.gap(&document_of.range(chunk));
        document == next && !gap.contains('\n') && document_of.text(chunk).is_some_and(is_open)
    }

    /// Raw text without soft tokens.
    fn text_alone(
        &self,
        chunks: &[Chunk],
        purpose: Purpose<'_>,
        tokenizer: &TextTokenizer,
    ) -> Result<Layout, DecodeError> {
        let forms = self.text_forms(chunks, purpose, tokenizer)?;
        let mut layout = Layout::of(&forms);
        self.place_text(&mut layout, chunks, &forms, tokenizer)?;
        Ok(layout)
    }

    /// Which chunks are read as raw text.
    fn text_forms(
        &self,
        chunks: &[Chunk],
        purpose: Purpose<'_>,
        tokenizer: &TextTokenizer,
    ) -> Result<Vec<Form>, DecodeError> {
        let mut problem = None;
        let mut cost = |index: usize| {
            let counted = self.text_cost(chunks[index], tokenizer);
            counted.map_err(|error| problem = Some(error)).ok()
        };
        let (count, positions) = (chunks.len(), self.budget.positions);
        let forms = match self.reading {
            Reading::Retrieved | Reading::Filled => {
                let candidates = self.candidates(chunks);
                let words = match purpose {
                    Purpose::Question { text, .. } => self.lexical_scores(chunks, text),
                    Purpose::Summary => Vec::new(),
                };
                let scores = match purpose {
                    Purpose::Question { vector, .. } => Some(relevance(&candidates, vector, &words)),
                    Purpose::Summary => None,
                };
                let fills = self.reading == Reading::Filled;
                self.knowing(chunks, &words, |known| {
                    let known = if fills { Known { stands_out: &|_| true, ..known } } else { known };
                    retrieved(&candidates, scores, known, positions, &mut cost)
                })
            }
            Reading::Opening => opening(count, positions, &mut cost),
            Reading::Full => ends(count, positions, &mut cost),
            Reading::Unspecified | Reading::Soft | Reading::None => vec![Form::default(); count],
        };
        problem.map_or(Ok(forms), Err)
    }

    /// Positions of a chunk as raw text, with the longest gap before it.
    fn text_cost(&self, (index, chunk): Chunk, tokenizer: &TextTokenizer) -> Result<usize, DecodeError> {
        let document = &self.documents[index];
        match document.text(chunk) {
            Some(text) => Ok(tokenizer.count(&format!("{BETWEEN}{text}"))?),
            None => Err(DecodeError::NoText { doc_id: document.record.doc_id.clone() }),
        }
    }

    fn place_soft(
        &self,
        layout: &mut Layout,
        chunks: &[Chunk],
        forms: &[Form],
        tokenizer: &TextTokenizer,
    ) -> Result<(), DecodeError> {
        let mut previous = None;
        for ((index, chunk), _) in chunks.iter().zip(forms).filter(|(_, form)| form.soft) {
            if previous.is_some_and(|previous| previous != index) {
                layout.pieces.push(Piece::Tokens(tokenizer.encode_plain(BETWEEN)?));
            }
            previous = Some(index);
            layout.soft(&self.documents[*index], self.donor.as_ref(), *chunk);
        }
        Ok(())
    }

    fn place_text(
        &self,
        layout: &mut Layout,
        chunks: &[Chunk],
        forms: &[Form],
        tokenizer: &TextTokenizer,
    ) -> Result<(), DecodeError> {
        let mut previous: Option<(usize, Range<usize>)> = None;
        for (&(index, chunk), form) in chunks.iter().zip(forms) {
            let Some(score) = form.text else { continue };
            let document = &self.documents[index];
            let range = document.range(chunk);
            let gap = match &previous {
                Some((last, before)) if *last == index && before.end == range.start => document.gap(before),
                None if layout.pieces.is_empty() => "",
                _ => BETWEEN,
            };
            let text = document.text(chunk).unwrap_or_default();
            layout.pieces.push(Piece::Tokens(tokenizer.encode_plain(&format!("{gap}{text}"))?));
            layout.usage.expanded.push(expanded(document, chunk, score));
            previous = Some((index, range));
        }
        Ok(())
    }

    fn candidates(&self, chunks: &[Chunk]) -> Vec<Candidate<'_>> {
        chunks.iter().map(|(document, chunk)| self.documents[*document].candidate(*chunk)).collect()
    }
}

fn expanded(document: &LoadedDocument, chunk: ChunkRef, score: f32) -> ExpandedChunk {
    let range = document.range(chunk);
    ExpandedChunk {
        doc_id: document.record.doc_id.clone(),
        chunk: chunk.number as u32,
        text_start: range.start as u64,
        text_end: range.end as u64,
        score,
    }
}

impl Layout {
    /// Nothing yet, of chunks in these forms.
    fn of(forms: &[Form]) -> Self {
        let count = |with: fn(&Form) -> bool| forms.iter().filter(|form| with(form)).count() as u32;
        let usage = Usage {
            chunks_total: forms.len() as u32,
            chunks_expanded: count(|form| form.text.is_some()),
            chunks_soft: count(|form| form.soft),
            chunks_left_out: count(|form| *form == Form::default()),
            ..Usage::default()
        };
        Self { pieces: Vec::new(), usage }
    }

    fn soft(&mut self, document: &LoadedDocument, donor: Option<&LoadedDocument>, chunk: ChunkRef) {
        let count = document.candidate(chunk).soft_tokens;
        let values = match donor {
            Some(donor) => donor.soft_from(self.usage.soft_positions as usize, count),
            None => document.soft(chunk),
        };
        self.usage.soft_positions += count as u32;
        self.pieces.push(Piece::Soft(values));
    }
}
