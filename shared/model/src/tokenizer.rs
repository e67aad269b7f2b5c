//! Text to token ids and back, from a `tokenizer.json` or from GGUF metadata.
//!
//! Two ways in, and the difference is a security boundary:
//! - [`TextTokenizer::encode_plain`] is for every text that somebody else wrote: documents, questions, instructions. A
//!   `<|im_start|>` in it is eleven ordinary characters and can never open a chat turn.
//! - [`TextTokenizer::encode`] recognises special tokens and is only for markup that the model's own chat template made.
//!
//! Truncation and padding that a `tokenizer.json` asks for are switched off: the caller decides what fits (all-MiniLM's
//! file would otherwise cut every text at 128 tokens without a word).

mod pre;
mod stream;

use std::collections::BTreeSet;
use std::path::Path;

use tokenizers::models::ModelWrapper;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::error::{ModelError, Result};
use crate::gguf::GgufMetadata;
pub use stream::StreamDecoder;

/// Names under which the model families end a turn or a text; a special token so named stops generation.
const STOP_TOKENS: [&str; 9] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
];

/// A tokenizer: cheap to share behind an `Arc`, safe to use from many threads.
pub struct TextTokenizer {
    /// Recognises special tokens: for the model's own markup.
    marked: Tokenizer,
    /// The same vocabulary, blind to special tokens: for everybody else's text.
    plain: Tokenizer,
    specials: BTreeSet<u32>,
    unknown: Option<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    splits_at_spaces: bool,
}

/// One token of a text: its id, the bytes it stands for, and the word it is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Token id.
    pub id: u32,
    /// First byte in the text.
    pub start: usize,
    /// One past its last byte.
    pub end: usize,
    /// Number of the pre-tokenizer's word within the text, counting from 0.
    pub word: u32,
}

impl TextTokenizer {
    /// Reads a Hugging Face `tokenizer.json`.
    ///
    /// # Errors
    /// [`ModelError::Io`] if the file cannot be read, [`ModelError::BadWeights`] if it is no tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(ModelError::io(path))?;
        let tokenizer = Tokenizer::from_bytes(&bytes)
            .map_err(|e| ModelError::bad_weights(path, format!("not a tokenizer.json: {e}")))?;
        Self::new(tokenizer, None, None)
    }

    /// Builds the tokenizer that a GGUF file describes (`tokenizer.ggml.*`).
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] if keys are missing or contradict each other; [`ModelError::Tokenizer`] for a kind that
    /// is not supported (SentencePiece, or an unknown pre-tokenizer).
    pub fn from_gguf(metadata: &GgufMetadata) -> Result<Self> {
        let tokenizer = pre::build(metadata)?;
        let bos = metadata.opt_u32("tokenizer.ggml.bos_token_id");
        let eos = metadata.opt_u32("tokenizer.ggml.eos_token_id");
        Self::new(tokenizer, bos, eos)
    }

    fn new(mut marked: Tokenizer, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        marked.with_truncation(None).map_err(error)?;
        marked.with_padding(None);
        marked.set_encode_special_tokens(false);
        let mut plain = marked.clone();
        plain.set_encode_special_tokens(true);

        let added: Vec<(u32, AddedToken)> = marked.get_added_tokens_decoder().into_iter().collect();
        let specials = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let unknown = unknown_token(marked.get_model()).and_then(|token| marked.token_to_id(&token));
        let splits_at_spaces = splits_at_spaces(&marked);
        Ok(Self { marked, plain, specials, unknown, bos, eos, splits_at_spaces })
    }

    /// Ids of trusted markup: special tokens in `text` become themselves; `framed` adds what the model's post-processor
    /// puts around a text (`[CLS]` … `[SEP]`, or a BOS).
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the vocabulary cannot express the text and has no unknown token.
    pub fn encode(&self, text: &str, framed: bool) -> Result<Vec<u32>> {
        let encoding = self.marked.encode_fast(text, framed).map_err(error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Ids of untrusted text: never a special token (other than the unknown token), nothing added around it.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.plain.encode_fast(text, false).map_err(error)?;
        Ok(self.without_specials(encoding.get_ids()))
    }

    /// Ids of untrusted text inside the model's own frame, `[CLS] text [SEP]`: what an encoder reads.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_framed(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.plain.encode_fast(text, true).map_err(error)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Like [`encode_plain`](Self::encode_plain), with the byte range and the word of every token.
    ///
    /// Bytes that the tokenizer drops (white space and control characters in BERT) are in no range; the byte tokens of
    /// one character all carry the whole character's range.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_offsets(&self, text: &str) -> Result<Vec<Piece>> {
        let encoding = self.plain.encode(text, false).map_err(error)?;
        let offsets = encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_word_ids());
        let pieces = offsets.map(|((&id, &(start, end)), word)| Piece { id, start, end, word: word.unwrap_or(0) });
        Ok(pieces.filter(|piece| !self.is_control(piece.id)).collect())
    }

    /// Number of ids that [`encode_plain`](Self::encode_plain) gives.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn count(&self, text: &str) -> Result<usize> {
        let encoding = self.plain.encode_fast(text, false).map_err(error)?;
        Ok(encoding.get_ids().iter().filter(|id| !self.is_control(**id)).count())
    }

    /// Text of `ids` without special tokens. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`ModelError::Tokenizer`] if the decoder refuses the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.marked.decode(ids, true).map_err(error)
    }

    /// Whether `id` is a special token (markup, never text).
    pub fn is_special(&self, id: u32) -> bool {
        self.specials.contains(&id)
    }

    /// Id of a token by its exact text.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.marked.token_to_id(token)
    }

    /// Text of a token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.marked.id_to_token(id)
    }

    /// Number of ids, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.marked.get_vocab_size(true)
    }

    /// Beginning-of-text token, where the file names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// End-of-text or end-of-turn token, where the file names one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Every id that ends generation: the file's own and the special tokens with a well-known ending name, ascending.
    pub fn stop_ids(&self) -> Vec<u32> {
        let named = STOP_TOKENS.iter().filter_map(|token| self.token_id(token)).filter(|id| self.is_special(*id));
        let ids: BTreeSet<u32> = named.chain(self.eos).collect();
        ids.into_iter().collect()
    }

    /// Whether the words of a text depend only on what stands between two spaces: true of BERT's tokenizers, which also drop
    /// the spaces themselves; a cut between words then changes no token.
    pub fn splits_at_spaces(&self) -> bool {
        self.splits_at_spaces
    }

    /// Whether the special token `id` would be markup in somebody's text; the unknown token is not.
    fn is_control(&self, id: u32) -> bool {
        self.is_special(id) && Some(id) != self.unknown
    }

    /// A vocabulary can spell a special token by ordinary merges; such ids do not pass either.
    fn without_specials(&self, ids: &[u32]) -> Vec<u32> {
        ids.iter().copied().filter(|id| !self.is_control(*id)).collect()
    }

    /// Bytes of a token of a byte-level vocabulary; `None` for other kinds of vocabulary and for unknown ids.
    fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        Some(pre::token_bytes(&token).unwrap_or_else(|| token.into_bytes()))
    }

    fn is_byte_level(&self) -> bool {
        matches!(self.marked.get_decoder(), Some(DecoderWrapper::ByteLevel(_)))
    }
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn splits_at_spaces(tokenizer: &Tokenizer) -> bool {
    let normalizes_characters = matches!(tokenizer.get_normalizer(), None | Some(NormalizerWrapper::BertNormalizer(_)));
    let pre_tokenizer = tokenizer.get_pre_tokenizer();
    let all_special = tokenizer.get_added_tokens_decoder().values().all(|token| token.special);
    normalizes_characters && matches!(pre_tokenizer, Some(PreTokenizerWrapper::BertPreTokenizer(_))) && all_special
}

fn unknown_token(model: &ModelWrapper) -> Option<String> {
    match model {
        ModelWrapper::WordPiece(model) => Some(model.unk_token.clone()),
        ModelWrapper::WordLevel(model) => Some(model.unk_token.clone()),
        ModelWrapper::BPE(model) => model.get_unk_token().clone(),
        // The library does not say which; every published Unigram vocabulary calls it this.
        ModelWrapper::Unigram(_) => Some("<unk>".to_owned()),
    }
}

fn error(e: tokenizers::Error) -> ModelError {
    ModelError::Tokenizer(e.to_string())
}
