use e2llm_api::v1::{ExpandedChunk, Usage};
use e2llm_model::TextTokenizer;
use e2llm_model::expand::{Budget, Candidate, Form, for_question, for_summary};
use e2llm_model::generate::Piece;

use crate::document::{ChunkRef, LoadedDocument};
use crate::error::DecodeError;

/// Text between two documents of one question.
const BETWEEN_DOCUMENTS: &str = "\n\n";

/// Chunks of one or more documents, as they shall enter a prompt.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Soft tokens and raw text in document order.
    pub(crate) pieces: Vec<Piece>,
    /// What became of the chunks.
    pub(crate) usage: Usage,
}

/// What the chunks are wanted for.
pub(crate) enum Purpose<'a> {
    /// The question's unit vector `[d_enc]`.
    Question(&'a [f32]),
    Summary,
}

/// Lays out `chunks` (document index, chunk) within `budget`.
pub(crate) fn lay_out(
    documents: &[LoadedDocument],
    chunks: &[(usize, ChunkRef)],
    purpose: Purpose<'_>,
    budget: Budget,
    tokenizer: &TextTokenizer,
) -> Result<Layout, DecodeError> {
    let candidates: Vec<Candidate<'_>> = chunks.iter().map(|(d, c)| documents[*d].candidate(*c)).collect();
    let mut texts: Vec<Option<Vec<u32>>> = vec![None; chunks.len()];
    let mut cost = |index: usize| {
        let (document, chunk) = chunks[index];
        let ids = tokenizer.encode_plain(documents[document].text(chunk)?).ok()?;
        let positions = ids.len();
        texts[index] = Some(ids);
        Some(positions)
    };
    let forms = match purpose {
        Purpose::Question(vector) => for_question(&candidates, vector, budget, &mut cost),
        Purpose::Summary => for_summary(&candidates, budget, &mut cost),
    };
    let mut layout =
        Layout { pieces: Vec::new(), usage: Usage { chunks_total: chunks.len() as u32, ..Usage::default() } };
    let mut previous = None;
    for ((&(document, chunk), form), text) in chunks.iter().zip(&forms).zip(texts) {
        if previous.is_some_and(|p| p != document) && *form != Form::LeftOut {
            layout.pieces.push(Piece::Tokens(tokenizer.encode_plain(BETWEEN_DOCUMENTS)?));
        }
        if *form != Form::LeftOut {
            previous = Some(document);
        }
        layout.place(&documents[document], chunk, *form, text);
    }
    Ok(layout)
}

impl Layout {
    fn place(&mut self, document: &LoadedDocument, chunk: ChunkRef, form: Form, text: Option<Vec<u32>>) {
        match (form, text) {
            (Form::Text(score), Some(ids)) => {
                let range = document.range(chunk);
                self.usage.chunks_expanded += 1;
                self.usage.expanded.push(ExpandedChunk {
                    doc_id: document.record.doc_id.clone(),
                    chunk: chunk.number as u32,
                    text_start: range.start as u64,
                    text_end: range.end as u64,
                    score,
                });
                self.pieces.push(Piece::Tokens(ids));
            }
            (Form::Soft, _) => {
                let values = document.soft(chunk);
                self.usage.chunks_soft += 1;
                self.usage.soft_positions += document.candidate(chunk).soft_tokens as u32;
                self.pieces.push(Piece::Soft(values));
            }
            // A chunk is expanded only after its text was tokenised, so the first arm takes every `Text`.
            (Form::LeftOut | Form::Text(_), _) => self.usage.chunks_left_out += 1,
        }
    }
}
