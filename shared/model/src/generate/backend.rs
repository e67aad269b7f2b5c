//! What computes: compact weights on the CPU, tensors on a device.

use candle_core::{Device, Tensor};

use crate::cpu::{Cache, CpuDecoder, PageName, Prefixes, Step, Workspace};
use crate::decoder::{Decoder, DecoderConfig, KvCache};
use crate::error::Result;

/// A decoder in the form that its device computes best.
#[derive(Debug)]
pub(super) enum Backend {
    Cpu(CpuDecoder),
    Tensors(Decoder),
}

/// What a sequence has read.
#[derive(Debug)]
pub(super) enum Past {
    Cpu(Cache),
    Tensors(KvCache),
}

/// Rows of one sequence in a batch, as [`Step`].
pub(super) struct Rows<'a> {
    pub(super) input: &'a [f32],
    pub(super) past: &'a mut Past,
    pub(super) wanted: usize,
}

impl Backend {
    pub(super) fn new(decoder: Decoder) -> Result<Self> {
        if CpuDecoder::serves(&decoder) {
            Ok(Self::Cpu(CpuDecoder::new(&decoder)?))
        } else {
            Ok(Self::Tensors(decoder))
        }
    }

    pub(super) fn config(&self) -> &DecoderConfig {
        match self {
            Backend::Cpu(decoder) => decoder.config(),
            Backend::Tensors(decoder) => decoder.config(),
        }
    }

    /// The past of a prompt of these rows, which holds what `prefixes` knows of it, and the names of its pages to remember.
    pub(super) fn open(&self, prefixes: &Prefixes, rows: &[f32], capacity: usize) -> Result<(Past, Vec<PageName>)> {
        match self {
            Backend::Cpu(decoder) => {
                let names = Prefixes::names(rows, decoder.config().d_model);
                Ok((Past::Cpu(prefixes.open(&names, decoder.config(), capacity)?), names))
            }
            Backend::Tensors(decoder) => {
                let cache = KvCache::new(decoder.config(), capacity, decoder.dtype(), decoder.device())?;
                Ok((Past::Tensors(cache), Vec::new()))
            }
        }
    }

    /// Embeddings `[ids, d_model]`, row-major.
    pub(super) fn embed(&self, ids: &[u32]) -> Result<Vec<f32>> {
        match self {
            Backend::Cpu(decoder) => decoder.embed(ids),
            Backend::Tensors(decoder) => Ok(decoder.embed(ids)?.flatten_all()?.to_vec1()?),
        }
    }

    /// Reads all rows and gives the next-token logits `[vocabulary]` after each wanted one, in order.
    pub(super) fn read(&self, batch: Vec<Rows<'_>>, work: &mut Workspace) -> Result<Vec<Vec<f32>>> {
        let decoder = match self {
            Backend::Tensors(decoder) => {
                let rows = batch.into_iter().map(|rows| read_tensors(decoder, rows));
                return Ok(rows.collect::<Result<Vec<_>>>()?.concat());
            }
            Backend::Cpu(decoder) => decoder,
        };
        let step = |rows| match rows {
            Rows { input, past: Past::Cpu(cache), wanted } => Some(Step { input, cache, wanted }),
            Rows { past: Past::Tensors(_), .. } => None,
        };
        let mut steps: Vec<_> = batch.into_iter().filter_map(step).collect();
        let hidden = decoder.read(&mut steps, work)?;
        if hidden.is_empty() {
            return Ok(Vec::new());
        }
        let logits = decoder.logits(&hidden, work);
        let rows = hidden.len() / decoder.config().d_model;
        Ok(logits.chunks_exact(logits.len() / rows).map(<[f32]>::to_vec).collect())
    }
}

impl Past {
    /// Positions that were found, before anything is read.
    pub(super) fn found(&self) -> usize {
        match self {
            Past::Cpu(cache) => cache.len(),
            Past::Tensors(_) => 0,
        }
    }

    /// Remembers what was read of a prompt of these pages.
    pub(super) fn keep(&self, prefixes: &Prefixes, names: &[PageName]) {
        if let Past::Cpu(cache) = self {
            prefixes.keep(names, cache);
        }
    }

    /// The same past for another continuation. Tensors are not shared, so those are read anew: `None`.
    pub(super) fn fork(&self) -> Option<Self> {
        match self {
            Past::Cpu(cache) => Some(Past::Cpu(cache.clone())),
            Past::Tensors(_) => None,
        }
    }
}

fn read_tensors(decoder: &Decoder, rows: Rows<'_>) -> Result<Vec<Vec<f32>>> {
    let Rows { input, past: Past::Tensors(cache), wanted } = rows else { return Ok(Vec::new()) };
    let count = input.len() / decoder.config().d_model;
    let input =
        Tensor::from_slice(input, (count, decoder.config().d_model), &Device::Cpu)?.to_device(decoder.device())?;
    let hidden = decoder.extend(&input, cache)?;
    if wanted == 0 {
        return Ok(Vec::new());
    }
    Ok(decoder.logits(&hidden.narrow(0, count - wanted, wanted)?.contiguous()?)?.to_vec2()?)
}
