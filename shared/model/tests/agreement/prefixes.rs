//! Prompts that begin alike are read once, and nothing but the time says so.

use std::path::Path;

use candle_core::Device;
use e2llm_model::Bundle;
use e2llm_model::cpu::Workspace;
use e2llm_model::generate::{DecoderFiles, Generator, Options, PROMPT_ROWS, Piece};
use e2llm_model::sample::SamplerOptions;

use crate::gguf;

fn generator() -> Generator {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bundles/minilm-smollm2");
    let files = DecoderFiles { weights: vec![gguf()], config: None, tokenizer: None };
    Generator::load(&Bundle::read(&bundle).unwrap(), &files, &Device::Cpu).unwrap()
}

/// A document of 100 soft tokens, and a question.
fn prompt(generator: &Generator, question: &str) -> Vec<Piece> {
    let soft = (0..100 * generator.d_model()).map(|i| ((i * 31 % 97) as f32 - 48.0) / 500.0).collect();
    generator.prompt(vec![Piece::Soft(soft)], question).unwrap()
}

/// The answer, and how many positions of its prompt were read before.
fn answer(generator: &Generator, question: &str) -> (String, usize) {
    let options = Options { max_tokens: 8, sampler: SamplerOptions::default(), stop: Vec::new() };
    let mut sequence = generator.begin(&prompt(generator, question), &options).unwrap();
    let mut work = Workspace::default();
    while sequence.finished().is_none() {
        generator.step(&mut [&mut sequence], PROMPT_ROWS, &mut work).unwrap();
    }
    (sequence.take_text(), sequence.reused())
}

#[test]
fn a_second_question_reads_what_is_new_and_gets_the_same_answer() {
    let (first, second) = ("What is it about?", "Who wrote it, and when?");
    let generator = generator();
    assert_eq!(answer(&generator, first).1, 0);
    let (text, reused) = answer(&generator, second);
    assert_eq!(reused, 64, "one whole page of the template and the document");
    let forgetful = self::generator().with_prefix_bytes(0);
    assert_eq!(answer(&forgetful, first).1, 0);
    assert_eq!(answer(&forgetful, second), (text, 0));

    let choices = ["Yes".to_owned(), "Certainly not".to_owned()];
    let score = |generator: &Generator| generator.score(&prompt(generator, second), &choices).unwrap();
    assert_eq!(score(&generator), score(&forgetful));
}
