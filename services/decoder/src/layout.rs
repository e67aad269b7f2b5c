use std::ops::Range;

use e2llm_api::v1::{ExpandedChunk, Reading, Usage};
use e2llm_model::TextTokenizer;
use e2llm_model::expand::{Budget, Candidate, Form, ends, for_question, for_summary, opening, retrieved};
use e2llm_model::generate::Piece;

use crate::document::{ChunkRef, LoadedDocument};
use crate::error::DecodeError;

/// Text between two documents of one question, and where raw text has a gap.
const BETWEEN: &str = "\n\n";

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
}

/// A chunk with the index of its document.
pub(crate) type Chunk = (usize, ChunkRef);

/// Chunks of one or more documents, as they shall enter a prompt.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Soft tokens and raw text in document order.
    pub(crate) pieces: Vec<Piece>,
    /// What became of the chunks.
    pub(crate) usage: Usage,
}

/// What the chunks are wanted for.
#[derive(Clone, Copy)]
pub(crate) enum Purpose<'a> {
    /// The question's unit vector `[d_enc]`.
    Question(&'a [f32]),
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
            Reading::Retrieved | Reading::Opening | Reading::Full | Reading::None => {
                self.text_alone(chunks, purpose, tokenizer)
            }
        }
    }

    fn soft_and_text(
        &self,
        chunks: &[Chunk],
        purpose: Purpose<'_>,
        tokenizer: &TextTokenizer,
    ) -> Result<Layout, DecodeError> {
        let candidates = self.candidates(chunks);
        let mut texts: Vec<Option<Vec<u32>>> = vec![None; chunks.len()];
        let mut cost = |index: usize| {
            let (document, chunk) = chunks[index];
            let ids = tokenizer.encode_plain(self.documents[document].text(chunk)?).ok()?;
            let positions = ids.len();
            texts[index] = Some(ids);
            Some(positions)
        };
        let forms = match purpose {
            Purpose::Question(vector) => {
                for_question(&candidates, vector, &|index| self.comes_first(chunks[index]), self.budget, &mut cost)
            }
            Purpose::Summary => for_summary(&candidates, self.budget, &mut cost),
        };
        let mut layout = Layout::of(chunks.len());
        let mut previous = None;
        for ((&(document, chunk), form), text) in chunks.iter().zip(&forms).zip(texts) {
            if previous.is_some_and(|p| p != document) && *form != Form::LeftOut {
                layout.pieces.push(Piece::Tokens(tokenizer.encode_plain(BETWEEN)?));
            }
            if *form != Form::LeftOut {
                previous = Some(document);
            }
            layout.place(&self.documents[document], self.donor.as_ref(), chunk, *form, text);
        }
        Ok(layout)
    }

    fn comes_first(&self, (document, chunk): Chunk) -> bool {
        let own = self.documents[document].range(chunk);
        self.expand_first.iter().any(|range| (own.start as u64) < range.end && range.start < own.end as u64)
    }

    /// Raw text without soft tokens.
    fn text_alone(
        &self,
        chunks: &[Chunk],
        purpose: Purpose<'_>,
        tokenizer: &TextTokenizer,
    ) -> Result<Layout, DecodeError> {
        let forms = self.text_forms(chunks, purpose, tokenizer)?;
        let mut layout = Layout::of(chunks.len());
        let mut previous: Option<(usize, Range<usize>)> = None;
        for (&(index, chunk), form) in chunks.iter().zip(&forms) {
            let (document, Form::Text(score)) = (&self.documents[index], *form) else {
                layout.usage.chunks_left_out += 1;
                continue;
            };
            let range = document.range(chunk);
            let gap = previous.map_or("", |(last, before)| {
                if last == index && before.end == range.start { document.gap(&before) } else { BETWEEN }
            });
            let text = document.text(chunk).unwrap_or_default();
            layout.pieces.push(Piece::Tokens(tokenizer.encode_plain(&format!("{gap}{text}"))?));
            layout.usage.chunks_expanded += 1;
            layout.usage.expanded.push(expanded(document, chunk, score));
            previous = Some((index, range));
        }
        Ok(layout)
    }

    /// Which chunks are read as raw text. Each is charged with the longest gap before it.
    fn text_forms(
        &self,
        chunks: &[Chunk],
        purpose: Purpose<'_>,
        tokenizer: &TextTokenizer,
    ) -> Result<Vec<Form>, DecodeError> {
        let mut problem = None;
        let mut cost = |index: usize| {
            let (document, chunk) = chunks[index];
            let document = &self.documents[document];
            let counted = match document.text(chunk) {
                Some(text) => tokenizer.count(&format!("{BETWEEN}{text}")).map_err(DecodeError::from),
                None => Err(DecodeError::NoText { doc_id: document.record.doc_id.clone() }),
            };
            counted.map_err(|error| problem = Some(error)).ok()
        };
        let (count, positions) = (chunks.len(), self.budget.positions);
        let question = if let Purpose::Question(vector) = purpose { Some(vector) } else { None };
        let forms = match self.reading {
            Reading::Retrieved => retrieved(&self.candidates(chunks), question, positions, &mut cost),
            Reading::Opening => opening(count, positions, &mut cost),
            Reading::Full => ends(count, positions, &mut cost),
            Reading::Unspecified | Reading::Soft | Reading::None => vec![Form::LeftOut; count],
        };
        problem.map_or(Ok(forms), Err)
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
    /// Nothing yet of so many chunks.
    fn of(chunks: usize) -> Self {
        Self { pieces: Vec::new(), usage: Usage { chunks_total: chunks as u32, ..Usage::default() } }
    }

    fn place(
        &mut self,
        document: &LoadedDocument,
        donor: Option<&LoadedDocument>,
        chunk: ChunkRef,
        form: Form,
        text: Option<Vec<u32>>,
    ) {
        match (form, text) {
            (Form::Text(score), Some(ids)) => {
                self.usage.chunks_expanded += 1;
                self.usage.expanded.push(expanded(document, chunk, score));
                self.pieces.push(Piece::Tokens(ids));
            }
            (Form::Soft, _) => {
                let count = document.candidate(chunk).soft_tokens;
                let values = match donor {
                    Some(donor) => donor.soft_from(self.usage.soft_positions as usize, count),
                    None => document.soft(chunk),
                };
                self.usage.chunks_soft += 1;
                self.usage.soft_positions += count as u32;
                self.pieces.push(Piece::Soft(values));
            }
            // A chunk is expanded only after its text was tokenised, so the first arm takes every `Text`.
            (Form::LeftOut | Form::Text(_), _) => self.usage.chunks_left_out += 1,
        }
    }
}
