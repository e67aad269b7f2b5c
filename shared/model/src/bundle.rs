//! A bundle: what turns two pretrained models into one system. Adapter, decoder LoRA, chunker settings and defaults.
//!
//! A bundle directory holds `bundle.json` ([`BundleConfig`]), `adapter.safetensors` and, when they were trained,
//! `lora.safetensors` (decoder) and `encoder_lora.safetensors`, all f16.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::adapter::{Adapter, AdapterConfig};
use crate::encoder::TextEncoder;
use crate::error::{ModelError, Result};

/// Largest adapter or LoRA file that is read, in bytes.
const MAX_FILE: u64 = 1 << 30;

/// `bundle.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleConfig {
    /// Its name.
    pub name: String,
    /// Encoder weights: catalogue name, directory or hub id.
    pub encoder: String,
    /// Decoder weights: catalogue name, directory or hub id.
    pub decoder: String,
    /// Most word pieces per chunk.
    pub chunk_tokens: usize,
    /// The adapter's shape.
    pub adapter: AdapterConfig,
    /// The LoRA's shape; none when the decoder was left alone.
    pub lora: Option<LoraConfig>,
    /// The encoder LoRA's shape; none when the encoder was left alone. Left out of JSON then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_lora: Option<LoraConfig>,
    /// What requests get that do not say otherwise.
    pub defaults: Defaults,
}

/// Shape of a LoRA on all linears of the decoder, or of the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank.
    pub rank: usize,
    /// alpha / rank.
    pub scale: f64,
}

/// Defaults of requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defaults {
    /// Decoder positions for soft tokens and expanded text of one window.
    pub max_positions: usize,
    /// Chunks inserted as raw text.
    pub expand_chunks: usize,
    /// Decoder positions for raw text.
    pub expand_positions: usize,
    /// What summaries have otherwise.
    #[serde(default)]
    pub summary: SummaryDefaults,
    /// Most tokens of an answer.
    pub answer_tokens: usize,
    /// Most tokens of a summary.
    pub summary_tokens: usize,
    /// Penalty on tokens already written in an answer; 1 is off. Numbers and identifiers repeat their digits, so a penalty costs them.
    pub repetition_penalty: f32,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            max_positions: 2_048,
            expand_chunks: 12,
            expand_positions: 768,
            summary: SummaryDefaults::default(),
            answer_tokens: 128,
            summary_tokens: 128,
            repetition_penalty: 1.0,
        }
    }
}

/// Defaults of summaries: one window, most of it raw text (tests/quality/REPORT.md has the comparison).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SummaryDefaults {
    /// Chunks inserted as raw text.
    pub expand_chunks: usize,
    /// Decoder positions for raw text, of [`Defaults::max_positions`].
    pub expand_positions: usize,
    /// Most prompt windows, what does not fit them being left out; 0: all that are needed.
    pub max_windows: usize,
    /// Penalty on tokens already written; 1 is off.
    pub repetition_penalty: f32,
}

impl Default for SummaryDefaults {
    fn default() -> Self {
        Self { expand_chunks: 24, expand_positions: 1_536, max_windows: 1, repetition_penalty: 1.1 }
    }
}

/// A bundle's files in memory.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// `bundle.json`.
    pub config: BundleConfig,
    adapter: Vec<u8>,
    lora: Option<Vec<u8>>,
    encoder_lora: Option<Vec<u8>>,
}

impl Bundle {
    /// A bundle without encoder LoRA; see [`Bundle::with_encoder_lora`].
    pub fn new(config: &str, adapter: Vec<u8>, lora: Option<Vec<u8>>) -> Result<Self> {
        Self::with_encoder_lora(config, adapter, lora, None)
    }

    /// Parses the configuration and keeps the tensors' bytes; checks that there is a LoRA file exactly when one is configured.
    pub fn with_encoder_lora(
        config: &str,
        adapter: Vec<u8>,
        lora: Option<Vec<u8>>,
        encoder_lora: Option<Vec<u8>>,
    ) -> Result<Self> {
        let config: BundleConfig =
            serde_json::from_str(config).map_err(|e| ModelError::Config { problem: format!("bundle.json: {e}") })?;
        if config.lora.is_some() != lora.is_some() {
            let problem = "bundle.json and lora.safetensors disagree on whether there is a LoRA".to_owned();
            return Err(ModelError::Config { problem });
        }
        if config.encoder_lora.is_some() != encoder_lora.is_some() {
            let problem = "bundle.json and encoder_lora.safetensors disagree on whether there is one".to_owned();
            return Err(ModelError::Config { problem });
        }
        config.adapter.check()?;
        Ok(Self { config, adapter, lora, encoder_lora })
    }

    /// Reads a bundle directory.
    pub fn read(directory: &Path) -> Result<Self> {
        let read = |name: &str| -> Result<Vec<u8>> {
            let path = directory.join(name);
            let length = std::fs::metadata(&path).map_err(ModelError::io(&path))?.len();
            if length > MAX_FILE {
                return Err(ModelError::BadWeights {
                    path,
                    problem: format!("{length} bytes are too many for a bundle"),
                });
            }
            std::fs::read(&path).map_err(ModelError::io(&path))
        };
        let config = String::from_utf8(read("bundle.json")?)
            .map_err(|e| ModelError::Config { problem: format!("bundle.json: {e}") })?;
        let optional = |name: &str| directory.join(name).exists().then(|| read(name)).transpose();
        let (lora, encoder_lora) = (optional("lora.safetensors")?, optional("encoder_lora.safetensors")?);
        Self::with_encoder_lora(&config, read("adapter.safetensors")?, lora, encoder_lora)
    }

    /// Identity of everything that shapes soft tokens and answers: configuration, tensors, and both base weights.
    pub fn fingerprint(&self, encoder_sha256: &str, decoder_sha256: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        let config = serde_json::json!([self.config.chunk_tokens, self.config.adapter, self.config.lora]).to_string();
        let encoder_lora = self.config.encoder_lora.map(|config| serde_json::json!(config).to_string());
        let mut parts = vec![
            config.as_bytes(),
            &self.adapter,
            self.lora.as_deref().unwrap_or_default(),
            encoder_sha256.as_bytes(),
            decoder_sha256.as_bytes(),
        ];
        // Only where there is one, so that fingerprints from before there were encoder LoRAs stay.
        parts.extend(encoder_lora.as_ref().map(String::as_bytes));
        parts.extend(self.encoder_lora.as_deref());
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// The adapter with its parameters as f32.
    pub fn adapter(&self, device: &Device) -> Result<Adapter> {
        Adapter::new(self.config.adapter.clone(), self.adapter_parameters(device)?, device)
    }

    /// The adapter's parameters as f32.
    pub fn adapter_parameters(&self, device: &Device) -> Result<HashMap<String, Tensor>> {
        tensors(&self.adapter, device)
    }

    /// The LoRA's parameters as f32; empty without LoRA.
    pub fn lora(&self, device: &Device) -> Result<HashMap<String, Tensor>> {
        self.lora.as_deref().map_or(Ok(HashMap::new()), |bytes| tensors(bytes, device))
    }

    /// Merges the encoder's LoRA, if there is one, into its weights.
    pub fn adapt_encoder(&self, encoder: &mut TextEncoder, device: &Device) -> Result<()> {
        let (Some(config), Some(bytes)) = (&self.config.encoder_lora, &self.encoder_lora) else { return Ok(()) };
        encoder.merge_lora(&tensors(bytes, device)?, config.rank, config.scale)
    }
}

fn tensors(bytes: &[u8], device: &Device) -> Result<HashMap<String, Tensor>> {
    let tensors = candle_core::safetensors::load_buffer(bytes, device)?;
    tensors.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(summary: &str) -> Defaults {
        let text = format!(
            "{{\"max_positions\": 64, \"expand_chunks\": 2, \"expand_positions\": 32, {summary}
              \"answer_tokens\": 8, \"summary_tokens\": 9, \"repetition_penalty\": 1.3}}"
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Bundles are read that were written before summaries had defaults of their own, or before they had all of these.
    #[test]
    fn what_a_bundle_does_not_say_of_summaries_is_as_ever() {
        assert_eq!(defaults("").summary, SummaryDefaults::default());
        let some = defaults("\"summary\": {\"expand_chunks\": 3},").summary;
        assert_eq!(some, SummaryDefaults { expand_chunks: 3, ..SummaryDefaults::default() });
    }

    /// Answers repeat the digits that they have read; summaries do not repeat themselves.
    #[test]
    fn the_released_bundles_penalise_repetition_in_summaries_alone() {
        let mut read = 0;
        for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../bundles")).unwrap() {
            let path = entry.unwrap().path().join("bundle.json");
            let Ok(text) = std::fs::read_to_string(&path) else { continue };
            let config: BundleConfig = serde_json::from_str(&text).unwrap();
            let Defaults { repetition_penalty, summary, .. } = config.defaults;
            assert_eq!((repetition_penalty, summary.repetition_penalty), (1.0, 1.1), "{}", path.display());
            read += 1;
        }
        assert!(read > 0, "no bundle found");
    }
}
