//! The bytes of a stored soft prompt: a safetensors file.
//!
//! | tensor | dtype | shape |
//! |---|---|---|
//! | `chunks` | U64 | `[chunks, 4]`: text start, text end, tokens, soft tokens |
//! | `soft` | F16 | `[soft tokens, d_model]` |
//! | `vectors` | F16 | `[chunks, d_enc]` |
//!
//! The metadata entry `e2llm` is a JSON object with the key fields. It is one entry because safetensors writes
//! several in random order, and equal soft prompts must have equal bytes.

use std::collections::HashMap;

use bytes::Bytes;
use half::f16;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorView};
use serde::{Deserialize, Serialize};

use crate::blob::{ChunkMeta, SoftPrompt};

const FORMAT: u32 = 1;
const METADATA_KEY: &str = "e2llm";
const CHUNK_FIELDS: usize = 4;

/// Three tensors and one metadata entry need well under 2 KiB.
const MAX_HEADER_BYTES: usize = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    format: u32,
    fingerprint: String,
    ratio: u32,
    input_key: String,
    text_hash: String,
    text_start: u64,
    text_end: u64,
}

/// Encodes a checked soft prompt. Equal prompts give equal bytes.
pub(crate) fn encode(prompt: &SoftPrompt) -> Result<Bytes, String> {
    let failed = |error: &dyn std::fmt::Display| error.to_string();
    let header = Header {
        format: FORMAT,
        fingerprint: prompt.fingerprint.clone(),
        ratio: prompt.ratio,
        input_key: prompt.input_key.clone(),
        text_hash: prompt.text_hash.clone(),
        text_start: prompt.text_start,
        text_end: prompt.text_end,
    };
    let json = serde_json::to_string(&header).map_err(|error| failed(&error))?;
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), json)]);
    let (chunks, soft, vectors) = (chunk_bytes(&prompt.chunks), f16_bytes(&prompt.soft), f16_bytes(&prompt.vectors));
    let rows = prompt.chunks.len();
    let soft_shape = vec![prompt.soft.len() / prompt.d_model.max(1), prompt.d_model];
    let view = |dtype, shape, data| TensorView::new(dtype, shape, data).map_err(|error| failed(&error));
    let tensors = [
        ("chunks", view(Dtype::U64, vec![rows, CHUNK_FIELDS], chunks.as_slice())?),
        ("soft", view(Dtype::F16, soft_shape, soft.as_slice())?),
        ("vectors", view(Dtype::F16, vec![rows, prompt.d_enc], vectors.as_slice())?),
    ];
    safetensors::serialize(tensors, Some(metadata)).map(Bytes::from).map_err(|error| failed(&error))
}

/// Decodes and checks a soft prompt. Nothing is allocated from a claimed size: every tensor is a range of `bytes`.
pub(crate) fn decode(bytes: &[u8]) -> Result<SoftPrompt, String> {
    let file = File::parse(bytes)?;
    let header = file.header()?;
    let (chunk_shape, chunks) = file.tensor("chunks", Dtype::U64)?;
    let (soft_shape, soft) = file.tensor("soft", Dtype::F16)?;
    let (vector_shape, vectors) = file.tensor("vectors", Dtype::F16)?;
    if chunk_shape[1] != CHUNK_FIELDS {
        return Err(format!("its chunk table has {} columns, not {CHUNK_FIELDS}", chunk_shape[1]));
    }
    let prompt = SoftPrompt {
        fingerprint: header.fingerprint,
        ratio: header.ratio,
        input_key: header.input_key,
        text_hash: header.text_hash,
        text_start: header.text_start,
        text_end: header.text_end,
        d_model: soft_shape[1],
        d_enc: vector_shape[1],
        chunks: chunk_rows(chunks)?,
        soft: f16_values(soft),
        vectors: f16_values(vectors),
    };
    prompt.check()?;
    Ok(prompt)
}

/// A safetensors file whose header was validated against the bytes that follow it.
struct File<'a> {
    metadata: Metadata,
    data: &'a [u8],
}

impl<'a> File<'a> {
    /// The crate's own `SafeTensors::deserialize` adds up claimed offsets unchecked, so the sums are done here.
    fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or("it is shorter than a safetensors header")?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > MAX_HEADER_BYTES {
            return Err(format!("its header claims {length} bytes, more than {MAX_HEADER_BYTES}"));
        }
        let (header, data) = rest.split_at_checked(length).ok_or("it ends within its header")?;
        let metadata: Metadata =
            serde_json::from_slice(header).map_err(|error| format!("its header is invalid ({error})"))?;
        if metadata.data_len() != data.len() {
            return Err(format!("its header claims {} bytes of tensors, it has {}", metadata.data_len(), data.len()));
        }
        Ok(Self { metadata, data })
    }

    fn header(&self) -> Result<Header, String> {
        let entry = self.metadata.metadata().as_ref().and_then(|entries| entries.get(METADATA_KEY));
        let json = entry.ok_or_else(|| format!("its header has no metadata entry {METADATA_KEY:?}"))?;
        let header: Header =
            serde_json::from_str(json).map_err(|error| format!("its metadata is invalid ({error})"))?;
        if header.format != FORMAT {
            return Err(format!("it has format {} and this program knows format {FORMAT}", header.format));
        }
        Ok(header)
    }

    /// Shape and bytes of a matrix.
    fn tensor(&self, name: &str, dtype: Dtype) -> Result<([usize; 2], &'a [u8]), String> {
        let info = self.metadata.info(name).ok_or_else(|| format!("it has no tensor {name:?}"))?;
        let shape = <[usize; 2]>::try_from(info.shape.as_slice());
        let (start, end) = info.data_offsets;
        match (shape, self.data.get(start..end)) {
            (Ok(shape), Some(data)) if info.dtype == dtype => Ok((shape, data)),
            _ => Err(format!("its tensor {name:?} is {:?} {:?}", info.dtype, info.shape)),
        }
    }
}

fn chunk_bytes(chunks: &[ChunkMeta]) -> Vec<u8> {
    let fields =
        |chunk: &ChunkMeta| [chunk.text_start, chunk.text_end, u64::from(chunk.tokens), u64::from(chunk.soft_tokens)];
    chunks.iter().flat_map(fields).flat_map(u64::to_le_bytes).collect()
}

fn chunk_rows(bytes: &[u8]) -> Result<Vec<ChunkMeta>, String> {
    let (rows, _) = bytes.as_chunks::<{ 8 * CHUNK_FIELDS }>();
    let chunk = |row: &[u8; 8 * CHUNK_FIELDS]| {
        let (fields, _) = row.as_chunks::<8>();
        let small = |number: usize| u32::try_from(u64::from_le_bytes(fields[number]));
        Ok(ChunkMeta {
            text_start: u64::from_le_bytes(fields[0]),
            text_end: u64::from_le_bytes(fields[1]),
            tokens: small(2)?,
            soft_tokens: small(3)?,
        })
    };
    let rows: Result<_, std::num::TryFromIntError> = rows.iter().map(chunk).collect();
    rows.map_err(|_| "its chunk table counts more than 2^32 tokens".to_owned())
}

fn f16_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn f16_values(bytes: &[u8]) -> Vec<f16> {
    let (pairs, _) = bytes.as_chunks::<2>();
    pairs.iter().map(|pair| f16::from_le_bytes(*pair)).collect()
}

#[cfg(test)]
#[path = "blob_format_tests.rs"]
mod tests;
