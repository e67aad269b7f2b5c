//! Reads the golden files and rebuilds the tiny checkpoints that they describe.
//!
//! Included by tests with `#[path = "../../../tests/golden/golden.rs"] mod golden;`. `README.md` beside this file
//! describes every field.

#![allow(dead_code, reason = "each test includes the whole module and uses a part")]

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

/// A golden file by name, parsed.
pub(crate) fn read(name: &str) -> Value {
    let path = directory().join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn directory() -> PathBuf {
    // Two levels up from every member of the workspace.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// A list of numbers.
pub(crate) fn floats(value: &Value) -> Vec<f32> {
    let list = value.as_array().expect("a list of numbers");
    list.iter().map(|v| v.as_f64().expect("a number") as f32).collect()
}

/// A list of token ids.
pub(crate) fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().expect("a list of ids");
    list.iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

/// The entries of a list of objects.
pub(crate) fn cases(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().expect("a list of cases").iter()
}

/// A text field.
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("text field {field:?} in {value}"))
}

/// A field that is an offset, a count or a size.
pub(crate) fn size(value: &Value, field: &str) -> usize {
    let number = value[field].as_u64();
    number.unwrap_or_else(|| panic!("whole number {field:?} in {value}")) as usize
}

/// In [-0.5, 0.5): SplitMix64's finaliser over the FNV-1a hash of `name` and `index`, top 24 bits, exact in f32.
pub(crate) fn uniform(name: &str, index: u64) -> f32 {
    let hash = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |state, byte| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3));
    let mut z = hash.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 40) as f32 / (1 << 24) as f32 - 0.5
}

/// The first `count` values of a tensor, row by row: `offset + scale * uniform(name, index)`.
pub(crate) fn formula(name: &str, count: usize, scale: f32, offset: f32) -> Vec<f32> {
    (0..count as u64).map(|index| uniform(name, index) * scale + offset).collect()
}

/// Stand-ins for soft tokens, `[rows, width]`: `0.1 * sin(0.37 i + 0.11 j)`.
pub(crate) fn soft_rows(rows: usize, width: usize) -> Vec<f32> {
    let value = |i: usize, j: usize| (0.1 * (i as f64 * 0.37 + j as f64 * 0.11).sin()) as f32;
    (0..rows).flat_map(|i| (0..width).map(move |j| value(i, j))).collect()
}

/// Writes `config.json` and `model.safetensors` of one entry of `tiny.json` into `directory`.
pub(crate) fn write_checkpoint(case: &Value, directory: &Path) {
    let config = serde_json::to_string_pretty(&case["config"]).expect("a config");
    fs::write(directory.join("config.json"), config).expect("config.json written");

    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = cases(&case["tensors"]).map(tensor).collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes).expect("bytes fill the shape");
        (name.as_str(), view)
    });
    let path = directory.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &path).expect("model.safetensors written");
}

fn tensor(spec: &Value) -> (String, Vec<usize>, Vec<u8>) {
    let name = text(spec, "name").to_owned();
    let shape: Vec<usize> = ids(&spec["shape"]).into_iter().map(|n| n as usize).collect();
    let [scale, offset] = ["scale", "offset"].map(|field| spec[field].as_f64().expect("a number") as f32);
    let values = formula(&name, shape.iter().product(), scale, offset);
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (name, shape, bytes)
}
