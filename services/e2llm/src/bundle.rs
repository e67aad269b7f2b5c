//! The bundle in use: one of those built into the binary, or a directory.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use candle_core::{DType, Device};
use e2llm_decoder::{BaseWeights, DecoderSide, Words};
use e2llm_model::generate::{DecoderFiles, Generator};
use e2llm_model::{Bundle, Defaults, DocumentEncoder, TextEncoder, TextTokenizer};
use e2llm_train::Target;
use e2llm_weights::{Fetcher, ModelFiles, ModelRef};

use crate::settings::Settings;

/// A bundle that travels inside the binary, so that one file is enough to run.
struct BuiltIn {
    name: &'static str,
    json: &'static str,
    adapter: &'static [u8],
    lora: &'static [u8],
}

macro_rules! built_in {
    ($name:literal) => {
        BuiltIn {
            name: $name,
            json: include_str!(concat!("../../../shared/bundles/", $name, "/bundle.json")),
            adapter: include_bytes!(concat!("../../../shared/bundles/", $name, "/adapter.safetensors")),
            lora: include_bytes!(concat!("../../../shared/bundles/", $name, "/lora.safetensors")),
        }
    };
}

/// The first is the default.
static BUILT_IN: [BuiltIn; 2] = [built_in!("minilm-smollm2"), built_in!("minilm-smollm2-compact")];

impl BuiltIn {
    fn read(name: Option<&str>) -> Result<Bundle> {
        let found = BUILT_IN.iter().find(|bundle| name.is_none_or(|name| bundle.name == name));
        let found = found.with_context(|| {
            let names = BUILT_IN.each_ref().map(|bundle| bundle.name).join(", ");
            format!(
                "no bundle {:?}; give a bundle directory, or one of those built in: {names}",
                name.unwrap_or_default()
            )
        })?;
        Ok(Bundle::new(found.json, found.adapter.to_vec(), Some(found.lora.to_vec()))?)
    }
}

/// Encoder and decoder other than the bundle's.
#[derive(Debug, Default)]
pub(crate) struct Pair {
    /// A name of the catalogue, a model-hub id or a directory; none: the bundle's.
    pub(crate) encoder: Option<String>,
    /// The same.
    pub(crate) decoder: Option<String>,
}

impl Pair {
    /// Whether a bundle's adapter cannot be used with it.
    pub(crate) fn is_other(&self) -> bool {
        self.encoder.is_some() || self.decoder.is_some()
    }

    /// What a bundle of it is called: the last parts of both names.
    fn name(&self) -> Option<String> {
        let last = |model: &String| model.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
        let parts: Vec<String> = self.encoder.iter().chain(&self.decoder).map(last).collect();
        (!parts.is_empty()).then(|| parts.join("-").replace(['@', ':'], "-"))
    }
}

/// A bundle with the weights it needs on this machine.
pub(crate) struct LocalBundle {
    pub(crate) bundle: Bundle,
    pub(crate) encoder: ModelFiles,
    pub(crate) decoder: ModelFiles,
    pub(crate) fingerprint: String,
    /// Where its models compute.
    pub(crate) device: Device,
    training_dtype: DType,
}

impl LocalBundle {
    /// Finds the bundle of `settings` and fetches its weights when they are absent. Blocks.
    pub(crate) fn prepare(settings: &Settings) -> Result<Self> {
        Self::prepare_pair(settings, &Pair::default())
    }

    /// The same with other weights, which the bundle's adapter does not fit: for training without it. Blocks.
    pub(crate) fn prepare_pair(settings: &Settings, pair: &Pair) -> Result<Self> {
        let mut bundle = match &settings.bundle {
            Some(directory) if Path::new(directory).is_dir() => Bundle::read(Path::new(directory))?,
            name => BuiltIn::read(name.as_deref())?,
        };
        bundle.config.name = pair.name().unwrap_or(bundle.config.name);
        bundle.config.encoder = pair.encoder.clone().unwrap_or(bundle.config.encoder);
        bundle.config.decoder = pair.decoder.clone().unwrap_or(bundle.config.decoder);
        let fetcher = settings.fetcher()?;
        let encoder = resolve(&fetcher, &bundle.config.encoder)?;
        let decoder = resolve(&fetcher, &bundle.config.decoder)?;
        let fingerprint = bundle.fingerprint(encoder.sha256.as_str(), decoder.sha256.as_str());
        let (device, training_dtype) = (settings.device.open()?, settings.training_dtype);
        Ok(Self { bundle, encoder, decoder, fingerprint, device, training_dtype })
    }

    /// What requests get that do not say otherwise.
    pub(crate) fn defaults(&self) -> Defaults {
        self.bundle.config.defaults.clone()
    }

    /// Loads the encoder half. Blocks.
    pub(crate) fn document_encoder(&self) -> Result<DocumentEncoder> {
        let (weights, config, tokenizer) = encoder_files(&self.encoder)?;
        Ok(DocumentEncoder::load(&self.bundle, weights, &config, tokenizer, &self.device)?)
    }

    /// Loads the encoder without what the bundle teaches it. Blocks.
    pub(crate) fn text_encoder(&self) -> Result<TextEncoder> {
        let (weights, config, _) = encoder_files(&self.encoder)?;
        Ok(TextEncoder::load(weights, &config, &self.device)?)
    }

    /// Loads the decoder half. Blocks.
    pub(crate) fn generator(&self) -> Result<Generator> {
        Ok(Generator::load(&self.bundle, &decoder_files(&self.decoder), &self.device)?)
    }
}

impl LocalBundle {
    /// Loads what training needs of the decoder, weights expanded. Blocks.
    pub(crate) fn decoder_side(&self) -> Result<DecoderSide> {
        let (_, _, pieces) = encoder_files(&self.encoder)?;
        let (decoder, tokens, template) = decoder_files(&self.decoder).load(&self.device)?;
        let end = decoder.config().eos.first().copied().context("the decoder names no end-of-turn token")?;
        let weights = |name: &str, files: &ModelFiles| BaseWeights {
            name: name.to_owned(),
            sha256: files.sha256.as_str().to_owned(),
        };
        let decoder = decoder.into_dense(self.training_dtype)?;
        let words = Words {
            target: Target::of(&decoder)?,
            frame: template.frame(&tokens, None)?,
            tokens: Arc::new(tokens),
            end,
            pieces: Arc::new(TextTokenizer::from_file(pieces)?),
            encoder: weights(&self.bundle.config.encoder, &self.encoder),
            decoder: weights(&self.bundle.config.decoder, &self.decoder),
        };
        Ok(DecoderSide { decoder, words })
    }
}

fn resolve(fetcher: &Fetcher, reference: &str) -> Result<ModelFiles> {
    Ok(fetcher.resolve(&ModelRef::parse(reference)?)?)
}

/// Weights, text of `config.json`, and tokenizer of an encoder.
pub(crate) fn encoder_files(files: &ModelFiles) -> Result<(&Path, String, &Path)> {
    let weights = files.weights.first().with_context(|| format!("{} holds no encoder weights", files.dir.display()))?;
    let config = files.config.as_deref().with_context(|| format!("{} holds no config.json", files.dir.display()))?;
    let tokenizer =
        files.tokenizer.as_deref().with_context(|| format!("{} holds no tokenizer.json", files.dir.display()))?;
    let text = std::fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    Ok((weights, text, tokenizer))
}

/// The same files as the decoder's loader wants them.
pub(crate) fn decoder_files(files: &ModelFiles) -> DecoderFiles {
    DecoderFiles { weights: files.weights.clone(), config: files.config.clone(), tokenizer: files.tokenizer.clone() }
}
