//! A document as a sequence of tokens, tokenised block by block.

use std::collections::HashMap;

use super::MARGIN;
use crate::error::Result;
use crate::tokenizer::{Piece, TextTokenizer};

/// Bytes tokenised at once.
const BLOCK: usize = 1 << 16;
/// Longer fields are not worth remembering.
const MAX_FIELD: usize = 64;
/// Remembered fields and pieces after which the memory begins anew: a few megabytes.
const MAX_KNOWN: usize = 1 << 17;

/// The tokens of a text from some place on.
#[derive(Debug)]
pub(super) struct Block<'a> {
    tokenizer: &'a TextTokenizer,
    text: &'a str,
    /// The longest that a chunk's text can be.
    max_bytes: usize,
    /// Tokens of the current block, with offsets in the text.
    pieces: Vec<Piece>,
    /// The first of them that is not used up.
    next: usize,
    end: usize,
    size: usize,
    known: Known<'a>,
}

impl<'a> Block<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, text: &'a str, max_bytes: usize) -> Self {
        Self { tokenizer, text, max_bytes, pieces: Vec::new(), next: 0, end: 0, size: BLOCK, known: Known::default() }
    }

    /// Where the next token begins; `None` if only blank text is left.
    pub(super) fn next_token(&mut self) -> Result<Option<usize>> {
        while self.next == self.pieces.len() {
            if self.is_last() {
                return Ok(None);
            }
            self.load(self.end)?;
        }
        Ok(Some(self.pieces[self.next].start))
    }

    /// Makes the block reach well beyond the longest chunk that could begin at `first`, where the next token begins, or to
    /// the end of the text.
    pub(super) fn look_ahead(&mut self, first: usize) -> Result<()> {
        let reach = first + self.max_bytes + MARGIN;
        if self.end < reach.min(self.text.len()) {
            self.load(first)?;
        }
        Ok(())
    }

    /// The tokens from the next one to the end of the block.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces[self.next..]
    }

    /// Whether no text follows the block.
    pub(super) fn is_last(&self) -> bool {
        self.end == self.text.len()
    }

    /// Uses up that many tokens.
    pub(super) fn skip(&mut self, pieces: usize) {
        self.next += pieces;
    }

    /// Begins again at `from`, in the middle of a word, with a small block: should every chunk end like this, time stays
    /// linear. Blocks grow again by themselves.
    pub(super) fn restart(&mut self, from: usize) -> Result<()> {
        self.size = 0;
        self.load(from)
    }

    fn load(&mut self, from: usize) -> Result<()> {
        let least = 2 * (self.max_bytes + MARGIN);
        self.size = (2 * self.size).clamp(least, BLOCK.max(least));
        (self.next, self.end) = (0, block_end(self.text, from, self.size));
        self.pieces.clear();
        let block = &self.text[from..self.end];
        if self.tokenizer.splits_at_spaces() {
            self.known.tokenise(self.tokenizer, block, &mut self.pieces)?;
        } else {
            self.pieces = self.tokenizer.encode_with_offsets(block)?;
        }
        // A piece of nothing (SentencePiece's added first space) is no place to cut.
        self.pieces.retain(|piece| piece.start < piece.end);
        for piece in &mut self.pieces {
            piece.start += from;
            piece.end += from;
        }
        Ok(())
    }
}

/// Remembers the tokens of fields (what stands between spaces) while a document is read. Most fields of a text have been
/// there before, and a look-up costs a fraction of normalising, splitting and matching again.
#[derive(Debug, Default)]
struct Known<'a> {
    /// By field: its range in `pieces`.
    fields: HashMap<&'a str, (usize, usize)>,
    /// Offsets and words counted from the field's beginning.
    pieces: Vec<Piece>,
}

impl<'a> Known<'a> {
    /// Appends the tokens of `block` to `out`, with offsets in the block.
    fn tokenise(&mut self, tokenizer: &TextTokenizer, block: &'a str, out: &mut Vec<Piece>) -> Result<()> {
        if self.fields.len() + self.pieces.len() > MAX_KNOWN {
            self.fields.clear();
            self.pieces.clear();
        }
        let mut at = 0;
        let mut words = 0;
        for field in block.split([' ', '\n', '\r', '\t']) {
            if !field.is_empty() {
                let (first, last) = self.field(tokenizer, field)?;
                let pieces = &self.pieces[first..last];
                out.extend(pieces.iter().map(|piece| Piece {
                    id: piece.id,
                    start: piece.start + at,
                    end: piece.end + at,
                    word: piece.word + words,
                }));
                words += pieces.last().map_or(0, |piece| piece.word + 1);
            }
            at += field.len() + 1;
        }
        Ok(())
    }

    fn field(&mut self, tokenizer: &TextTokenizer, field: &'a str) -> Result<(usize, usize)> {
        if let Some(range) = self.fields.get(field) {
            return Ok(*range);
        }
        let first = self.pieces.len();
        self.pieces.extend(tokenizer.encode_with_offsets(field)?);
        let range = (first, self.pieces.len());
        if field.len() <= MAX_FIELD {
            self.fields.insert(field, range);
        }
        Ok(range)
    }
}

/// The end of a block of about `size` bytes from `from`: after white space if there is some in its last quarter.
fn block_end(text: &str, from: usize, size: usize) -> usize {
    let hard = text.floor_char_boundary((from + size).min(text.len()));
    if hard == text.len() {
        return hard;
    }
    let bytes = text.as_bytes();
    let soft = (from + size - size / 4..hard).rev().find(|at| matches!(bytes[*at], b' ' | b'\n'));
    soft.map_or(hard, |at| at + 1)
}
