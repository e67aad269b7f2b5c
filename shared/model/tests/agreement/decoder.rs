//! SmolLM2-135M-Instruct from its GGUF against transformers on the dequantised weights.

use std::sync::LazyLock;

use candle_core::{DType, Device, Tensor};
use e2llm_model::gguf::GgufFile;
use e2llm_model::ops::log_likelihoods;
use e2llm_model::{Decoder, KvCache, Packing, TextTokenizer};
use serde_json::Value;

use crate::golden::{cases, floats, ids, read, size, soft_rows, text};
use crate::{assert_close, gguf};

/// Weights expanded to f32: what the reference computes with.
static DENSE: LazyLock<Decoder> =
    LazyLock::new(|| Decoder::from_gguf(&gguf(), &Device::Cpu).unwrap().into_dense(DType::F32).unwrap());
/// Differences that quantised activations make; llama.cpp's own are as large.
const QUANTISED: f32 = 0.6;

fn last_logits(decoder: &Decoder, input: &Tensor) -> Vec<f32> {
    let rows = input.dim(0).unwrap();
    let hidden = decoder.hidden(input, &Packing::sequences(&[rows])).unwrap();
    decoder
        .logits(&hidden.narrow(0, rows - 1, 1).unwrap().contiguous().unwrap())
        .unwrap()
        .get(0)
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[track_caller]
fn check_next(name: &str, logits: &[f32], next: &Value, tolerance: f32) {
    let ours: Vec<f32> = ids(&next["ids"]).iter().map(|id| logits[*id as usize]).collect();
    assert_close(name, &ours, &floats(&next["logits"]), tolerance);
}

#[test]
fn next_token_logits_and_likelihoods() {
    for prompt in cases(&read("decoder.json")["prompts"]) {
        let (name, sequence) = (text(prompt, "name"), ids(&prompt["ids"]));
        let input = DENSE.embed(&sequence).unwrap();
        check_next(name, &last_logits(&DENSE, &input), &prompt["next"], 2e-3);
        let expected = floats(&prompt["log_likelihood"]);
        if expected.is_empty() {
            continue;
        }
        let hidden = DENSE.hidden(&input, &Packing::sequences(&[sequence.len()])).unwrap();
        let logits = DENSE.logits(&hidden.narrow(0, 0, expected.len()).unwrap().contiguous().unwrap()).unwrap();
        assert_close(name, &log_likelihoods(&logits, &sequence[1..]).unwrap(), &expected, 5e-3);
    }
}

#[test]
fn soft_tokens_in_the_middle_of_a_prompt() {
    let golden = read("decoder.json");
    let width = DENSE.config().d_model;
    for case in cases(&golden["mixed"]) {
        let prompt = cases(&golden["prompts"]).find(|p| p["name"] == case["prompt"]).unwrap();
        let (sequence, start, end) = (ids(&prompt["ids"]), size(case, "start"), size(case, "end"));
        let mut input =
            vec![Tensor::from_vec(soft_rows(end - start, width), (end - start, width), &Device::Cpu).unwrap()];
        if start > 0 {
            input.insert(0, DENSE.embed(&sequence[..start]).unwrap());
        }
        if end < sequence.len() {
            input.push(DENSE.embed(&sequence[end..]).unwrap());
        }
        check_next("mixed", &last_logits(&DENSE, &Tensor::cat(&input, 0).unwrap()), &case["next"], 2e-3);
    }
}

#[test]
fn quantised_weights_stay_within_what_quantised_activations_cost() {
    let decoder = Decoder::from_gguf(&gguf(), &Device::Cpu).unwrap();
    for prompt in cases(&read("decoder.json")["prompts"]) {
        let input = decoder.embed(&ids(&prompt["ids"])).unwrap();
        check_next(text(prompt, "name"), &last_logits(&decoder, &input), &prompt["next"], QUANTISED);
    }
}

#[test]
fn greedy_chat_answers() {
    let file = GgufFile::open(&gguf()).unwrap();
    let tokenizer = TextTokenizer::from_gguf(file.metadata()).unwrap();
    let end = tokenizer.eos().unwrap();
    for chat in cases(&read("decoder.json")["chats"]) {
        let expected = ids(&chat["continuation"]);
        let prompt = ids(&chat["ids"]);
        let mut cache =
            KvCache::new(DENSE.config(), prompt.len() + expected.len() + 1, DType::F32, &Device::Cpu).unwrap();
        let (mut next, mut written) = (prompt, Vec::new());
        while written.len() < expected.len() {
            let hidden = DENSE.extend(&DENSE.embed(&next).unwrap(), &mut cache).unwrap();
            let last = hidden.narrow(0, next.len() - 1, 1).unwrap().contiguous().unwrap();
            let token = DENSE.logits(&last).unwrap().get(0).unwrap().argmax(0).unwrap().to_scalar::<u32>().unwrap();
            if token == end {
                break;
            }
            written.push(token);
            next = vec![token];
        }
        assert_eq!(written, expected, "{}", chat["name"]);
    }
}
