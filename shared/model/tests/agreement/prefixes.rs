//! Answers in one batch: prompts that begin alike are read once, and nothing but the time says so; what goes wrong in one is its own.

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

#[test]
fn what_goes_wrong_in_one_answer_stops_no_other() {
    let generator = generator();
    let options = |sampler| Options { max_tokens: 4, sampler, stop: Vec::new() };
    let question = prompt(&generator, "What is it about?");
    // Its logits are no numbers, and nothing can be drawn by them.
    let damaged =
        generator.prompt(vec![Piece::Soft(vec![f32::NAN; generator.d_model()])], "What is it about?").unwrap();
    let sampler = SamplerOptions { temperature: 1.0, ..SamplerOptions::default() };
    let mut bad = generator.begin(&damaged, &options(sampler)).unwrap();
    let mut good = generator.begin(&question, &options(SamplerOptions::default())).unwrap();
    let (mut work, mut failure) = (Workspace::default(), None);
    while good.finished().is_none() {
        let mut batch: Vec<_> =
            [&mut bad, &mut good].into_iter().filter(|sequence| sequence.finished().is_none()).collect();
        generator.step(&mut batch, PROMPT_ROWS, &mut work).unwrap();
        failure = failure.or(bad.take_failure());
    }
    assert!(failure.is_some(), "the fault did not fire");
    let alone = answer(&generator, "What is it about?").0;
    assert!(alone.starts_with(&good.take_text()), "{alone:?}");
}
