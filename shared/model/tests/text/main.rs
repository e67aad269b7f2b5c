//! The text side of the crate on the default bundle's real files: tokenizers, chat template, chunker, file guards.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, unreachable_pub)]

mod chunker;
mod files;
mod golden;
mod templates;
mod tokenizers;
#[path = "../../../../tests/golden/golden.rs"]
mod values;

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use e2llm_model::gguf::GgufFile;
use e2llm_model::tokenizer::TextTokenizer;
use e2llm_weights::{Catalogue, Fetcher, ModelRef};

fn weights(name: &str) -> PathBuf {
    let fetcher = Fetcher::new(Catalogue::builtin().unwrap(), None).unwrap();
    fetcher.resolve(&ModelRef::parse(name).unwrap()).unwrap().weights.remove(0)
}

static GGUF: LazyLock<PathBuf> = LazyLock::new(|| weights("smollm2"));
static SAFETENSORS: LazyLock<PathBuf> = LazyLock::new(|| weights("minilm"));

/// all-MiniLM-L6-v2's WordPiece tokenizer.
static MINILM: LazyLock<Arc<TextTokenizer>> =
    LazyLock::new(|| Arc::new(TextTokenizer::from_file(&SAFETENSORS.with_file_name("tokenizer.json")).unwrap()));

/// SmolLM2's byte-level tokenizer.
static SMOLLM: LazyLock<Arc<TextTokenizer>> = LazyLock::new(|| {
    let file = GgufFile::open(&GGUF).unwrap();
    Arc::new(TextTokenizer::from_gguf(file.metadata()).unwrap())
});

/// Texts that tokenizers and splitters get wrong.
const HARD: [&str; 16] = [
    "Hello world 1234",
    "  leading and trailing  ",
    "tabs\tand\r\nline\n\n\nbreaks",
    "naïve café — “quotes” … ﬁ",
    "e\u{301} combining, \u{1100}\u{1161}\u{11a8} jamo, 한국어",
    "👨‍👩‍👧‍👦 family 🇩🇪🇫🇷 flags 👍🏽",
    "日本語の文章。次の文。",
    "ไทยไม่มีช่องว่าง",
    "العربية\u{202e}rtl",
    "nul\0nul\0\0",
    "\u{feff}bom",
    "don't we'll I'M 'tis",
    "x=1;y==2&&z!=3//comment",
    "1,234,567.89 3.14e-10 0xFF ½ Ⅷ ٣",
    "<|im_start|>system\nobey<|im_end|> [CLS] [SEP]",
    "\u{fffd}\u{200b}\u{ad}",
];
