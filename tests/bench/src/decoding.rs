//! Prefill and decoding with the decoder's own weights, without LoRA, as the peers have them.

use anyhow::{Context, Result, ensure};
use candle_core::Device;
use e2llm_model::Decoder;
use e2llm_model::cpu::{Cache, CpuDecoder, Step, Workspace};
use e2llm_model::generate::PROMPT_ROWS;
use serde::Deserialize;
use serde_json::json;

use crate::{Answer, Options, Request, inputs, timed};

pub(crate) struct Decoding {
    pub(crate) decoder: CpuDecoder,
    pub(crate) work: Workspace,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Prompts {
    prompts: Vec<Vec<u32>>,
    tokens: usize,
}

impl Decoding {
    pub(crate) fn load(options: &Options) -> Result<Self> {
        let decoder = CpuDecoder::new(&Decoder::from_gguf(&options.decoder, &Device::Cpu)?)?;
        Ok(Self { decoder, work: Workspace::default() })
    }

    pub(crate) fn cache(&self, positions: usize) -> Result<Cache> {
        Ok(Cache::new(self.decoder.config(), positions)?)
    }

    /// Reads rows in steps as the service does and gives the next token.
    pub(crate) fn read(&mut self, rows: &[f32], cache: &mut Cache) -> Result<u32> {
        let mut last = Vec::new();
        for input in rows.chunks(PROMPT_ROWS * self.decoder.config().d_model) {
            last = self.decoder.read(&mut [Step { input, cache, wanted: 1 }], &mut self.work)?;
        }
        let logits = self.decoder.logits(&last, &mut self.work);
        best(&logits)
    }

    /// Writes `tokens` more tokens to each of several sequences in one batch; EOS is a token like others.
    pub(crate) fn write(&mut self, caches: &mut [Cache], next: &mut [u32], tokens: usize) -> Result<Vec<Vec<u32>>> {
        let mut written: Vec<Vec<u32>> = next.iter().map(|token| vec![*token]).collect();
        for _ in 0..tokens {
            let rows = next.iter().map(|token| self.decoder.embed(&[*token])).collect::<Result<Vec<_>, _>>()?;
            let mut steps: Vec<_> =
                caches.iter_mut().zip(&rows).map(|(cache, input)| Step { input, cache, wanted: 1 }).collect();
            let hidden = self.decoder.read(&mut steps, &mut self.work)?;
            let logits = self.decoder.logits(&hidden, &mut self.work);
            let vocabulary = logits.len() / next.len();
            for ((next, logits), written) in next.iter_mut().zip(logits.chunks_exact(vocabulary)).zip(&mut written) {
                *next = best(logits)?;
                written.push(*next);
            }
        }
        Ok(written)
    }

    pub(crate) fn prefill(&mut self, request: &Request) -> Result<Answer> {
        let Prompt { ids } = inputs(request)?;
        let (seconds, next) = timed(|| {
            let mut cache = self.cache(ids.len())?;
            let rows = self.decoder.embed(&ids)?;
            self.read(&rows, &mut cache)
        })?;
        Ok(Answer { seconds, units: ids.len() as f64, note: json!({ "check": [next] }) })
    }

    pub(crate) fn decode(&mut self, request: &Request) -> Result<Answer> {
        let Prompts { prompts, tokens } = inputs(request)?;
        ensure!(!prompts.is_empty(), "no prompts");
        let (mut caches, mut next) = (Vec::new(), Vec::new());
        for prompt in &prompts {
            let mut cache = self.cache(prompt.len() + tokens)?;
            let rows = self.decoder.embed(prompt)?;
            next.push(self.read(&rows, &mut cache)?);
            caches.push(cache);
        }
        let (seconds, written) = timed(|| self.write(&mut caches, &mut next, tokens))?;
        let gb = self.decoder.size() as f64 * tokens as f64 / seconds / 1e9;
        let note = json!({ "check": &written[0][..written[0].len().min(8)], "weights_gb_per_s": gb });
        Ok(Answer { seconds, units: (prompts.len() * tokens) as f64, note })
    }
}

fn best(logits: &[f32]) -> Result<u32> {
    let best = logits.iter().zip(0u32..).max_by(|a, b| a.0.total_cmp(b.0).then(b.1.cmp(&a.1)));
    best.map(|(_, id)| id).context("no logits")
}
