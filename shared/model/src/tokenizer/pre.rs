//! A byte-level BPE tokenizer from GGUF metadata.
//!
//! GGUF names the way a text is cut into words (`tokenizer.ggml.pre`) but does not spell it out; the patterns below are
//! those of llama.cpp's `llama-vocab.cpp`, checked against the models' own `tokenizer.json` where they differ.

use std::collections::HashMap;
use std::sync::LazyLock;

use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer};

use super::error;
use crate::error::{ModelError, Result};
use crate::gguf::GgufMetadata;

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GGUF's token types that are not ordinary text (llama.cpp's `llama_token_type`).
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// How one family cuts text into words before merging.
struct Family {
    pre_tokenizer: PreTokenizerWrapper,
    /// A word that is a token as a whole is taken as it is.
    ignore_merges: bool,
    /// The model's own `tokenizer.json` composes characters first.
    nfc: bool,
    /// Whether a BOS is added when the file does not say.
    adds_bos: bool,
}

impl Family {
    fn new(pre: &str) -> Result<Self> {
        let family = |steps: Vec<PreTokenizerWrapper>| Self {
            pre_tokenizer: Sequence::new(steps).into(),
            ignore_merges: false,
            nfc: false,
            adds_bos: false,
        };
        Ok(match pre {
            "smollm" => family(vec![Digits::new(true).into(), split(GPT2)?, bytes()]),
            "gpt-2" => family(vec![split(GPT2)?, bytes()]),
            "default" => family(vec![
                split(r"[\p{P}\$\+<=>\^~\|]+")?,
                split(GPT2)?,
                split(r"\p{N}+")?,
                split("[0-9][0-9][0-9]")?,
                bytes(),
            ]),
            "qwen2" | "deepseek-r1-qwen" => Self { nfc: true, ..family(vec![split(QWEN2)?, bytes()]) },
            "llama-bpe" | "llama3" | "llama-v3" => {
                Self { ignore_merges: true, adds_bos: true, ..family(vec![split(LLAMA3)?, bytes()]) }
            }
            "smaug-bpe" => family(vec![split(LLAMA3)?, bytes()]),
            "tekken" => Self { ignore_merges: true, adds_bos: true, ..family(vec![split(TEKKEN)?, bytes()]) },
            other => {
                return Err(ModelError::Tokenizer(format!(
                    "tokenizer.ggml.pre = {other:?} is not supported; put the model's tokenizer.json beside the file"
                )));
            }
        })
    }
}

/// The tokenizer that `metadata` describes.
pub(super) fn build(metadata: &GgufMetadata) -> Result<Tokenizer> {
    let kind = metadata.str("tokenizer.ggml.model")?;
    if kind != "gpt2" {
        return Err(ModelError::Tokenizer(format!(
            "tokenizer.ggml.model = {kind:?} is not supported (only byte-level BPE, \"gpt2\"); put the model's tokenizer.json \
             beside the file"
        )));
    }
    // Files from before the key existed: llama.cpp falls back to "default" too.
    let family = Family::new(metadata.opt_str("tokenizer.ggml.pre").unwrap_or("default"))?;
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    let mut tokenizer = Tokenizer::new(bpe(metadata, &tokens, family.ignore_merges)?);
    if family.nfc {
        tokenizer.with_normalizer(Some(NFC)).map_err(error)?;
    }
    tokenizer.with_pre_tokenizer(Some(family.pre_tokenizer));
    tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
    tokenizer.add_tokens(added_tokens(metadata, &tokens)?).map_err(error)?;

    let adds_bos = metadata.opt_bool("tokenizer.ggml.add_bos_token").unwrap_or(family.adds_bos);
    let bos = metadata.opt_u32("tokenizer.ggml.bos_token_id").filter(|_| adds_bos);
    if let Some(id) = bos {
        let token = tokens
            .get(id as usize)
            .ok_or_else(|| metadata.bad(format!("bos_token_id = {id} is not in the vocabulary")))?;
        tokenizer.with_post_processor(Some(bos_frame(token, id)?));
    }
    Ok(tokenizer)
}

fn bpe(metadata: &GgufMetadata, tokens: &[&str], ignore_merges: bool) -> Result<BPE> {
    let vocab: HashMap<String, u32> = tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), id)).collect();
    let mut merges = Vec::new();
    for merge in metadata.strings("tokenizer.ggml.merges")? {
        // A merge may begin with a space only as half of the separator, never as text: byte-level text has none.
        let pair = merge.split_once(' ').filter(|(a, b)| vocab.contains_key(&format!("{a}{b}")));
        let (a, b) = pair.ok_or_else(|| metadata.bad(format!("merge {merge:?} makes no token of the vocabulary")))?;
        merges.push((a.to_owned(), b.to_owned()));
    }
    let vocab: tokenizers::models::bpe::Vocab = vocab.into_iter().collect();
    BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignore_merges).build().map_err(error)
}

/// Control tokens as special ones, user-defined tokens as ordinary added ones.
fn added_tokens(metadata: &GgufMetadata, tokens: &[&str]) -> Result<Vec<AddedToken>> {
    let kinds = metadata.opt_integers("tokenizer.ggml.token_type")?.unwrap_or_default();
    let of_kind = kinds.iter().zip(tokens).filter_map(|(kind, token)| match *kind {
        UNKNOWN | CONTROL => Some(AddedToken::from((*token).to_owned(), true)),
        USER_DEFINED => Some(AddedToken::from((*token).to_owned(), false).normalized(false)),
        _ => None,
    });
    let named =
        ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"].iter().filter_map(|key| metadata.opt_u32(key));
    let named = named.filter_map(|id| tokens.get(id as usize)).map(|token| AddedToken::from((*token).to_owned(), true));
    Ok(of_kind.chain(named).filter(|token| !token.content.is_empty()).collect())
}

fn bos_frame(token: &str, id: u32) -> Result<TemplateProcessing> {
    TemplateProcessing::builder()
        .try_single(vec![token.to_owned(), "$A".to_owned()])
        .map_err(ModelError::Tokenizer)?
        .special_tokens(vec![(token.to_owned(), id)])
        .build()
        .map_err(|e| ModelError::Tokenizer(e.to_string()))
}

fn split(pattern: &str) -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(error)?.into())
}

/// Bytes to printable characters, without a leading space and without a pattern of its own.
fn bytes() -> PreTokenizerWrapper {
    ByteLevel::new(false, false, false).into()
}

/// GPT-2's printable stand-in for each byte: itself where it is printable Latin-1, else the next free character from
/// U+0100 on.
static BYTE_OF: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let hidden = (0..=u8::MAX).filter(|byte| !printable(*byte)).zip('\u{100}'..).map(|(byte, c)| (c, byte));
    (0..=u8::MAX).filter(|byte| printable(*byte)).map(|byte| (char::from(byte), byte)).chain(hidden).collect()
});

/// The bytes that a byte-level token spells; `None` if it has a character that stands for no byte.
pub(super) fn token_bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(|c| BYTE_OF.get(&c).copied()).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::Value;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn words(pre: &str, text: &str) -> Vec<String> {
        let mut split = PreTokenizedString::from(text);
        Family::new(pre).unwrap().pre_tokenizer.pre_tokenize(&mut split).unwrap();
        let words = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        words.into_iter().map(|(word, ..)| String::from_utf8(token_bytes(word).unwrap()).unwrap()).collect()
    }

    fn strings(values: &[&str]) -> Value {
        Value::Array(values.iter().map(|value| Value::String((*value).to_owned())).collect())
    }

    fn metadata(kind: &str, pre: &str, merges: &[&str]) -> GgufMetadata {
        GgufMetadata::from_values([
            ("tokenizer.ggml.model", Value::String(kind.to_owned())),
            ("tokenizer.ggml.pre", Value::String(pre.to_owned())),
            ("tokenizer.ggml.tokens", strings(&["<s>", "a", "b", "ab", "<|x|>", "<", "|", "x", ">"])),
            ("tokenizer.ggml.token_type", Value::Array([3, 1, 1, 1, 4, 1, 1, 1, 1].map(Value::I32).to_vec())),
            ("tokenizer.ggml.merges", strings(merges)),
            ("tokenizer.ggml.bos_token_id", Value::U32(0)),
        ])
    }

    #[test]
    fn every_byte_has_its_own_character() {
        let mut bytes: Vec<u8> = BYTE_OF.values().copied().collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(token_bytes("ĠthÃ©Ċ").unwrap(), " thé\n".as_bytes());
        assert_eq!(token_bytes("日"), None);
    }

    #[test]
    fn families_cut_numbers_contractions_and_space_as_llama_cpp_does() {
        let text = "Hello'Ve it's 12345\n\n  foo";
        let expected = [
            ("smollm", vec!["Hello", "'", "Ve", " it", "'s", " ", "1", "2", "3", "4", "5", "\n\n ", " foo"]),
            ("gpt-2", vec!["Hello", "'", "Ve", " it", "'s", " 12345", "\n\n ", " foo"]),
            ("qwen2", vec!["Hello", "'Ve", " it", "'s", " ", "1", "2", "3", "4", "5", "\n\n", " ", " foo"]),
            ("llama-bpe", vec!["Hello", "'Ve", " it", "'s", " ", "123", "45", "\n\n", " ", " foo"]),
            ("default", vec!["Hello", "'", "Ve", " it", "'", "s", " ", "123", "45", "\n\n ", " foo"]),
        ];
        for (pre, expected) in expected {
            assert_eq!(words(pre, text), expected, "{pre}");
        }
    }

    #[test]
    fn token_types_and_the_families_bos_are_honoured() {
        let tokenizer = super::super::TextTokenizer::from_gguf(&metadata("gpt2", "llama-bpe", &["a b"])).unwrap();
        assert_eq!(tokenizer.encode("<s>ab<|x|>", true).unwrap(), [0, 0, 3, 4]);
        assert_eq!(tokenizer.encode("ab", false).unwrap(), [3]);
        assert_eq!(tokenizer.encode_plain("ab<|x|>").unwrap(), [3, 4]);
        assert!(!tokenizer.encode_plain("<s>").unwrap().contains(&0));
        assert!(tokenizer.is_special(0) && !tokenizer.is_special(4));
    }

    #[test]
    fn what_is_not_supported_is_named_with_the_remedy() {
        let refused = |metadata| build(&metadata).unwrap_err().to_string();
        for error in [refused(metadata("llama", "default", &[])), refused(metadata("gpt2", "klingon", &[]))] {
            assert!(error.contains("not supported") && error.contains("tokenizer.json"), "{error}");
        }
    }

    #[test]
    fn a_merge_outside_the_vocabulary_is_bad_weights() {
        for merge in ["a a", "ab", ""] {
            let error = build(&metadata("gpt2", "smollm", &[merge])).unwrap_err();
            assert!(matches!(error, ModelError::BadWeights { .. }), "{error}");
        }
    }
}
