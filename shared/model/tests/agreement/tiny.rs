//! Tiny random checkpoints of Llama, Mistral, Qwen2 and Qwen3 shape against transformers.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use e2llm_model::{Decoder, KvCache, Packing};
use serde_json::Value;

use crate::assert_close;
use crate::golden::{cases, floats, ids, read, size, soft_rows, text, write_checkpoint};

/// The decoder of a tiny case.
pub(crate) fn load(case: &Value) -> Decoder {
    let directory = tempfile::tempdir().unwrap();
    write_checkpoint(case, directory.path());
    let config = std::fs::read_to_string(directory.path().join("config.json")).unwrap();
    let weights: Vec<PathBuf> = vec![directory.path().join("model.safetensors")];
    Decoder::from_safetensors(&weights, &config, &Device::Cpu).unwrap()
}

/// The prompt's embeddings with the soft stretch replaced by the formula's rows.
pub(crate) fn mixed_input(decoder: &Decoder, golden: &Value) -> Tensor {
    let prompt = ids(&golden["prompt"]);
    let (start, end) = (size(&golden["soft"], "start"), size(&golden["soft"], "end"));
    let width = decoder.config().d_model;
    let soft = Tensor::from_vec(soft_rows(end - start, width), (end - start, width), &Device::Cpu).unwrap();
    let part = |range: &[u32]| decoder.embed(range).unwrap();
    Tensor::cat(&[part(&prompt[..start]), soft, part(&prompt[end..])], 0).unwrap()
}

fn row(logits: &Tensor, index: usize) -> Vec<f32> {
    logits.get(index).unwrap().to_vec1().unwrap()
}

#[test]
fn logits_of_every_family_with_tokens_and_with_soft_tokens() {
    let golden = read("tiny.json");
    let prompt = ids(&golden["prompt"]);
    for case in cases(&golden["decoders"]) {
        let decoder = load(case);
        let packing = Packing::sequences(&[prompt.len()]);
        let logits = |input: &Tensor| decoder.logits(&decoder.hidden(input, &packing).unwrap()).unwrap();
        let plain = logits(&decoder.embed(&prompt).unwrap());
        for (field, index) in [("first", 0), ("middle", 11), ("last", 23)] {
            let name = format!("{} {field}", text(case, "name"));
            assert_close(&name, &row(&plain, index), &floats(&case[field]), 2e-4);
        }
        let mixed = logits(&mixed_input(&decoder, &golden));
        assert_close(text(case, "name"), &row(&mixed, 23), &floats(&case["mixed_last"]), 2e-4);
    }
}

#[test]
fn a_sequence_reads_the_same_beside_another_one() {
    let golden = read("tiny.json");
    let prompt = ids(&golden["prompt"]);
    for case in cases(&golden["decoders"]) {
        let decoder = load(case);
        let one = decoder.hidden(&decoder.embed(&prompt).unwrap(), &Packing::sequences(&[24])).unwrap();
        let both: Vec<u32> = prompt[..7].iter().chain(&prompt).copied().collect();
        let packed = decoder.hidden(&decoder.embed(&both).unwrap(), &Packing::sequences(&[7, 24])).unwrap();
        let alone = one.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let beside = packed.narrow(0, 7, 24).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_close(text(case, "name"), &beside, &alone, 1e-5);
    }
}

#[test]
fn greedy_continuations_through_the_cache() {
    let golden = read("tiny.json");
    let prompt = ids(&golden["prompt"]);
    for case in cases(&golden["decoders"]) {
        let decoder = load(case);
        let mut cache = KvCache::new(decoder.config(), 40, DType::F32, &Device::Cpu).unwrap();
        // The prompt in two parts, so that the cache is extended by more than one row too.
        let mut next = prompt[..10].to_vec();
        let mut rest = prompt[10..].to_vec();
        let mut written = Vec::new();
        while written.len() < 16 {
            let hidden = decoder.extend(&decoder.embed(&next).unwrap(), &mut cache).unwrap();
            if !rest.is_empty() {
                next = std::mem::take(&mut rest);
                continue;
            }
            let last = hidden.narrow(0, next.len() - 1, 1).unwrap().contiguous().unwrap();
            let token =
                decoder.logits(&last).unwrap().squeeze(0).unwrap().argmax(0).unwrap().to_scalar::<u32>().unwrap();
            written.push(token);
            next = vec![token];
        }
        assert_eq!(written, ids(&case["continuation"]), "{}", text(case, "name"));
    }
}
