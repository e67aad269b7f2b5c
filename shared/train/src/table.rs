//! The word-piece table: decoder embeddings of the encoder's vocabulary.

use candle_core::Tensor;
use e2llm_model::{Decoder, TextTokenizer};

use crate::error::Result;

/// Decoder embedding of every word piece of `encoder`, `[pieces, d_model]`, f32: the mean over the decoder tokens of
/// its text (a leading space for a word's first piece).
pub fn word_piece_table(
    encoder: &TextTokenizer,
    decoder_tokenizer: &TextTokenizer,
    decoder: &Decoder,
) -> Result<Tensor> {
    let width = decoder.config().d_model;
    let mut table = Vec::with_capacity(encoder.vocab_size() * width);
    for id in 0..encoder.vocab_size() as u32 {
        let piece = encoder.token(id).unwrap_or_default();
        let text = piece.strip_prefix("##").map_or_else(|| format!(" {piece}"), str::to_owned);
        let tokens = decoder_tokenizer.encode_plain(&text)?;
        if tokens.is_empty() || encoder.is_special(id) {
            table.extend(std::iter::repeat_n(0.0, width));
        } else {
            table.extend(decoder.embed(&tokens)?.mean(0)?.to_vec1::<f32>()?);
        }
    }
    Ok(Tensor::from_vec(table, (encoder.vocab_size(), width), decoder.device())?)
}
