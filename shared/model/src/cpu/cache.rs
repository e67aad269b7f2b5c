//! Keys and values of the positions a sequence has read, in pages that sequences share.

use std::sync::Arc;

use e2llm_kernels::attention::{Heads, PAGE};
use half::f16;

use crate::decoder::DecoderConfig;
use crate::error::{ModelError, Result};

/// KV cache of one sequence: pages of 64 positions of all layers, 16-bit floats.
///
/// A clone shares the pages; who writes to a shared page gets a copy of it first. So a prefix that several prompts have in common is
/// read once and kept once.
#[derive(Debug, Clone)]
pub struct Cache {
    pages: Vec<Page>,
    len: usize,
    capacity: usize,
    layers: usize,
    heads: Heads,
}

/// 64 positions of all layers.
pub(super) type Page = Arc<Vec<f16>>;

/// The pages of one layer.
pub type Pages<'a> = Vec<&'a [f16]>;

impl Cache {
    /// An empty cache that may grow to `capacity` positions.
    ///
    /// # Errors
    /// [`ModelError::WindowExceeded`] if the model has no such window.
    pub fn new(config: &DecoderConfig, capacity: usize) -> Result<Self> {
        Self::of_pages(Vec::new(), config, capacity)
    }

    /// A cache that begins with whole pages of this model.
    pub(super) fn of_pages(pages: Vec<Page>, config: &DecoderConfig, capacity: usize) -> Result<Self> {
        if capacity > config.context {
            return Err(ModelError::WindowExceeded { positions: capacity, window: config.context });
        }
        Ok(Self { len: pages.len() * PAGE, pages, capacity, layers: config.layers, heads: heads(config) })
    }

    /// Positions held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was read yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of its pages, shared ones included.
    pub fn size(&self) -> usize {
        self.pages.len() * self.layers * self.heads.page_len() * size_of::<f16>()
    }

    /// Forgets everything after the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.pages.truncate(self.len.div_ceil(PAGE));
    }

    /// The first `len` positions, with room for `capacity`.
    #[must_use]
    pub fn prefix(&self, len: usize, capacity: usize) -> Self {
        let mut prefix = Self { capacity, ..self.clone() };
        prefix.truncate(len);
        prefix
    }

    /// Makes room for `rows` more positions.
    pub(super) fn grow(&mut self, rows: usize) -> Result<()> {
        if self.len + rows > self.capacity {
            return Err(ModelError::WindowExceeded { positions: self.len + rows, window: self.capacity });
        }
        let size = self.layers * self.heads.page_len();
        self.pages.resize_with((self.len + rows).div_ceil(PAGE), || Arc::new(vec![f16::ZERO; size]));
        Ok(())
    }

    /// Writes rows of keys and values `[rows, kv_heads · head_dim]` of one layer after what is held.
    pub(super) fn write(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let (width, size) = (self.heads.keys * self.heads.width, self.heads.page_len());
        for (row, (key, value)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
            let position = self.len + row;
            let page = Arc::make_mut(&mut self.pages[position / PAGE]);
            self.heads.store(&mut page[layer * size..(layer + 1) * size], position % PAGE, key, value);
        }
    }

    pub(super) fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// The pages of one layer, in order.
    pub(super) fn layer(&self, layer: usize) -> Pages<'_> {
        let size = self.heads.page_len();
        self.pages.iter().map(|page| &page[layer * size..(layer + 1) * size]).collect()
    }

    pub(super) fn advance(&mut self, rows: usize) {
        self.len += rows;
    }
}

pub(super) fn heads(config: &DecoderConfig) -> Heads {
    Heads { queries: config.heads, keys: config.kv_heads, width: config.head_dim, window: config.sliding_window }
}
