//! Token ids to text as they come, in whole characters.

use std::sync::Arc;

use super::{TextTokenizer, error};
use crate::error::Result;

/// Decodes one token at a time and holds back bytes until they make complete UTF-8.
///
/// What all `push` calls and `finish` return, joined, is [`TextTokenizer::decode`] of the ids.
#[derive(Debug)]
pub struct StreamDecoder {
    tokenizer: Arc<TextTokenizer>,
    held: Held,
}

/// What has been read and not given out yet.
#[derive(Debug)]
enum Held {
    /// Byte-level vocabularies: the bytes themselves, at most three.
    Bytes(Vec<u8>),
    /// Others, where a token's text depends on its neighbours: the ids since the last complete text.
    Ids { ids: Vec<u32>, prefix: String, prefix_index: usize },
}

impl StreamDecoder {
    /// A decoder at the beginning of a text.
    pub fn new(tokenizer: Arc<TextTokenizer>) -> Self {
        let held = match tokenizer.is_byte_level() {
            true => Held::Bytes(Vec::new()),
            false => Held::Ids { ids: Vec::new(), prefix: String::new(), prefix_index: 0 },
        };
        Self { tokenizer, held }
    }

    /// Takes one id and returns the text that is complete now, often none. Special tokens give no text.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`](crate::error::ModelError::Tokenizer) if the vocabulary's decoder fails.
    pub fn push(&mut self, id: u32) -> Result<String> {
        if self.tokenizer.is_special(id) {
            return Ok(String::new());
        }
        match &mut self.held {
            Held::Bytes(bytes) => {
                bytes.extend(self.tokenizer.token_bytes(id).unwrap_or_default());
                Ok(take_complete(bytes))
            }
            Held::Ids { ids, prefix, prefix_index } => {
                let step = tokenizers::tokenizer::step_decode_stream;
                let text = step(&self.tokenizer.marked, vec![id], true, ids, prefix, prefix_index).map_err(error)?;
                Ok(text.unwrap_or_default())
            }
        }
    }

    /// What is still held at the end of the text, with U+FFFD for an unfinished character.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(&mut self) -> Result<String> {
        match &mut self.held {
            Held::Bytes(bytes) => Ok(String::from_utf8_lossy(&std::mem::take(bytes)).into_owned()),
            Held::Ids { ids, prefix, prefix_index } => {
                let text = self.tokenizer.decode(ids)?;
                let rest = text.strip_prefix(prefix.as_str()).unwrap_or_default().to_owned();
                (*ids, *prefix, *prefix_index) = (Vec::new(), String::new(), 0);
                Ok(rest)
            }
        }
    }
}

/// Takes from `bytes` everything but a character that later bytes may still complete.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    loop {
        let e = match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                rest = &[];
                break;
            }
            Err(e) => e,
        };
        let (valid, after) = rest.split_at(e.valid_up_to());
        text.push_str(&String::from_utf8_lossy(valid));
        rest = after;
        let Some(invalid) = e.error_len() else { break };
        text.push(char::REPLACEMENT_CHARACTER);
        rest = &rest[invalid..];
    }
    let taken = bytes.len() - rest.len();
    bytes.drain(..taken);
    text
}
