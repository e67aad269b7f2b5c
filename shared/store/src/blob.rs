use bytes::Bytes;
use e2llm_api::v1;
use half::f16;
use tracing::warn;

use crate::blob_format;
use crate::error::{Result, StoreError};
use crate::names::{BlobName, ContentHash};
use crate::objects::{Created, Fetched};
use crate::store::{Store, blocking};

/// Most chunks of one blob; a longer document has several.
pub const MAX_CHUNKS: usize = 4096;

/// The soft prompt of up to [`MAX_CHUNKS`] consecutive chunks of one document.
#[derive(Debug, Clone, PartialEq)]
pub struct SoftPrompt {
    /// Fingerprint of the bundle, ratio included.
    pub fingerprint: String,
    /// Word pieces per soft token.
    pub ratio: u32,
    /// Hash of everything it was made from, 64 lower-case hex digits.
    pub input_key: String,
    /// Hash of the whole text, 64 lower-case hex digits.
    pub text_hash: String,
    /// Start of the covered bytes of the text.
    pub text_start: u64,
    /// End of the covered bytes, exclusive.
    pub text_end: u64,
    /// Width of the decoder's embeddings.
    pub d_model: usize,
    /// Width of the encoder's vectors.
    pub d_enc: usize,
    /// The chunks in document order; at least one.
    pub chunks: Vec<ChunkMeta>,
    /// `[soft tokens, d_model]`, row by row, in the order of the chunks.
    pub soft: Vec<f16>,
    /// `[chunks, d_enc]`, row by row.
    pub vectors: Vec<f16>,
}

/// One chunk of a [`SoftPrompt`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkMeta {
    /// Start in the whole text, in bytes.
    pub text_start: u64,
    /// End in the whole text, exclusive.
    pub text_end: u64,
    /// Word pieces of the chunk, special tokens excluded.
    pub tokens: u32,
    /// Its rows in `soft`.
    pub soft_tokens: u32,
}

impl SoftPrompt {
    /// The number of rows of `soft` that the chunks claim.
    pub fn soft_tokens(&self) -> u64 {
        self.chunks.iter().map(|chunk| u64::from(chunk.soft_tokens)).sum()
    }

    /// Checks that the fields agree with each other. The error says which do not.
    pub(crate) fn check(&self) -> Result<(), String> {
        for (name, hash) in [("input key", &self.input_key), ("text hash", &self.text_hash)] {
            ContentHash::parse(hash).map_err(|error| format!("{name}: {error}"))?;
        }
        if self.chunks.is_empty() || self.chunks.len() > MAX_CHUNKS {
            return Err(format!("it has {} chunks, not 1 to {MAX_CHUNKS}", self.chunks.len()));
        }
        check_size("soft", self.soft.len(), self.soft_tokens(), self.d_model)?;
        check_size("vectors", self.vectors.len(), self.chunks.len() as u64, self.d_enc)?;
        self.check_ranges()
    }

    fn check_ranges(&self) -> Result<(), String> {
        let mut start = self.text_start;
        for (number, chunk) in self.chunks.iter().enumerate() {
            if chunk.text_start < start || chunk.text_end < chunk.text_start || chunk.text_end > self.text_end {
                return Err(format!(
                    "chunk {number} covers bytes {}..{}, out of order or outside {}..{}",
                    chunk.text_start, chunk.text_end, self.text_start, self.text_end
                ));
            }
            start = chunk.text_start;
        }
        Ok(())
    }

    /// Checks that a record says of this blob what its header says.
    pub(crate) fn check_record(&self, name: &BlobName, record: &v1::Segment) -> Result<()> {
        if self.segment(&name.content_hash, record.bytes as usize) == *record {
            return Ok(());
        }
        let reason = "its header differs from the record that names it".to_owned();
        Err(StoreError::Corrupt { object: name.path(), reason, quarantined: None })
    }

    /// Bytes of memory that its values take.
    pub(crate) fn size(&self) -> usize {
        size_of_val(self.soft.as_slice()) + size_of_val(self.vectors.as_slice()) + size_of_val(self.chunks.as_slice())
    }

    fn segment(&self, content_hash: &ContentHash, bytes: usize) -> v1::Segment {
        v1::Segment {
            input_key: self.input_key.clone(),
            content_hash: content_hash.to_string(),
            bytes: bytes as u64,
            chunks: self.chunks.len() as u32,
            // At most 4,096 chunks whose rows are all present: far below 2^32.
            soft_tokens: self.soft_tokens() as u32,
            text_start: self.text_start,
            text_end: self.text_end,
        }
    }
}

fn check_size(name: &str, found: usize, rows: u64, width: usize) -> Result<(), String> {
    let expected = usize::try_from(rows).ok().and_then(|rows| rows.checked_mul(width));
    if width == 0 || expected != Some(found) {
        return Err(format!("{name} has {found} values, not [{rows}, {width}]"));
    }
    Ok(())
}

impl Store {
    /// Stores a soft prompt under its input key and content hash.
    ///
    /// A damaged blob that stands under the same name is set aside and replaced.
    ///
    /// # Errors
    /// [`StoreError::InvalidBlob`] when the fields contradict each other; those of [`Store::create`].
    pub async fn put_blob(&self, prompt: &SoftPrompt) -> Result<v1::Segment> {
        let invalid = |reason| StoreError::InvalidBlob { input_key: prompt.input_key.clone(), reason };
        prompt.check().map_err(invalid)?;
        let bytes = blob_format::encode(prompt).map_err(invalid)?;
        let segment = prompt.segment(&ContentHash::of(&bytes), bytes.len());
        let path = BlobName::new(&segment.input_key, &segment.content_hash)?.path();
        if self.create(&path, bytes.clone()).await? == Created::New {
            return Ok(segment);
        }
        match self.get_blob(&segment).await {
            Ok(_) => {}
            Err(StoreError::Corrupt { quarantined: Some(_), .. } | StoreError::NotFound { .. }) => {
                let (Created::New | Created::Exists) = self.create(&path, bytes).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(segment)
    }

    /// Reads the soft prompt a record names and verifies it: content hash, header, shapes and the record's counts.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`], after which a damaged object is in quarantine.
    pub async fn get_blob(&self, segment: &v1::Segment) -> Result<SoftPrompt> {
        Ok(self.get_blob_and_bytes(segment).await?.0)
    }

    /// [`Store::get_blob`] with the bytes that were read.
    pub(crate) async fn get_blob_and_bytes(&self, segment: &v1::Segment) -> Result<(SoftPrompt, Bytes)> {
        let name = BlobName::new(&segment.input_key, &segment.content_hash)?;
        let Some((prompt, bytes)) = self.read_blob(&name).await? else {
            return Err(StoreError::NotFound { object: name.path() });
        };
        prompt.check_record(&name, segment)?;
        Ok((prompt, bytes))
    }

    /// A verified blob made from `input_key`, if the store has one. Damaged ones are set aside on the way.
    pub async fn find_blob(&self, input_key: &str) -> Result<Option<v1::Segment>> {
        let folder = BlobName::folder(&ContentHash::parse(input_key)?);
        for path in self.list(&folder).await? {
            let Some(name) = BlobName::from_path(&path) else {
                warn!(path, "not the name of a blob, ignored");
                continue;
            };
            match self.read_blob(&name).await {
                Ok(Some((prompt, bytes))) => return Ok(Some(prompt.segment(&name.content_hash, bytes.len()))),
                Ok(None) | Err(StoreError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn read_blob(&self, name: &BlobName) -> Result<Option<(SoftPrompt, Bytes)>> {
        let path = name.path();
        let Some(Fetched { meta, bytes }) = self.fetch(&path).await? else { return Ok(None) };
        let (expected, read) = (name.clone(), bytes.clone());
        match blocking(move || Ok(verified(&expected, &read))).await? {
            Ok(prompt) => Ok(Some((prompt, bytes))),
            Err(reason) => Err(self.set_aside(&path, &meta, reason).await),
        }
    }
}

/// Decodes a blob whose bytes and header match its name. The error says what does not.
pub(crate) fn verified(name: &BlobName, bytes: &[u8]) -> Result<SoftPrompt, String> {
    if ContentHash::of(bytes) != name.content_hash {
        return Err(format!("its {} bytes do not match the hash in its name", bytes.len()));
    }
    let prompt = blob_format::decode(bytes)?;
    if prompt.input_key != name.input_key.as_str() {
        return Err(format!("its header names the input key {}", prompt.input_key));
    }
    Ok(prompt)
}
