//! A finished bundle: its files as bytes.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

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

const HEAD: &str = "bundle.json";
const ADAPTER: &str = "adapter.safetensors";
const LORA: &str = "lora.safetensors";
const ENCODER_LORA: &str = "encoder_lora.safetensors";

/// Files that a bundle may be without.
const OPTIONAL_FILES: [&str; 2] = [LORA, ENCODER_LORA];

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
        let mut files = BTreeMap::from([(HEAD, (text + "\n").into_bytes()), (ADAPTER, half(&parts.adapter)?)]);
        if config.lora.is_some() {
            files.insert(LORA, half(&parts.lora)?);
        }
        if config.encoder_lora.is_some() {
            files.insert(ENCODER_LORA, half(&parts.encoder_lora)?);
        }
        Ok(Self { files })
    }

    /// Hash of all files: of two bundles with one identity, names and defaults may differ.
    pub fn digest(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for (name, bytes) in &self.files {
            hasher.update(name.as_bytes()).update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        }
        hasher.finalize()
    }

    /// The bundle's identity over these base weights.
    pub fn fingerprint(&self, encoder_sha256: &str, decoder_sha256: &str) -> Result<String> {
        let text = String::from_utf8_lossy(&self.files[HEAD]);
        let file = |name: &str| self.files.get(name).cloned();
        let bundle =
            Bundle::with_encoder_lora(&text, file(ADAPTER).unwrap_or_default(), file(LORA), file(ENCODER_LORA))?;
        Ok(bundle.fingerprint(encoder_sha256, decoder_sha256))
    }
}

/// Makes `directory` the bundle of these files. Until all of them are there it is none; files that bundles may be without, and
/// this one is, go away.
///
/// # Errors
/// [`TrainError::Invalid`] for files that do not make a bundle; [`TrainError::Io`].
pub fn write_bundle<N: AsRef<str>>(directory: &Path, files: &BTreeMap<N, Vec<u8>>) -> Result<()> {
    let known = |name: &str| [HEAD, ADAPTER].contains(&name) || OPTIONAL_FILES.contains(&name);
    if let Some(name) = files.keys().map(AsRef::as_ref).find(|name| !known(name)) {
        return Err(TrainError::Invalid(format!("{name:?} is no file of a bundle")));
    }
    let find = |wanted: &str| files.iter().find(|(name, _)| name.as_ref() == wanted).map(|(_, bytes)| bytes);
    let (Some(head), Some(_)) = (find(HEAD), find(ADAPTER)) else {
        return Err(TrainError::Invalid(format!("a bundle needs {HEAD} and {ADAPTER}, and one of them is missing")));
    };
    std::fs::create_dir_all(directory).map_err(TrainError::io(directory))?;
    for name in std::iter::once(HEAD).chain(OPTIONAL_FILES) {
        remove_if_there(&directory.join(name))?;
    }
    for (name, bytes) in files.iter().filter(|(name, _)| name.as_ref() != HEAD) {
        let path = directory.join(name.as_ref());
        std::fs::write(&path, bytes).map_err(TrainError::io(&path))?;
    }
    let (path, partial) = (directory.join(HEAD), directory.join("bundle.json.partial"));
    std::fs::write(&partial, head).map_err(TrainError::io(&partial))?;
    std::fs::rename(&partial, &path).map_err(TrainError::io(&path))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(TrainError::io(path)(error)),
        _ => Ok(()),
    }
}

fn half(parameters: &HashMap<String, Tensor>) -> Result<Vec<u8>> {
    let half = parameters.iter().map(|(name, tensor)| Ok((name.clone(), tensor.to_dtype(DType::F16)?)));
    serialize(&half.collect::<Result<_>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_holds_one_bundle_and_nothing_of_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let files = |names: &[&'static str]| names.iter().map(|name| (*name, vec![names.len() as u8])).collect();
        write_bundle(directory.path(), &files(&[HEAD, ADAPTER, LORA])).unwrap();
        write_bundle(directory.path(), &files(&[HEAD, ADAPTER])).unwrap();
        let mut there: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        there.sort();
        assert_eq!(there, [ADAPTER, HEAD]);
        assert_eq!(std::fs::read(directory.path().join(HEAD)).unwrap(), [2]);
        assert!(write_bundle(directory.path(), &files(&[ADAPTER])).unwrap_err().to_string().contains("bundle.json"));
        assert!(write_bundle(directory.path(), &files(&[HEAD, ADAPTER, "../evil"])).is_err());
    }
}
