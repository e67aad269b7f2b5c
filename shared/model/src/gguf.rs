//! Weight files are somebody else's bytes: their headers are checked against the file's length before anything is
//! allocated for what they claim.
//!
//! [`GgufFile::open`] walks the whole GGUF header first (counts, string and array lengths, dimensions, element types, tensor
//! offsets) and only then lets candle parse it. [`check_safetensors`] does the same for safetensors. A file that claims 2^60
//! elements, or that a broken download cut short, is one [`ModelError::BadWeights`] that names the field and its value.

mod safe;
mod walk;

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::Device;
use candle_core::quantized::QTensor;
use candle_core::quantized::gguf_file::{Content, Value};

use crate::error::{ModelError, Result};
pub use safe::check_safetensors;

/// An opened GGUF file: checked header, typed metadata, tensors read one by one on demand.
pub struct GgufFile {
    metadata: GgufMetadata,
    content: Content,
    reader: BufReader<File>,
}

impl GgufFile {
    /// Opens and checks `path`; no tensor is read yet.
    ///
    /// # Errors
    /// [`ModelError::Io`] if it cannot be read, [`ModelError::BadWeights`] if its header does not fit its length.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(ModelError::io(path))?;
        let length = file.metadata().map_err(ModelError::io(path))?.len();
        let mut reader = BufReader::with_capacity(1 << 16, file);
        walk::check(path, &mut reader, length)?;
        reader.seek(SeekFrom::Start(0)).map_err(ModelError::io(path))?;
        let mut content = Content::read(&mut reader).map_err(|e| ModelError::bad_weights(path, e.to_string()))?;
        let values = std::mem::take(&mut content.metadata);
        Ok(Self { metadata: GgufMetadata { path: path.to_owned(), values }, content, reader })
    }

    /// The key-value part of the header.
    pub fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    /// candle's view of the file; its `metadata` is empty, [`metadata`](Self::metadata) has it.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Whether the file has a tensor of this name.
    pub fn has_tensor(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Dimensions of a tensor in candle's order (outermost first), without reading it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.content.tensor_infos.get(name).map(|info| info.shape.dims())
    }

    /// Reads one tensor, quantised as it is in the file.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] if there is no such tensor or it cannot be read.
    pub fn tensor(&mut self, name: &str, device: &Device) -> Result<QTensor> {
        if !self.has_tensor(name) {
            return Err(self.metadata.bad(format!("there is no tensor {name:?}")));
        }
        let tensor = self.content.tensor(&mut self.reader, name, device);
        tensor.map_err(|e| self.metadata.bad(format!("tensor {name:?}: {e}")))
    }
}

impl std::fmt::Debug for GgufFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tensors = self.content.tensor_infos.len();
        f.debug_struct("GgufFile").field("path", &self.metadata.path).field("tensors", &tensors).finish_non_exhaustive()
    }
}

/// A GGUF file's key-value pairs with typed access; numbers of any width are accepted where they fit.
#[derive(Debug, Clone)]
pub struct GgufMetadata {
    path: PathBuf,
    values: HashMap<String, Value>,
}

impl GgufMetadata {
    #[cfg(test)]
    pub(crate) fn from_values(values: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        let values = values.into_iter().map(|(key, value)| (key.to_owned(), value));
        Self { path: PathBuf::from("test.gguf"), values: values.collect() }
    }

    /// The file these come from, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The raw value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] if the key is missing, no number, or does not fit.
    pub fn u32(&self, key: &str) -> Result<u32> {
        self.opt_u32(key).ok_or_else(|| self.missing(key, "a whole number"))
    }

    /// A whole number, if the key is there and holds one.
    pub fn opt_u32(&self, key: &str) -> Option<u32> {
        u32::try_from(integer(self.get(key)?)?).ok()
    }

    /// A number.
    ///
    /// # Errors
    /// As [`u32`](Self::u32).
    pub fn f32(&self, key: &str) -> Result<f32> {
        self.opt_f32(key).ok_or_else(|| self.missing(key, "a number"))
    }

    /// A number, if the key is there and holds one.
    pub fn opt_f32(&self, key: &str) -> Option<f32> {
        match self.get(key)? {
            Value::F32(value) => Some(*value),
            Value::F64(value) => Some(*value as f32),
            other => integer(other).map(|value| value as f32),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// As [`u32`](Self::u32).
    pub fn str(&self, key: &str) -> Result<&str> {
        self.opt_str(key).ok_or_else(|| self.missing(key, "a string"))
    }

    /// A string, if the key is there and holds one.
    pub fn opt_str(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Value::String(value) => Some(value),
            _ => None,
        }
    }

    /// A truth value, if the key is there and holds one.
    pub fn opt_bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// An array of strings.
    ///
    /// # Errors
    /// As [`u32`](Self::u32).
    pub fn strings(&self, key: &str) -> Result<Vec<&str>> {
        let Some(Value::Array(values)) = self.get(key) else {
            return Err(self.missing(key, "an array of strings"));
        };
        let strings = values.iter().map(|value| match value {
            Value::String(text) => Ok(text.as_str()),
            _ => Err(self.missing(key, "an array of strings")),
        });
        strings.collect()
    }

    /// An array of whole numbers, if the key is there.
    ///
    /// # Errors
    /// [`ModelError::BadWeights`] if it holds something else.
    pub fn opt_integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(values)) => {
                let numbers =
                    values.iter().map(|value| integer(value).ok_or_else(|| self.missing(key, "whole numbers")));
                numbers.collect::<Result<_>>().map(Some)
            }
            Some(_) => Err(self.missing(key, "an array of whole numbers")),
        }
    }

    /// [`ModelError::BadWeights`] for this file.
    pub fn bad(&self, problem: impl Into<String>) -> ModelError {
        ModelError::bad_weights(&self.path, problem)
    }

    fn missing(&self, key: &str, expected: &str) -> ModelError {
        self.bad(format!("metadata key {key:?} is missing or is not {expected}"))
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::U8(v) => Some(i64::from(*v)),
        Value::I8(v) => Some(i64::from(*v)),
        Value::U16(v) => Some(i64::from(*v)),
        Value::I16(v) => Some(i64::from(*v)),
        Value::U32(v) => Some(i64::from(*v)),
        Value::I32(v) => Some(i64::from(*v)),
        Value::U64(v) => i64::try_from(*v).ok(),
        Value::I64(v) => Some(*v),
        _ => None,
    }
}
