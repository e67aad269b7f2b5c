//! A directory as a model: which of its files are the weights, and what must lie beside them.

use crate::error::{IoContext, WeightsError};
use crate::fetch::metadata_of_file;
use crate::hash::Ledger;
use crate::{ModelFiles, Result, Sha256, WeightFormat};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The index of a sharded safetensors model.
pub(crate) const SHARD_INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Loads the description of the model at `place`: a directory, or one weight file in a directory.
/// `file` chooses among several weight files and is relative to the directory.
pub(crate) fn load(place: &Path, file: Option<&str>, mut ledger: Ledger) -> Result<ModelFiles> {
    let (dir, file) = split(place, file)?;
    let chosen = match file {
        Some(file) => file,
        None => choose(&names_in(&dir)?).map_err(|refusal| refusal.at(&dir))?,
    };
    let format = format_of(&chosen).ok_or_else(|| WeightsError::NotAModel {
        place: dir.join(&chosen).display().to_string(),
        reason: "weights must be .safetensors or .gguf".to_owned(),
    })?;
    let weights = if chosen == SHARD_INDEX { shards(&dir)? } else { vec![chosen] };
    let hashes = weights.iter().map(|name| hash(&dir, name, &mut ledger)).collect::<Result<Vec<_>>>()?;
    ledger.save();
    let sha256 = match hashes.as_slice() {
        [one] => one.clone(),
        many => combine(&weights, many),
    };
    let needs = (format == WeightFormat::Safetensors)
        .then_some("safetensors hold only tensors; take it from where the weights came from");
    let (tokenizer, config) = (beside(&dir, "tokenizer.json", needs)?, beside(&dir, "config.json", needs)?);
    let weights = weights.iter().map(|name| dir.join(name)).collect();
    Ok(ModelFiles { dir, weights, format, tokenizer, config, sha256 })
}

/// Why no weight file could be chosen.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is none.
    Missing,
    /// There is something, but not one model.
    Unusable(String),
}

impl Refusal {
    pub(crate) fn at(self, place: &Path) -> WeightsError {
        match self {
            Self::Missing => WeightsError::MissingFile {
                dir: place.to_path_buf(),
                file: SINGLE.to_owned(),
                hint: format!("nor {SHARD_INDEX}, nor one .gguf file; name the directory that holds the weights"),
            },
            Self::Unusable(reason) => WeightsError::NotAModel { place: place.display().to_string(), reason },
        }
    }
}

/// The weight file among the files at the top of a model: the shard index, `model.safetensors`, or the only one.
pub(crate) fn choose<S: AsRef<str>>(names: &[S]) -> std::result::Result<String, Refusal> {
    let has = |wanted: &str| names.iter().any(|name| name.as_ref() == wanted);
    if let Some(name) = [SHARD_INDEX, SINGLE].into_iter().find(|name| has(name)) {
        return Ok(name.to_owned());
    }
    let ending =
        |ending: &str| -> Vec<&str> { names.iter().map(AsRef::as_ref).filter(|name| name.ends_with(ending)).collect() };
    let candidates = [ending(".safetensors"), ending(".gguf")].concat();
    match candidates.as_slice() {
        [] if names.iter().any(|name| is_pickle(name.as_ref())) => Err(Refusal::Unusable(
            "its weights are pickled, which can run code; convert them to safetensors".to_owned(),
        )),
        [] => Err(Refusal::Missing),
        [one] => Ok((*one).to_owned()),
        many => Err(Refusal::Unusable(format!("it has several weight files; name one of {}", many.join(", ")))),
    }
}

fn is_pickle(name: &str) -> bool {
    [".bin", ".pt", ".pth", ".ckpt"].iter().any(|ending| name.ends_with(ending))
}

fn split(place: &Path, file: Option<&str>) -> Result<(PathBuf, Option<String>)> {
    let metadata = fs::metadata(place).at("read the model", place)?;
    if metadata.is_dir() {
        return Ok((place.to_path_buf(), file.map(str::to_owned)));
    }
    let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let parent = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.to_path_buf(), Some(name)))
}

fn names_in(dir: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(dir).at("list", dir)?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn format_of(name: &str) -> Option<WeightFormat> {
    if name == SHARD_INDEX || name.ends_with(".safetensors") {
        return Some(WeightFormat::Safetensors);
    }
    name.ends_with(".gguf").then_some(WeightFormat::Gguf)
}

/// The shards that the index names, in name order.
fn shards(dir: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let path = dir.join(SHARD_INDEX);
    let unusable = |reason: String| WeightsError::NotAModel { place: path.display().to_string(), reason };
    let bytes = fs::read(&path).at("read", &path)?;
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| unusable(error.to_string()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    // A name from a file is a path into this machine: only plain names in this directory will do.
    if let Some(name) = names.iter().find(|name| name.contains(['/', '\\']) || !name.ends_with(".safetensors")) {
        return Err(unusable(format!("shard '{}' is not a .safetensors file in this directory", name.escape_debug())));
    }
    if names.is_empty() {
        return Err(unusable("it names no shards".to_owned()));
    }
    Ok(names.into_iter().collect())
}

/// Whether every shard that the index names is there.
pub(crate) fn all_shards_present(dir: &Path) -> bool {
    shards(dir).is_ok_and(|names| names.iter().all(|name| dir.join(name).is_file()))
}

fn hash(dir: &Path, name: &str, ledger: &mut Ledger) -> Result<Sha256> {
    let path = dir.join(name);
    let missing = || WeightsError::MissingFile {
        dir: dir.to_path_buf(),
        file: name.to_owned(),
        hint: "the model's weights are incomplete; fetch this file from where the others came from".to_owned(),
    };
    let metadata = metadata_of_file(&path)?.ok_or_else(missing)?;
    ledger.sha256(name, &path, &metadata, false)
}

fn combine(names: &[String], hashes: &[Sha256]) -> Sha256 {
    let lines: String = names.iter().zip(hashes).map(|(name, hash)| format!("{name} {hash}\n")).collect();
    Sha256::of(lines.as_bytes())
}

fn beside(dir: &Path, name: &str, needed: Option<&str>) -> Result<Option<PathBuf>> {
    let path = dir.join(name);
    match (metadata_of_file(&path)?, needed) {
        (Some(_), _) => Ok(Some(path)),
        (None, None) => Ok(None),
        (None, Some(hint)) => {
            Err(WeightsError::MissingFile { dir: dir.to_path_buf(), file: name.to_owned(), hint: hint.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_goes_before_the_single_file_and_that_before_the_only_one() {
        assert_eq!(choose(&["x.gguf", SINGLE, SHARD_INDEX]), Ok(SHARD_INDEX.to_owned()));
        assert_eq!(choose(&["x.gguf", SINGLE]), Ok(SINGLE.to_owned()));
        assert_eq!(choose(&["README.md", "x.gguf"]), Ok("x.gguf".to_owned()));
    }

    #[test]
    fn several_pickles_and_nothing_are_three_different_answers() {
        let unusable = |names: &[&str]| match choose(names) {
            Err(Refusal::Unusable(reason)) => reason,
            other => panic!("{other:?}"),
        };
        assert!(unusable(&["a.gguf", "b.gguf"]).contains("a.gguf, b.gguf"));
        assert!(unusable(&["pytorch_model.bin"]).contains("pickled"));
        assert_eq!(choose(&["README.md"]), Err(Refusal::Missing));
    }
}
