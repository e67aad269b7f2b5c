//! Word pieces to token states.

use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use e2llm_model::TextEncoder;
use e2llm_model::cpu::CpuEncoder;
use e2llm_model::document::BATCH_TOKENS;
use serde::Deserialize;
use serde_json::json;

use crate::{Answer, Options, Request, inputs, timed};

/// States of the first token that are compared.
const COMPARED: usize = 64;

pub(crate) struct Encoding(CpuEncoder);

#[derive(Deserialize)]
struct Chunks {
    chunks: Vec<Vec<u32>>,
}

impl Encoding {
    pub(crate) fn load(options: &Options) -> Result<Self> {
        let file = |name: &str| options.encoder.join(name);
        let config = std::fs::read_to_string(file("config.json"))?;
        let weights = file("model.safetensors");
        Ok(Self(CpuEncoder::new(&TextEncoder::load(Path::new(&weights), &config, &Device::Cpu)?)?))
    }

    pub(crate) fn run(&self, request: &Request) -> Result<Answer> {
        let Chunks { chunks } = inputs(request)?;
        let (seconds, first) = timed(|| {
            let mut first = None;
            for batch in batches(&chunks) {
                let states = self.0.states(batch)?;
                if first.is_none() {
                    first = Some(states.last.narrow(0, 0, 1)?.flatten_all()?.to_vec1::<f32>()?);
                }
            }
            Ok(first.unwrap_or_default())
        })?;
        Ok(Answer {
            seconds,
            units: chunks.len() as f64,
            note: json!({ "check": &first[..first.len().min(COMPARED)] }),
        })
    }
}

fn batches(chunks: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let (mut batches, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (index, chunk) in chunks.iter().enumerate() {
        if tokens > 0 && tokens + chunk.len() > BATCH_TOKENS {
            batches.push(&chunks[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += chunk.len();
    }
    batches.push(&chunks[start..]);
    batches
}
