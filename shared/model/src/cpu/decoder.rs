//! Llama-family blocks on compact weights, for batches of sequences at different places of their prompts.

use std::sync::Arc;

use e2llm_kernels::attention::{Heads, Sequence};
use e2llm_kernels::element::rms_norm_row;
use e2llm_kernels::{Gated, Into, Linear, Matrix, Pool, Rows, Scratch};

use super::cache::{Cache, heads};
use super::pack::{kernel, matrix, stack, values};
use crate::decoder::{Block, Decoder, DecoderConfig};
use crate::error::{ModelError, Result};
use crate::ops::RopeTable;

/// A decoder for inference on the CPU; a clone shares the weights.
#[derive(Debug, Clone)]
pub struct CpuDecoder(Arc<Weights>);

#[derive(Debug)]
struct Weights {
    config: DecoderConfig,
    /// The output layer; its weight is the embeddings' too where those are tied.
    head: Linear,
    /// `None`: tied.
    embeddings: Option<Matrix>,
    blocks: Vec<CpuBlock>,
    final_norm: Vec<f32>,
    rope: Arc<RopeTable>,
    heads: Heads,
}

#[derive(Debug)]
struct CpuBlock {
    attention_norm: Vec<f32>,
    qkv: Linear,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    o: Linear,
    ffn_norm: Vec<f32>,
    gate_up: Gated,
    down: Linear,
}

/// Rows of one sequence in a batch.
#[derive(Debug)]
pub struct Step<'a> {
    /// Embeddings or soft tokens `[rows, d_model]`, f32, row-major; at least one row.
    pub input: &'a [f32],
    /// What the sequence has read; grows by the rows.
    pub cache: &'a mut Cache,
    /// How many of its last rows are wanted.
    pub wanted: usize,
}

/// Buffers of a batch, reused from step to step.
#[derive(Debug, Default)]
pub struct Workspace {
    x: Vec<f32>,
    qkv: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    mixed: Vec<f32>,
    rows: Rows,
    inner: Rows,
    scratch: Scratch,
}

impl CpuDecoder {
    /// Packs a decoder's weights, its LoRA beside them.
    ///
    /// # Errors
    /// [`ModelError::Config`] where [`CpuDecoder::serves`] says no.
    pub fn new(decoder: &Decoder) -> Result<Self> {
        let config = decoder.config().clone();
        if !Self::serves(decoder) {
            let problem = format!("a decoder of width {} and head width {}", config.d_model, config.head_dim);
            return Err(kernel(format!("{problem} has no CPU form; widths are multiples of 32 and 8")));
        }
        let embeddings = matrix(&decoder.embeddings)?;
        let (head, embeddings) = match &decoder.head {
            Some(head) => (matrix(head)?, Some(embeddings)),
            None => (embeddings, None),
        };
        let weights = Weights {
            head: Linear::new(head, Vec::new()).map_err(kernel)?,
            embeddings,
            blocks: decoder.blocks.iter().map(CpuBlock::new).collect::<Result<_>>()?,
            final_norm: values(&decoder.final_norm)?,
            rope: decoder.rope.clone(),
            heads: heads(&config),
            config,
        };
        Ok(Self(Arc::new(weights)))
    }

    /// Whether this decoder's device and shape are ones that the kernels compute.
    pub fn serves(decoder: &Decoder) -> bool {
        let config = decoder.config();
        let inner = decoder.blocks.first().and_then(|block| block.gate.weight.dims().ok()).map_or(0, |(rows, _)| rows);
        decoder.device().is_cpu()
            && config.head_dim.is_multiple_of(8)
            && config.d_model.is_multiple_of(32)
            && inner.is_multiple_of(32)
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.0.config
    }

    /// Bytes of weights that one position reads.
    pub fn size(&self) -> usize {
        let block = |b: &CpuBlock| b.qkv.size() + b.o.size() + b.gate_up.linear().size() + b.down.size();
        self.0.blocks.iter().map(block).sum::<usize>() + self.0.head.size()
    }

    /// Embeddings `[ids, d_model]`.
    ///
    /// # Errors
    /// [`ModelError::Config`] for an id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        let table = self.0.embeddings.as_ref().unwrap_or(self.0.head.weight());
        let mut rows = Vec::with_capacity(ids.len() * table.cols());
        for id in ids {
            if *id as usize >= table.rows() {
                let problem = format!("token id {id} is outside the vocabulary of {}", table.rows());
                return Err(ModelError::Config { problem });
            }
            rows.extend(table.row(*id as usize));
        }
        Ok(rows)
    }

    /// Reads the rows of all steps and gives the wanted ones' final states `[Σ wanted, d_model]`, normed.
    ///
    /// # Errors
    /// [`ModelError::WindowExceeded`] if a cache has no room; nothing was read then.
    pub fn read(&self, steps: &mut [Step<'_>], work: &mut Workspace) -> Result<Vec<f32>> {
        let d = self.0.config.d_model;
        work.x.clear();
        for step in steps.iter_mut() {
            if step.input.is_empty() || !step.input.len().is_multiple_of(d) || step.wanted * d > step.input.len() {
                let problem = format!("an input of {} values, rows have {d}, {} wanted", step.input.len(), step.wanted);
                return Err(ModelError::Config { problem });
            }
            step.cache.grow(step.input.len() / d)?;
            work.x.extend_from_slice(step.input);
        }
        for (layer, block) in self.0.blocks.iter().enumerate() {
            self.0.attention(layer, block, steps, work);
            self.0.feed_forward(block, work);
        }
        let mut wanted = Vec::new();
        let mut end = 0;
        for step in steps {
            let rows = step.input.len() / d;
            step.cache.advance(rows);
            end += rows;
            for row in work.x[(end - step.wanted) * d..end * d].chunks_exact(d) {
                let mut normed = vec![0.0; d];
                rms_norm_row(&mut normed, row, &self.0.final_norm, self.0.config.rms_eps);
                wanted.extend(normed);
            }
        }
        Ok(wanted)
    }

    /// Next-token logits `[rows, vocabulary]` of final states `[rows, d_model]`.
    pub fn logits(&self, hidden: &[f32], work: &mut Workspace) -> Vec<f32> {
        let head = &self.0.head;
        let rows = hidden.len() / self.0.config.d_model;
        let mut logits = vec![0.0; rows * head.weight().rows()];
        work.rows.shape_for(head.weight(), rows);
        work.rows.fill(Pool::global(), hidden, |from, to| to.copy_from_slice(from));
        head.forward(Pool::global(), &work.rows, &mut logits, Into::Replace, &mut work.scratch);
        logits
    }
}

impl Weights {
    fn norm_into_rows(&self, x: &[f32], norm: &[f32], linear: &Linear, rows: &mut Rows) {
        rows.shape_for(linear.weight(), x.len() / self.config.d_model);
        rows.fill(Pool::global(), x, |from, to| rms_norm_row(to, from, norm, self.config.rms_eps));
    }

    fn attention(&self, layer: usize, block: &CpuBlock, steps: &mut [Step<'_>], work: &mut Workspace) {
        let (pool, d) = (Pool::global(), self.config.d_model);
        let count = work.x.len() / d;
        self.norm_into_rows(&work.x, &block.attention_norm, &block.qkv, &mut work.rows);
        work.qkv.resize(count * block.qkv.weight().rows(), 0.0);
        block.qkv.forward(pool, &work.rows, &mut work.qkv, Into::Replace, &mut work.scratch);
        self.rotate(block, steps, work);
        let width = self.heads.keys * self.heads.width;
        let mut first = 0;
        for step in steps.iter_mut() {
            let rows = first..first + step.input.len() / d;
            let own = rows.start * width..rows.end * width;
            step.cache.write(layer, &work.keys[own.clone()], &work.values[own]);
            first = rows.end;
        }
        let of = |step: &Step<'_>| (step.input.len() / d, step.cache.len());
        let sequences: Vec<_> = steps
            .iter()
            .map(|step| Sequence { rows: of(step).0, past: of(step).1, pages: step.cache.layer(layer) })
            .collect();
        work.mixed.resize(work.queries.len(), 0.0);
        self.heads.attend(pool, &sequences, &work.queries, &mut work.mixed);
        work.rows.shape_for(block.o.weight(), count);
        work.rows.fill(pool, &work.mixed, |from, to| to.copy_from_slice(from));
        block.o.forward(pool, &work.rows, &mut work.x, Into::Add, &mut work.scratch);
    }

    /// Splits the projections, norms the heads where the model does, and rotates queries and keys by their positions.
    fn rotate(&self, block: &CpuBlock, steps: &[Step<'_>], work: &mut Workspace) {
        let head = self.heads.width;
        let (q, kv) = (self.heads.queries * head, self.heads.keys * head);
        let Workspace { qkv, queries, keys, values, .. } = work;
        let count = qkv.len() / (q + 2 * kv);
        queries.resize(count * q, 0.0);
        keys.resize(count * kv, 0.0);
        values.resize(count * kv, 0.0);
        let scale = 1.0 / (head as f32).sqrt();
        let d = self.config.d_model;
        let positions = steps.iter().flat_map(|step| (0..step.input.len() / d).map(|row| step.cache.len() + row));
        let parts = queries.chunks_exact_mut(q).zip(keys.chunks_exact_mut(kv)).zip(values.chunks_exact_mut(kv));
        for ((row, ((query, key), value)), position) in qkv.chunks_exact(q + 2 * kv).zip(parts).zip(positions) {
            self.head_norm(&row[..q], block.q_norm.as_deref(), query);
            self.head_norm(&row[q..q + kv], block.k_norm.as_deref(), key);
            value.copy_from_slice(&row[q + kv..]);
            self.rope.rotate(query, position, 1.0);
            self.rope.rotate(key, position, 1.0);
            query.iter_mut().for_each(|value| *value *= scale);
        }
    }

    /// Qwen3 norms every head before the rotation.
    fn head_norm(&self, from: &[f32], norm: Option<&[f32]>, to: &mut [f32]) {
        let Some(norm) = norm else { return to.copy_from_slice(from) };
        let heads = from.chunks_exact(self.heads.width).zip(to.chunks_exact_mut(self.heads.width));
        heads.for_each(|(from, to)| rms_norm_row(to, from, norm, self.config.rms_eps));
    }

    fn feed_forward(&self, block: &CpuBlock, work: &mut Workspace) {
        let pool = Pool::global();
        self.norm_into_rows(&work.x, &block.ffn_norm, block.gate_up.linear(), &mut work.rows);
        block.gate_up.forward(pool, &work.rows, &block.down, &mut work.inner, &mut work.scratch);
        block.down.forward(pool, &work.inner, &mut work.x, Into::Add, &mut work.scratch);
    }
}

impl CpuBlock {
    fn new(block: &Block) -> Result<Self> {
        let optional = |norm: &Option<candle_core::Tensor>| norm.as_ref().map(values).transpose();
        Ok(Self {
            attention_norm: values(&block.attention_norm)?,
            qkv: stack(&[&block.q, &block.k, &block.v])?,
            q_norm: optional(&block.q_norm)?,
            k_norm: optional(&block.k_norm)?,
            o: stack(&[&block.o])?,
            ffn_norm: values(&block.ffn_norm)?,
            gate_up: Gated::new(stack(&[&block.gate, &block.up])?).map_err(kernel)?,
            down: stack(&[&block.down])?,
        })
    }
}
