//! all-MiniLM-L6-v2 and tiny BERTs against transformers.

use candle_core::Device;
use e2llm_model::{TextEncoder, TextTokenizer, TokenStates, chunk_vectors};
use serde_json::Value;

use crate::golden::{cases, floats, ids, read, size, text, write_checkpoint};
use crate::{assert_close, model};

fn minilm() -> (TextEncoder, TextTokenizer) {
    let files = model("minilm");
    let config = std::fs::read_to_string(files.config.unwrap()).unwrap();
    let encoder = TextEncoder::load(&files.weights[0], &config, &Device::Cpu).unwrap();
    (encoder, TextTokenizer::from_file(&files.tokenizer.unwrap()).unwrap())
}

fn check_states(case: &Value, states: &TokenStates, start: usize, dimensions: usize) {
    for (field, tensor, tolerance) in [("embeddings", &states.first, 2e-5), ("last_hidden", &states.last, 2e-5)] {
        for (position, expected) in ids(&case["positions"]).iter().zip(cases(&case[field])) {
            let row = tensor.get(start + *position as usize).unwrap().to_vec1::<f32>().unwrap();
            assert_close(&format!("{field} {position}"), &row[..dimensions], &floats(expected), tolerance);
        }
    }
}

#[test]
fn vectors_and_states_of_minilm_alone_and_in_one_batch() {
    let golden = read("encoder.json");
    let dimensions = size(&golden, "dimensions");
    let (encoder, tokenizer) = minilm();
    let mut sequences = Vec::new();
    for case in cases(&golden["cases"]) {
        let sequence = tokenizer.encode_framed(text(case, "text")).unwrap();
        assert_eq!(sequence, ids(&case["ids"]), "{:?}", case["text"]);
        let states = encoder.states(std::slice::from_ref(&sequence)).unwrap();
        check_states(case, &states, 0, dimensions);
        assert_close("vector", &chunk_vectors(&states).unwrap()[0], &floats(&case["vector"]), 2e-6);
        sequences.push(sequence);
    }
    let states = encoder.states(&sequences).unwrap();
    let vectors = chunk_vectors(&states).unwrap();
    let mut start = 0;
    for ((case, sequence), vector) in cases(&golden["cases"]).zip(&sequences).zip(vectors) {
        check_states(case, &states, start, dimensions);
        assert_close("batched vector", &vector, &floats(&case["vector"]), 2e-6);
        start += sequence.len();
    }
}

#[test]
fn tiny_berts_with_other_activations_epsilons_and_name_prefixes() {
    for case in cases(&read("tiny.json")["encoders"]) {
        let directory = tempfile::tempdir().unwrap();
        write_checkpoint(case, directory.path());
        let config = std::fs::read_to_string(directory.path().join("config.json")).unwrap();
        let encoder = TextEncoder::load(&directory.path().join("model.safetensors"), &config, &Device::Cpu).unwrap();
        let sequences: Vec<Vec<u32>> = cases(&case["ids"]).map(ids).collect();
        let states = encoder.states(&sequences).unwrap();
        let all = |tensor: &candle_core::Tensor, rows: usize, start: usize| {
            tensor.narrow(0, start, rows).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let name = text(case, "name");
        assert_close(name, &all(&states.first, 24, 0), &floats(&case["embeddings"]), 1e-5);
        let mut start = 0;
        for (sequence, expected) in sequences.iter().zip(cases(&case["last_hidden"])) {
            assert_close(name, &all(&states.last, sequence.len(), start), &floats(expected), 2e-5);
            start += sequence.len();
        }
        for (vector, expected) in chunk_vectors(&states).unwrap().iter().zip(cases(&case["vectors"])) {
            assert_close(name, vector, &floats(expected), 1e-5);
        }
    }
}
