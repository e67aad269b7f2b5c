//! A finished bundle: its files as bytes.

use std::collections::{BTreeMap, HashMap};

use candle_core::{DType, Tensor};
use e2llm_model::{AdapterConfig, Bundle, BundleConfig, Defaults, LoraConfig};

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

/// Files of a bundle by name, tensors in f16.
#[derive(Debug, Clone)]
pub struct BundleFiles {
    /// `bundle.json`, `adapter.safetensors`, `lora.safetensors`.
    pub files: BTreeMap<&'static str, Vec<u8>>,
}

impl BundleFiles {
    /// Puts trained parameters (by their names in the models) into a bundle.
    pub fn new(
        recipe: &Recipe,
        names: Names<'_>,
        adapter: AdapterConfig,
        adapter_parameters: &HashMap<String, Tensor>,
        lora: &HashMap<String, Tensor>,
    ) -> Result<Self> {
        let config = BundleConfig {
            name: names.bundle.to_owned(),
            encoder: names.encoder.to_owned(),
            decoder: names.decoder.to_owned(),
            chunk_tokens: recipe.chunk_tokens,
            adapter,
            lora: Some(LoraConfig { rank: recipe.lora_rank, scale: recipe.lora_scale }),
            defaults: Defaults::default(),
        };
        let text = serde_json::to_string_pretty(&config).map_err(|e| TrainError::Invalid(e.to_string()))?;
        let files = BTreeMap::from([
            ("bundle.json", (text + "\n").into_bytes()),
            ("adapter.safetensors", half(adapter_parameters)?),
            ("lora.safetensors", half(lora)?),
        ]);
        Ok(Self { files })
    }

    /// The bundle's identity over these base weights.
    pub fn fingerprint(&self, encoder_sha256: &str, decoder_sha256: &str) -> Result<String> {
        let text = String::from_utf8_lossy(&self.files["bundle.json"]);
        let (adapter, lora) = (&self.files["adapter.safetensors"], &self.files["lora.safetensors"]);
        let bundle = Bundle::new(&text, adapter.clone(), Some(lora.clone()))?;
        Ok(bundle.fingerprint(encoder_sha256, decoder_sha256))
    }
}

fn half(parameters: &HashMap<String, Tensor>) -> Result<Vec<u8>> {
    let half = parameters.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(DType::F16)?)));
    serialize(&half.collect::<Result<_>>()?)
}
