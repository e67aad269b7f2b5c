//! Tensors of safetensors files, checked for presence and shape before use.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};

use crate::error::{ModelError, Result};

/// All tensors of one or more safetensors files (a sharded checkpoint has several).
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl TensorFile {
    /// Reads one file whole, after [`crate::gguf::check_safetensors`] has checked its header against its length.
    pub fn open(path: &Path, device: &Device) -> Result<Self> {
        Self::open_all(&[path.to_owned()], device)
    }

    /// Reads all shards of a checkpoint.
    pub fn open_all(paths: &[PathBuf], device: &Device) -> Result<Self> {
        let mut tensors = HashMap::new();
        for path in paths {
            crate::gguf::check_safetensors(path)?;
            tensors.extend(candle_core::safetensors::load(path, device)?);
        }
        Ok(Self { path: paths.first().cloned().unwrap_or_default(), tensors })
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Length of a tensor's first dimension.
    pub fn rows(&self, name: &str) -> Result<usize> {
        Ok(self.get(name)?.dim(0)?)
    }

    /// A tensor as f32, of exactly this shape.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.get(name)?;
        if tensor.dims() != shape {
            return Err(
                self.bad(format!("tensor {name} has shape {:?}, the configuration asks for {shape:?}", tensor.dims()))
            );
        }
        Ok(tensor.to_dtype(DType::F32)?)
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.bad(format!("tensor {name} is missing")))
    }

    fn bad(&self, problem: String) -> ModelError {
        ModelError::BadWeights { path: self.path.clone(), problem }
    }
}
