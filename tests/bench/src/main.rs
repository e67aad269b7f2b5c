//! Our side of `cargo xtask bench peers`: answers one request per line, as `tests/bench/PEERS.md` says.

mod decoding;
mod encoding;
mod questions;

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::Device;
use clap::Parser;
use e2llm_model::{Bundle, DocumentEncoder};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// What the harness gives every contestant.
#[derive(Debug, Parser)]
struct Options {
    /// Directory of the encoder's safetensors, configuration and tokenizer
    #[arg(long)]
    encoder: PathBuf,
    /// The decoder's GGUF
    #[arg(long)]
    decoder: PathBuf,
    /// For what is made once
    #[arg(long)]
    cache: PathBuf,
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The bundle whose adapter and LoRA answer questions
    #[arg(long, default_value = "shared/bundles/minilm-smollm2")]
    bundle: PathBuf,
}

/// One turn.
#[derive(Debug, Deserialize)]
struct Request {
    work: String,
    #[serde(default)]
    round: u32,
    inputs: Option<PathBuf>,
    /// Word pieces per soft token.
    #[serde(default)]
    ratio: usize,
    /// Most decoder positions of a document.
    budget: Option<usize>,
}

/// What was done in how many seconds.
struct Answer {
    seconds: f64,
    units: f64,
    note: Value,
}

/// What stays loaded from turn to turn; each part when it is first asked for.
struct Contestant {
    options: Options,
    encoding: Option<encoding::Encoding>,
    decoding: Option<decoding::Decoding>,
    questions: Option<questions::Questions>,
}

impl Contestant {
    fn answer(&mut self, request: &Request) -> Result<Option<Answer>> {
        let Self { options, encoding, decoding, questions } = self;
        Ok(Some(match request.work.as_str() {
            work if work.starts_with("encode-") => {
                loaded(encoding, || encoding::Encoding::load(options))?.run(request)?
            }
            work if work.starts_with("prefill-") => {
                loaded(decoding, || decoding::Decoding::load(options))?.prefill(request)?
            }
            work if work.starts_with("decode-") => {
                loaded(decoding, || decoding::Decoding::load(options))?.decode(request)?
            }
            // The same with the bundle's LoRA beside the weights: what that costs.
            work if work.starts_with("lora-decode-") => {
                loaded(questions, || questions::Questions::load(options))?.decoding.decode(request)?
            }
            work if work.starts_with("first-question-") => {
                loaded(questions, || questions::Questions::load(options))?.first(request)?
            }
            work if work.starts_with("second-question-") => {
                loaded(questions, || questions::Questions::load(options))?.second(request)?
            }
            work if work.starts_with("summarize-") => {
                loaded(questions, || questions::Questions::load(options))?.summarize(request)?
            }
            _ => return Ok(None),
        }))
    }
}

fn loaded<T>(slot: &mut Option<T>, load: impl FnOnce() -> Result<T>) -> Result<&mut T> {
    let value = match slot.take() {
        Some(value) => value,
        None => load()?,
    };
    Ok(slot.insert(value))
}

fn inputs<T: DeserializeOwned>(request: &Request) -> Result<T> {
    let path = request.inputs.as_deref().context("the request names no inputs")?;
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let begun = Instant::now();
    let done = work()?;
    Ok((begun.elapsed().as_secs_f64(), done))
}

impl Options {
    fn document_encoder(&self) -> Result<DocumentEncoder> {
        let config = std::fs::read_to_string(self.encoder.join("config.json"))?;
        let file = |name: &str| self.encoder.join(name);
        let bundle = self.bundle()?;
        let (weights, tokenizer) = (file("model.safetensors"), file("tokenizer.json"));
        Ok(DocumentEncoder::load(&bundle, &weights, &config, &tokenizer, &Device::Cpu)?)
    }

    fn bundle(&self) -> Result<Bundle> {
        Ok(Bundle::read(Path::new(&self.bundle))?)
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    // The kernels use as many threads as rayon.
    set_threads(options.threads);
    let mut contestant = Contestant { options, encoding: None, decoding: None, questions: None };
    let (input, mut output) = (std::io::stdin().lock(), std::io::stdout().lock());
    writeln!(output, "{}", json!({ "ready": true, "name": "e2llm", "version": env!("CARGO_PKG_VERSION") }))?;
    output.flush()?;
    for line in input.lines() {
        let request: Request = serde_json::from_str(&line?)?;
        let reply = match contestant.answer(&request) {
            Ok(Some(Answer { seconds, units, note })) => json!({ "seconds": seconds, "units": units, "note": note }),
            Ok(None) => json!({ "unsupported": format!("{} is nothing that this system does", request.work) }),
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        writeln!(output, "{reply}")?;
        output.flush()?;
    }
    Ok(())
}

/// As many threads as every contestant has.
fn set_threads(threads: usize) {
    if rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().is_err() {
        eprintln!("threads were started before: {threads} cannot be set");
    }
}
