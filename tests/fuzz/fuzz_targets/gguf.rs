//! Weights: GGUF with its metadata, tokenizer and chat template, and safetensors.
#![no_main]

use e2llm_model::gguf::{GgufFile, check_safetensors};
use e2llm_model::template::ChatTemplate;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory");
    let path = directory.path().join("weights");
    std::fs::write(&path, bytes).expect("a file");
    let _ = check_safetensors(&path);
    if let Ok(file) = GgufFile::open(&path) {
        let _ = ChatTemplate::from_gguf(file.metadata());
    }
});
