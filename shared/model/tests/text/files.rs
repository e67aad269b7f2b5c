use std::fs;
use std::path::Path;

use candle_core::Device;
use e2llm_model::ModelError;
use e2llm_model::gguf::{GgufFile, check_safetensors};

use crate::{GGUF, SAFETENSORS};

#[test]
fn the_real_files_pass() {
    let mut file = GgufFile::open(&GGUF).unwrap();
    assert_eq!(file.metadata().u32("llama.block_count").unwrap(), 30);
    assert_eq!(file.metadata().f32("llama.rope.freq_base").unwrap(), 100_000.0);
    assert_eq!(file.shape("token_embd.weight"), Some(&[49_152, 576][..]));
    let norm = file.tensor("output_norm.weight", &Device::Cpu).unwrap();
    assert_eq!(norm.shape().dims(), [576]);
    check_safetensors(&SAFETENSORS).unwrap();
}

#[test]
fn a_download_cut_short_anywhere_is_bad_weights() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut");
    let (gguf, safe) = (fs::read(&*GGUF).unwrap(), fs::read(&*SAFETENSORS).unwrap());
    for part in [0, 3, 7, 8, 20, 100, 5_000, 1_000_000, 10_000_000] {
        fs::write(&path, &gguf[..part]).unwrap();
        assert!(bad(&path, GgufFile::open(&path)).contains("cut"), "{part}");
        fs::write(&path, &safe[..part]).unwrap();
        bad(&path, check_safetensors(&path));
    }
    fs::write(&path, &gguf[..gguf.len() - 1]).unwrap();
    assert!(bad(&path, GgufFile::open(&path)).contains("tensor"));
}

#[test]
fn a_missing_key_or_tensor_is_named() {
    let mut file = GgufFile::open(&GGUF).unwrap();
    assert!(file.metadata().u32("qwen2.block_count").unwrap_err().to_string().contains("qwen2.block_count"));
    assert!(file.tensor("nope.weight", &Device::Cpu).unwrap_err().to_string().contains("nope.weight"));
}

fn bad<T: std::fmt::Debug>(path: &Path, result: Result<T, ModelError>) -> String {
    let error = result.unwrap_err();
    assert!(matches!(&error, ModelError::BadWeights { path: named, .. } if named == path), "{error}");
    error.to_string()
}
