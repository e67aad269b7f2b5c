//! A tiny BERT, a tiny Llama and one tokenizer for both.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use e2llm_model::template::Frame;
use e2llm_model::{Decoder, TextEncoder, TextTokenizer};
use e2llm_train::run::Models;
use e2llm_train::{Corpus, Document, Task};
use serde_json::json;

use crate::golden::{cases, read, write_checkpoint};

/// Letters as words and as continuations, and a full stop: 57 pieces of the 96 that the models know.
fn write_tokenizer(path: &Path) {
    let mut vocabulary = serde_json::Map::new();
    for token in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "."] {
        vocabulary.insert(token.to_owned(), json!(vocabulary.len()));
    }
    for letter in 'a'..='z' {
        vocabulary.insert(letter.to_string(), json!(vocabulary.len()));
        vocabulary.insert(format!("##{letter}"), json!(vocabulary.len()));
    }
    let special = |id: usize, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let frame = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing", "single": [frame("[CLS]"), text, frame("[SEP]")], "pair": [frame("[CLS]"), text, frame("[SEP]")],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary},
    });
    std::fs::write(path, tokenizer.to_string()).unwrap();
}

/// Fresh models, the same each time.
pub(crate) fn models() -> Models {
    let golden = read("tiny.json");
    let directory = tempfile::tempdir().unwrap();
    let written = |kind: &str, name: &str| {
        write_checkpoint(cases(&golden[kind]).find(|case| case["name"] == name).unwrap(), directory.path());
        std::fs::read_to_string(directory.path().join("config.json")).unwrap()
    };
    let weights = directory.path().join("model.safetensors");
    let config = written("encoders", "bert");
    let encoder = TextEncoder::load(&weights, &config, &Device::Cpu).unwrap();
    let config = written("decoders", "llama");
    let decoder = Decoder::from_safetensors(&[weights], &config, &Device::Cpu).unwrap();
    let path = directory.path().join("tokenizer.json");
    write_tokenizer(&path);
    let tokenizer = Arc::new(TextTokenizer::from_file(&path).unwrap());
    Models {
        encoder: Arc::new(encoder),
        pieces: tokenizer.clone(),
        decoder,
        tokens: tokenizer,
        frame: Frame { prefix: vec![90, 91], suffix: vec![92] },
        bundle: None,
    }
}

/// Pseudo-words, some lines of them.
fn text(seed: usize, words: usize) -> String {
    let word = |i: usize| -> String {
        (0..2 + (i * 7 + seed) % 3).map(|j| char::from(b'a' + ((i * i + 5 * j + 3 * seed) % 26) as u8)).collect()
    };
    let lines: Vec<String> = (0..words).map(|i| word(i) + if i % 9 == 8 { ".\n" } else { " " }).collect();
    lines.concat()
}

/// Documents with abstracts, and a task on each.
pub(crate) fn corpus() -> Corpus {
    let documents =
        (0..4).map(|seed| Document { id: seed.to_string(), text: text(seed, 200), summary: Some(text(seed + 10, 40)) });
    let tasks = (0..4).map(|seed| {
        let context = text(seed, 200);
        let answer = context[300..310].trim().to_owned();
        Task { id: seed.to_string(), context, prompt: "what is said here".to_owned(), answer, evidence: vec![] }
    });
    let mut corpus = Corpus::default();
    corpus.documents.extend(documents);
    corpus.tasks.extend(tasks);
    corpus
}
