//! A finished bundle: its files as bytes.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};
use e2llm_model::{AdapterConfig, Bundle, BundleConfig, Defaults};

use crate::error::{Result, TrainError};
use crate::recipe::Recipe;
use crate::sides::serialize;

/// What a bundle calls itself and its base weights.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// Its own name.
    pub bundle: &'a str,
    /// Encoder weights: catalogue name, directory or hub id.
    pub encoder: &'a str,
    /// Decoder weights, likewise.
    pub decoder: &'a str,
}

/// What was trained, by its names in the models; empty where nothing was.
#[derive(Debug, Clone, Default)]
pub struct BundleParts {
    /// The adapter's parameters.
    pub adapter: HashMap<String, Tensor>,
    /// The decoder's LoRA.
    pub lora: HashMap<String, Tensor>,
    /// The encoder's LoRA.
    pub encoder_lora: HashMap<String, Tensor>,
}

/// Files of a bundle by name, tensors in f16.
#[derive(Debug, Clone)]
pub struct BundleFiles {
    /// `bundle.json`, `adapter.safetensors`, `lora.safetensors` and `encoder_lora.safetensors` as far as there are any.
    pub files: BTreeMap<&'static str, Vec<u8>>,
}

const LORA: &str = "lora.safetensors";
const ENCODER_LORA: &str = "encoder_lora.safetensors";

/// Files that a bundle may be without.
pub(crate) const OPTIONAL_FILES: [&str; 2] = [LORA, ENCODER_LORA];

impl BundleFiles {
    /// Puts trained parameters into a bundle.
    pub fn new(recipe: &Recipe, names: Names<'_>, adapter: AdapterConfig, parts: &BundleParts) -> Result<Self> {
        let config = BundleConfig {
            name: names.bundle.to_owned(),
            encoder: names.encoder.to_owned(),
            decoder: names.decoder.to_owned(),
            chunk_tokens: recipe.chunk_tokens,
            adapter,
            lora: recipe.lora(),
            encoder_lora: recipe.encoder_lora,
            defaults: Defaults::default(),
        };
        let text = serde_json::to_string_pretty(&config).map_err(|e| TrainError::Invalid(e.to_string()))?;
        let mut files = BTreeMap::from([
            ("bundle.json", (text + "\n").into_bytes()),
            ("adapter.safetensors", half(&parts.adapter)?),
        ]);
        if config.lora.is_some() {
            files.insert(LORA, half(&parts.lora)?);
        }
        if config.encoder_lora.is_some() {
            files.insert(ENCODER_LORA, half(&parts.encoder_lora)?);
        }
        Ok(Self { files })
    }

    /// The bundle's identity over these base weights.
    pub fn fingerprint(&self, encoder_sha256: &str, decoder_sha256: &str) -> Result<String> {
        let text = String::from_utf8_lossy(&self.files["bundle.json"]);
        let file = |name: &str| self.files.get(name).cloned();
        let bundle = Bundle::with_encoder_lora(
            &text,
            file("adapter.safetensors").unwrap_or_default(),
            file(LORA),
            file(ENCODER_LORA),
        )?;
        Ok(bundle.fingerprint(encoder_sha256, decoder_sha256))
    }
}

fn half(parameters: &HashMap<String, Tensor>) -> Result<Vec<u8>> {
    let half = parameters.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(DType::F16)?)));
    serialize(&half.collect::<Result<_>>()?)
}
