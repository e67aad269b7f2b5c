//! Keys and values of the positions a sequence has already read.

use candle_core::{DType, Device, Tensor};

use super::DecoderConfig;
use crate::error::{ModelError, Result};

/// KV cache of one sequence: per layer keys and values `[capacity, kv_heads · head_dim]`, of the blocks' dtype.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<(Tensor, Tensor)>,
    len: usize,
    capacity: usize,
}

impl KvCache {
    /// Room for `capacity` positions, allocated at once.
    pub fn new(config: &DecoderConfig, capacity: usize, dtype: DType, device: &Device) -> Result<Self> {
        if capacity > config.context {
            return Err(ModelError::WindowExceeded { positions: capacity, window: config.context });
        }
        let shape = (capacity, config.kv_heads * config.head_dim);
        let layer = || -> Result<(Tensor, Tensor)> {
            Ok((Tensor::zeros(shape, dtype, device)?, Tensor::zeros(shape, dtype, device)?))
        };
        let layers = (0..config.layers).map(|_| layer()).collect::<Result<_>>()?;
        Ok(Self { layers, len: 0, capacity })
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Positions there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets everything after the first `len` positions: the way to reuse a shared prefix.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Appends rows to one layer and returns all its keys and values. Counted by [`KvCache::advance`].
    pub(super) fn append(&mut self, layer: usize, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor)> {
        let rows = k.dim(0)?;
        if self.len + rows > self.capacity {
            return Err(ModelError::WindowExceeded { positions: self.len + rows, window: self.capacity });
        }
        let (keys, values) = &self.layers[layer];
        keys.slice_set(&k.contiguous()?, 0, self.len)?;
        values.slice_set(&v.contiguous()?, 0, self.len)?;
        Ok((keys.narrow(0, 0, self.len + rows)?, values.narrow(0, 0, self.len + rows)?))
    }

    pub(super) fn advance(&mut self, rows: usize) {
        self.len += rows;
    }
}
