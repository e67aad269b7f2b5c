//! Cuts a document into chunks of at most so many encoder tokens, at the best break that fits.
//!
//! Chunks are consecutive byte ranges that together are the whole document; each ends, in this order of preference, at a
//! paragraph, a sentence, a line, a word, a punctuation mark, or as a last resort between two characters (graphemes where
//! possible, and always whole code points). A better break wins over a later one if it leaves the chunk reasonably full
//! ([`MIN_FILL`]). Lines rank below sentences because much text (mail, RFCs) is wrapped by hand: its line ends mean nothing,
//! while in lists and tables, which have few sentence ends, lines win again.
//!
//! Rules that follow from "chunks cover the text" and "no chunk is without tokens":
//! - **Blank text** (what the tokenizer drops: white space, and for BERT control characters) belongs to the chunk before it, at
//!   the beginning of a document to the first chunk. A document that is blank throughout has no chunks.
//! - **Blank runs have no bound, what is between them has**: from its first token to its last a chunk spans at most
//!   [`BYTES_PER_TOKEN`] × `max_tokens` bytes, and a longer blank run always ends it. Ten megabytes of spaces therefore widen
//!   one chunk's *range*, but not the text that [`Chunk::text`] gives, which is trimmed. Readers that hold only a range use
//!   [`trim_blank`].
//! - A word that WordPiece gives up on (over 100 letters) is one unknown token however long it is; the bound in bytes cuts it.
//!
//! Memory is bounded and time linear in the text: it is tokenised in blocks, once (a block's rest is tokenised again with the
//! next block), never per candidate break. `tokens` is what the encoder will see of the chunk alone: with BERT's tokenizers,
//! whose words do not depend on each other, that is what the block has there; everything else is counted again.
//!
//! The `text-splitter` crate (0.33) was considered for this and does not fit: it lists all line breaks of the text first and walks
//! the rest of that list for every chunk (`levels_in_remaining_text`), which is quadratic in a text of many lines, and it
//! tokenises candidate breaks again and again.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc};
//! use e2llm_model::{chunk::Chunker, tokenizer::TextTokenizer};
//!
//! let tokenizer = Arc::new(TextTokenizer::from_file(Path::new("tokenizer.json"))?);
//! let document = "One sentence. Another one.";
//! for chunk in Chunker::new(tokenizer, 128)?.chunks(document) {
//!     let chunk = chunk?;
//!     println!("{} tokens: {}", chunk.tokens, chunk.text(document));
//! }
//! # Ok::<(), e2llm_model::error::ModelError>(())
//! ```

mod block;
mod breaks;

use std::sync::Arc;

use unicode_segmentation::UnicodeSegmentation;

use crate::error::{ModelError, Result};
use crate::tokenizer::{Piece, TextTokenizer};
use block::Block;
use breaks::{Break, Candidates};

pub use breaks::MIN_FILL;

/// Bound of a chunk's text in bytes, per token of its budget: three times what English takes.
pub const BYTES_PER_TOKEN: usize = 16;
/// A single character can be several tokens; below this a budget could not be kept.
pub const MIN_TOKENS: usize = 8;
/// How far beyond the longest possible chunk a block must reach, so that its ragged end decides nothing.
const MARGIN: usize = 64;

/// Cuts documents by one encoder's tokens.
#[derive(Debug, Clone)]
pub struct Chunker {
    tokenizer: Arc<TextTokenizer>,
    max_tokens: usize,
}

/// A byte range of a document and the number of encoder tokens in it, special tokens not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the document.
    pub start: usize,
    /// One past the last byte; where the next chunk begins.
    pub end: usize,
    /// Tokens of [`Chunk::text`], and of the whole range.
    pub tokens: u32,
}

impl Chunk {
    /// The chunk's text without the blank around it; empty if `document` is not the one that was cut.
    pub fn text<'t>(&self, document: &'t str) -> &'t str {
        trim_blank(document.get(self.start..self.end).unwrap_or_default())
    }
}

/// `text` without white space, control and invisible formatting characters at its ends.
pub fn trim_blank(text: &str) -> &str {
    text.trim_matches(|c: char| {
        let formatting =
            matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
        c.is_whitespace() || c.is_control() || formatting || matches!(c, '\u{feff}' | '\u{fffd}')
    })
}

impl Chunker {
    /// A chunker for chunks of at most `max_tokens` tokens of `tokenizer`.
    ///
    /// # Errors
    /// [`ModelError::Setting`] if `max_tokens` is below [`MIN_TOKENS`].
    pub fn new(tokenizer: Arc<TextTokenizer>, max_tokens: usize) -> Result<Self> {
        if max_tokens < MIN_TOKENS {
            let value = max_tokens.to_string();
            return Err(ModelError::Setting { name: "chunk tokens", value, expected: "8 or more" });
        }
        Ok(Self { tokenizer, max_tokens })
    }

    /// The most tokens that a chunk can have.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The chunks of `text`, in order, cut as they are asked for. An item is an error only if the tokenizer fails; nothing
    /// follows it.
    pub fn chunks<'a>(&'a self, text: &'a str) -> Chunks<'a> {
        let block = Block::new(&self.tokenizer, text, self.max_bytes());
        Chunks { chunker: self, text, start: 0, block, failed: false }
    }

    fn max_bytes(&self) -> usize {
        self.max_tokens * BYTES_PER_TOKEN
    }
}

/// Iterator over the chunks of one document.
#[derive(Debug)]
pub struct Chunks<'a> {
    chunker: &'a Chunker,
    text: &'a str,
    /// Where the next chunk's range begins.
    start: usize,
    block: Block<'a>,
    failed: bool,
}

/// Where a chunk's content ends.
#[derive(Debug, Clone, Copy)]
struct Cut {
    end: usize,
    tokens: usize,
    /// Number of the block's pieces used up; `None` if the cut goes through a word, so that the rest of the block has
    /// other tokens now.
    used: Option<usize>,
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let chunk = self.next_chunk();
        self.failed = chunk.is_err();
        chunk.transpose()
    }
}

impl Chunks<'_> {
    fn next_chunk(&mut self) -> Result<Option<Chunk>> {
        let Some(first) = self.block.next_token()? else { return Ok(None) };
        let cut = self.cut(first)?;
        match cut.used {
            Some(used) => self.block.skip(used),
            None => self.block.restart(cut.end)?,
        }
        let end = self.block.next_token()?.unwrap_or(self.text.len());
        let start = std::mem::replace(&mut self.start, end);
        Ok(Some(Chunk { start, end, tokens: cut.tokens as u32 }))
    }

    /// The chosen end of the chunk whose first token begins at `first`.
    fn cut(&mut self, first: usize) -> Result<Cut> {
        self.block.look_ahead(first)?;
        let Chunker { tokenizer, max_tokens } = self.chunker;
        let pieces = self.block.pieces();
        let mut budget = *max_tokens;
        while let Some((used, through_word)) = self.best_break(pieces, budget) {
            let end = pieces[used - 1].end;
            let tokens = match tokenizer.splits_at_spaces() && !through_word {
                true => used,
                false => tokenizer.count(&self.text[first..end])?,
            };
            if tokens <= *max_tokens {
                return Ok(Cut { end, tokens, used: (!through_word).then_some(used) });
            }
            // The chunk alone has other tokens than within its block: the excess must go.
            budget = used.saturating_sub(tokens - max_tokens);
        }
        let limit = pieces[pieces.len().min(*max_tokens) - 1].end;
        self.cut_anywhere(first, limit)
    }

    /// The best break among the first `budget` pieces: how many pieces are before it, and whether it goes through a word.
    fn best_break(&self, pieces: &[Piece], budget: usize) -> Option<(usize, bool)> {
        let first = pieces[0].start;
        let last_byte = first + self.chunker.max_bytes();
        let mut candidates = Candidates::default();
        for used in 1..=budget.min(pieces.len()) {
            let before = pieces[used - 1];
            if before.end > last_byte {
                break;
            }
            let Some(after) = pieces.get(used) else {
                if self.block.is_last() {
                    return Some((used, false));
                }
                // Blank up to the block's end, which is more than a paragraph break.
                candidates.add(Break::Paragraph, used);
                break;
            };
            if let Some(kind) = breaks::classify(self.text, first, before, *after) {
                candidates.add(kind, used);
            }
        }
        candidates.best()
    }

    /// For a single word or character that no break fits: as many graphemes up to `limit`, or at least characters, as do.
    fn cut_anywhere(&self, first: usize, limit: usize) -> Result<Cut> {
        let mut limit = limit.min(first + self.chunker.max_bytes());
        loop {
            let end = first + boundary(&self.text[first..], limit - first);
            let tokens = self.chunker.tokenizer.count(&self.text[first..end])?;
            let one_char = self.text[first..end].chars().nth(1).is_none();
            // The range begins at a token, so it has one; should a tokenizer drop it after all, it still counts as one.
            if tokens <= self.chunker.max_tokens || one_char {
                return Ok(Cut { end, tokens: tokens.max(1), used: None });
            }
            limit = first + (end - first) / 2;
        }
    }
}

/// The last grapheme boundary of `text` in `1..=limit`, else the last character boundary, else the first character's end.
fn boundary(text: &str, limit: usize) -> usize {
    let head = &text[..text.floor_char_boundary((limit + MARGIN).min(text.len()))];
    let ends = head.grapheme_indices(true).map(|(at, grapheme)| at + grapheme.len());
    // The last grapheme of the head may go on beyond it.
    let whole = ends.take_while(|end| *end <= limit && (*end < head.len() || head.len() == text.len())).last();
    let chars = text.floor_char_boundary(limit);
    let first = text.chars().next().map_or(0, char::len_utf8);
    whole.unwrap_or(if chars > 0 { chars } else { first })
}
