//! Checkpoints: everything a resumed run needs, written whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};

/// Checkpoints kept; older ones are removed after a newer one is safe on disk.
const KEPT: usize = 2;

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// blake3 of the recipe as JSON: a checkpoint continues the recipe it was made by, no other.
    pub recipe: String,
    /// Index of the stage in progress.
    pub stage: usize,
    /// Steps of that stage that are done.
    pub step: usize,
    /// Samples drawn so far in all stages: the data cursor.
    pub samples: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// Target tokens trained on so far.
    pub targets: u64,
}

/// A directory of numbered checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    directory: PathBuf,
}

impl Checkpoints {
    /// Those of a run that writes into `run`.
    pub fn at(run: &Path) -> Self {
        Self { directory: run.join("checkpoints") }
    }

    /// Writes tensors and state under the next number: tensors first, the state last, each renamed into place.
    pub fn save(&self, state: &Checkpoint, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
        std::fs::create_dir_all(&self.directory).map_err(TrainError::io(&self.directory))?;
        let numbers = self.numbers()?;
        let number = numbers.last().map_or(0, |n| n + 1);
        let tensors: HashMap<&str, Tensor> = tensors.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        let (partial, path) = (self.directory.join("partial"), self.path(number, "safetensors"));
        candle_core::safetensors::save(&tensors, &partial)?;
        std::fs::rename(&partial, &path).map_err(TrainError::io(&path))?;
        let text = serde_json::to_vec_pretty(state).map_err(|e| TrainError::Invalid(e.to_string()))?;
        std::fs::write(&partial, text).map_err(TrainError::io(&partial))?;
        let path = self.path(number, "json");
        std::fs::rename(&partial, &path).map_err(TrainError::io(&path))?;
        for old in numbers.iter().rev().skip(KEPT - 1) {
            for kind in ["json", "safetensors"] {
                let path = self.path(*old, kind);
                std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
            }
        }
        Ok(())
    }

    /// The newest complete checkpoint made by this recipe, if there is one.
    pub fn latest(&self, recipe: &str) -> Result<Option<(Checkpoint, HashMap<String, Tensor>)>> {
        let Some(state) = self.state(recipe)? else { return Ok(None) };
        let Some(number) = self.numbers()?.pop() else { return Ok(None) };
        let tensors = candle_core::safetensors::load(self.path(number, "safetensors"), &Device::Cpu)?;
        Ok(Some((state, tensors)))
    }

    /// Where the newest complete checkpoint of this recipe stands; its tensors are not read.
    pub fn state(&self, recipe: &str) -> Result<Option<Checkpoint>> {
        let Some(number) = self.numbers()?.pop() else { return Ok(None) };
        let path = self.path(number, "json");
        let text = std::fs::read(&path).map_err(TrainError::io(&path))?;
        let state: Checkpoint = serde_json::from_slice(&text)
            .map_err(|e| TrainError::Invalid(format!("{}: {e}; delete it", path.display())))?;
        if state.recipe != recipe {
            return Err(TrainError::Invalid(format!(
                "{} holds checkpoints of another recipe; use another --output or delete them",
                self.directory.display()
            )));
        }
        Ok(Some(state))
    }

    fn path(&self, number: u64, kind: &str) -> PathBuf {
        self.directory.join(format!("{number:08}.{kind}"))
    }

    fn numbers(&self) -> Result<Vec<u64>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(TrainError::io(&self.directory))?,
        };
        let mut numbers: Vec<u64> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".json")?.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}
