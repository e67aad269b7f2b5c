//! Compiles `proto/` with protox, so that no protoc needs to be installed.
use std::path::PathBuf;

use prost::Message;

const PROTOS: [&str; 5] = ["encoder", "index", "decoder", "coordinator", "manifest"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files = PROTOS.map(|name| format!("e2llm/v1/{name}.proto"));
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed={}", root.display());
    Ok(())
}
