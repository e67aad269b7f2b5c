//! Questions and summaries from stored soft prompts, with the bundle's adapter and LoRA.

use std::path::PathBuf;

use anyhow::{Context, Result};
use candle_core::Device;
use e2llm_kernels::attention::PAGE;
use e2llm_model::cpu::{Cache, CpuDecoder, Workspace};
use e2llm_model::generate::DecoderFiles;
use e2llm_model::template::Frame;
use e2llm_model::{DocumentEncoder, TextTokenizer, prompt};
use half::f16;
use serde::Deserialize;
use serde_json::json;

use crate::decoding::Decoding;
use crate::{Answer, Options, Request, inputs, timed};

pub(crate) struct Questions {
    encoder: DocumentEncoder,
    pub(crate) decoding: Decoding,
    tokenizer: TextTokenizer,
    frame: Frame,
    cache: PathBuf,
}

#[derive(Deserialize)]
struct Asked {
    document: String,
    questions: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    text: String,
}

#[derive(Deserialize)]
struct Summaries {
    request: String,
    documents: Vec<Document>,
    tokens: usize,
}

#[derive(Deserialize)]
struct Document {
    text: String,
}

/// Answers written in one batch.
const BATCH: usize = 12;

impl Questions {
    pub(crate) fn load(options: &Options) -> Result<Self> {
        let files = DecoderFiles { weights: vec![options.decoder.clone()], config: None, tokenizer: None };
        let (mut decoder, tokenizer, template) = files.load(&Device::Cpu)?;
        let bundle = options.bundle()?;
        if let Some(lora) = &bundle.config.lora {
            decoder.set_lora(&bundle.lora(&Device::Cpu)?, lora.rank, lora.scale)?;
        }
        let decoding = Decoding { decoder: CpuDecoder::new(&decoder)?, work: Workspace::default() };
        let frame = template.frame(&tokenizer, None)?;
        Ok(Self { encoder: options.document_encoder()?, decoding, tokenizer, frame, cache: options.cache.clone() })
    }

    /// The soft prompt of a text at the bundle's ratio, f16 as it is stored.
    fn encode(&self, text: &str) -> Result<Vec<f16>> {
        let chunks = self.encoder.chunker().chunks(text).collect::<Result<Vec<_>, _>>()?;
        let texts: Vec<&str> = chunks.iter().map(|chunk| chunk.text(text)).collect();
        let encoded = self.encoder.encode(&texts)?;
        Ok(encoded.iter().flat_map(|chunk| &chunk.soft).map(|value| f16::from_f32(*value)).collect())
    }

    /// Stores a document's soft prompt in a file. There is a bundle of one ratio; of a higher one, soft tokens are left out evenly: as
    /// many positions, which is what time depends on, and no content to be judged.
    fn store(&self, request: &Request, document: &str) -> Result<PathBuf> {
        let path = self.cache.join(format!("{}.f16", request.work));
        if request.round == 0 || !path.exists() {
            let (soft, d) = (self.encode(document)?, self.encoder.d_model());
            let keep = (request.ratio / self.encoder.ratio()).max(1);
            let kept = soft.chunks_exact(d).step_by(keep).flatten().flat_map(|value| value.to_le_bytes());
            std::fs::create_dir_all(&self.cache)?;
            std::fs::write(&path, kept.collect::<Vec<_>>())?;
        }
        Ok(path)
    }

    /// Rows of a prompt from a stored document, of which at most `budget` positions are read, the nearest to its beginning.
    fn rows(&self, soft: &[f32], question: &str) -> Result<Vec<f32>> {
        let mut after = self.tokenizer.encode_plain(&prompt::after_document(&prompt::question(question)))?;
        after.extend(&self.frame.suffix);
        let decoder = &self.decoding.decoder;
        Ok([decoder.embed(&self.frame.prefix)?, soft.to_vec(), decoder.embed(&after)?].concat())
    }

    fn fetch(path: &PathBuf) -> Result<Vec<f32>> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        Ok(bytes.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]).to_f32()).collect())
    }

    /// Units: one question, from its text to the first token, the document's soft prompt read from its file.
    pub(crate) fn first(&mut self, request: &Request) -> Result<Answer> {
        let asked: Asked = inputs(request)?;
        let path = self.store(request, &asked.document)?;
        let question = &asked.questions.first().context("no questions")?.text;
        let d = self.encoder.d_model();
        let (seconds, (positions, left_out)) = timed(|| {
            // The service chooses by this vector which chunks are kept where not all fit; here the first ones are, as many.
            self.encoder.embed(question)?;
            let mut soft = Self::fetch(&path)?;
            let stored = soft.len() / d;
            soft.truncate(request.budget.unwrap_or(usize::MAX).saturating_mul(d));
            let rows = self.rows(&soft, question)?;
            let mut cache = self.decoding.cache(rows.len() / d)?;
            self.decoding.read(&rows, &mut cache)?;
            Ok((rows.len() / d, stored - soft.len() / d))
        })?;
        Ok(Answer {
            seconds,
            units: 1.0,
            note: json!({ "positions": positions, "left_out": left_out * request.ratio }),
        })
    }

    /// Units: one question, after another on the same document, whose keys and values are kept.
    pub(crate) fn second(&mut self, request: &Request) -> Result<Answer> {
        let asked: Asked = inputs(request)?;
        let path = self.store(request, &asked.document)?;
        let [first, second, ..] = asked.questions.as_slice() else { anyhow::bail!("two questions are needed") };
        let (soft, d) = (Self::fetch(&path)?, self.encoder.d_model());
        // Whole pages, as the service keeps them.
        let shared = (self.frame.prefix.len() + soft.len() / d) / PAGE * PAGE;
        let rows = self.rows(&soft, &first.text)?;
        let mut kept = self.decoding.cache(rows.len() / d)?;
        self.decoding.read(&rows, &mut kept)?;
        let (seconds, positions) = timed(|| {
            self.encoder.embed(&second.text)?;
            let rows = self.rows(&soft, &second.text)?;
            let mut cache = kept.prefix(shared, rows.len() / d);
            self.decoding.read(&rows[shared * d..], &mut cache)?;
            Ok(rows.len() / d)
        })?;
        kept.truncate(shared);
        let note = json!({ "positions": positions, "reused": shared, "kept_bytes": kept.size() });
        Ok(Answer { seconds, units: 1.0, note })
    }

    /// Units: documents, from their texts to the last token of the last.
    pub(crate) fn summarize(&mut self, request: &Request) -> Result<Answer> {
        let work: Summaries = inputs(request)?;
        let d = self.encoder.d_model();
        let (seconds, positions) = timed(|| {
            let mut positions = 0;
            for batch in work.documents.chunks(BATCH) {
                let (mut caches, mut next): (Vec<Cache>, Vec<u32>) = (Vec::new(), Vec::new());
                for document in batch {
                    let soft: Vec<f32> = self.encode(&document.text)?.iter().map(|value| value.to_f32()).collect();
                    let room = (self.decoding.decoder.config().context - work.tokens - 128) * d;
                    let rows = self.rows(&soft[..soft.len().min(room)], &work.request)?;
                    positions += rows.len() / d;
                    let mut cache = self.decoding.cache(rows.len() / d + work.tokens)?;
                    next.push(self.decoding.read(&rows, &mut cache)?);
                    caches.push(cache);
                }
                self.decoding.write(&mut caches, &mut next, work.tokens - 1)?;
            }
            Ok(positions)
        })?;
        Ok(Answer { seconds, units: work.documents.len() as f64, note: json!({ "positions": positions }) })
    }
}
