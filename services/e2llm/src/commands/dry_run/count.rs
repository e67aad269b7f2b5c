//! What a command would do, counted document by document.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::sync::Arc;

use anyhow::{Context, Result};
use e2llm_api::v1::{BatchGetRequest, DocKey, DocRecord, RowError};
use e2llm_api::{ErrorCode, Metadata, row_error};
use e2llm_model::AdapterConfig;
use e2llm_model::chunk::Chunker;
use e2llm_runtime::{RetryPolicy, retry};
use e2llm_store::{MAX_TEXT_BYTES, TextHasher};
use tokio::sync::mpsc;

use crate::failure::of_call;
use crate::input::Part;
use crate::local::Services;

/// Rows looked up at once, and the text after which fewer are: memory stays flat however many there are.
const BATCH_ROWS: usize = 64;
const BATCH_BYTES: usize = 8 << 20;
/// Records asked for at once.
const PAGE: usize = 500;
/// Bytes of an f16, and of the range and lengths that a blob keeps of each chunk.
const F16_BYTES: u64 = 2;
const CHUNK_ROW_BYTES: u64 = 32;
/// That of the store's texts.
const COMPRESSION_LEVEL: i32 = 3;

/// What would become of a row.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::commands) enum Verdict {
    /// No record of this bundle: it is encoded.
    New,
    /// Another text than the record's: it is encoded.
    Changed,
    /// The same text; other metadata are kept with it.
    Annotated,
    /// Nothing has to be encoded or written for it.
    Unchanged,
    /// A question, or a document named by its id, whose records are all there.
    Stored,
    Failed(RowError),
}

/// What all rows come to.
#[derive(Debug, Default, Clone, PartialEq)]
pub(in crate::commands) struct Count {
    pub(in crate::commands) rows: u64,
    pub(in crate::commands) new: u64,
    pub(in crate::commands) changed: u64,
    pub(in crate::commands) annotated: u64,
    pub(in crate::commands) unchanged: u64,
    pub(in crate::commands) stored: u64,
    /// Rows that fail, by code.
    pub(in crate::commands) errors: BTreeMap<String, u64>,
    /// Of what is encoded.
    pub(in crate::commands) size: Size,
}

/// What documents take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::commands) struct Size {
    pub(in crate::commands) text_bytes: u64,
    pub(in crate::commands) tokens: u64,
    pub(in crate::commands) chunks: u64,
    pub(in crate::commands) soft_tokens: u64,
    /// Soft tokens, chunk vectors and ranges; a blob's header of under 1 KiB is left out.
    pub(in crate::commands) prompt_bytes: u64,
    /// Texts as the store compresses them.
    pub(in crate::commands) compressed_bytes: u64,
}

/// Measures texts as the encoder will cut them.
#[derive(Debug, Clone)]
pub(in crate::commands) struct Measure {
    pub(in crate::commands) chunker: Chunker,
    pub(in crate::commands) adapter: AdapterConfig,
}

/// A row whose records are not looked up yet.
#[derive(Debug)]
struct Waiting {
    id: String,
    /// The documents it needs.
    doc_ids: Vec<String>,
    document: Option<Document>,
}

#[derive(Debug)]
struct Document {
    text: String,
    hash: String,
    metadata: String,
}

/// Counts rows.
pub(in crate::commands) struct Counter<'a> {
    /// `None` where there is no store yet.
    pub(in crate::commands) services: Option<&'a Services>,
    pub(in crate::commands) collection: String,
    pub(in crate::commands) fingerprint: String,
    pub(in crate::commands) measure: Arc<Measure>,
}

impl Counter<'_> {
    /// Counts to the end of the input, telling of each row in its order.
    pub(in crate::commands) async fn count(
        &self,
        mut parts: mpsc::Receiver<Part>,
        mut tell: impl FnMut(&str, &Verdict) -> Result<()>,
    ) -> Result<Count> {
        let (mut count, mut batch, mut text) = (Count::default(), Batch::default(), Text::default());
        while let Some(part) = parts.recv().await {
            if let Part::Piece(piece) = part {
                text.push(&piece);
                continue;
            }
            let row = match part {
                Part::Failed { id, error } => Err((id, error)),
                Part::Question(row) => Ok(Waiting { id: row.id, doc_ids: row.doc_ids, document: None }),
                Part::Document { id, bytes: 0, .. } => Ok(Waiting { doc_ids: vec![id.clone()], id, document: None }),
                Part::Document { id, metadata, .. } => match std::mem::take(&mut text).finish(metadata) {
                    Ok(document) => Ok(Waiting { doc_ids: vec![id.clone()], id, document: Some(document) }),
                    Err(error) => Err((id, error)),
                },
                Part::Stored { id, .. } => Ok(Waiting { doc_ids: vec![id.clone()], id, document: None }),
                Part::Piece(_) => continue,
            };
            text = Text::default();
            match row {
                Ok(waiting) => batch.add(waiting),
                Err((id, error)) => {
                    self.settle(&mut batch, &mut count, &mut tell).await?;
                    count.add(&id, Verdict::Failed(error), None, &mut tell)?;
                }
            }
            if batch.is_full() {
                self.settle(&mut batch, &mut count, &mut tell).await?;
            }
        }
        self.settle(&mut batch, &mut count, &mut tell).await?;
        Ok(count)
    }

    async fn settle(
        &self,
        batch: &mut Batch,
        count: &mut Count,
        tell: &mut impl FnMut(&str, &Verdict) -> Result<()>,
    ) -> Result<()> {
        let rows = std::mem::take(batch).rows;
        let records = self.records(rows.iter().flat_map(|row| row.doc_ids.clone()).collect()).await?;
        for row in rows {
            let verdict = self.verdict(&row, &records);
            let is_encoded = matches!(verdict, Verdict::New | Verdict::Changed);
            let size = match row.document.filter(|_| is_encoded) {
                Some(document) => {
                    let measure = self.measure.clone();
                    let measured = tokio::task::spawn_blocking(move || measure.size(&document.text)).await;
                    Some(measured.context("counting tokens stopped")??)
                }
                None => None,
            };
            count.add(&row.id, verdict, size, tell)?;
        }
        Ok(())
    }

    fn verdict(&self, row: &Waiting, records: &HashMap<String, DocRecord>) -> Verdict {
        let Some(document) = &row.document else {
            let unknown = row.doc_ids.iter().find(|id| !records.contains_key(*id));
            return unknown.map_or(Verdict::Stored, |id| {
                let collection = &self.collection;
                let message = format!("document {id:?} is not in collection {collection:?}; encode it first");
                Verdict::Failed(row_error(ErrorCode::NotFound, message))
            });
        };
        match records.get(&row.id) {
            None => Verdict::New,
            Some(record) if record.text_hash != document.hash => Verdict::Changed,
            Some(record) if has_other_metadata(record, &document.metadata) => Verdict::Annotated,
            Some(_) => Verdict::Unchanged,
        }
    }

    /// Records under this bundle, by document id.
    async fn records(&self, ids: Vec<String>) -> Result<HashMap<String, DocRecord>> {
        let mut records = HashMap::new();
        let Some(services) = self.services else { return Ok(records) };
        let key = |id: &String| DocKey {
            collection: self.collection.clone(),
            doc_id: id.clone(),
            fingerprint: self.fingerprint.clone(),
        };
        for ids in ids.chunks(PAGE) {
            let request = BatchGetRequest { keys: ids.iter().map(key).collect() };
            let call = async || services.index().batch_get(request.clone()).await;
            let answer = retry(&RetryPolicy::default(), "Index.BatchGet", services.address(), call).await;
            let found = answer.map_err(of_call)?.into_inner().results.into_iter().filter_map(|result| result.record);
            records.extend(found.map(|record| (record.doc_id.clone(), record)));
        }
        Ok(records)
    }
}

/// As the encoder compares them.
fn has_other_metadata(record: &DocRecord, metadata: &str) -> bool {
    !metadata.is_empty() && Metadata::parse(metadata).ok() != Metadata::parse(&record.metadata).ok()
}

#[derive(Default)]
struct Batch {
    rows: Vec<Waiting>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, row: Waiting) {
        self.bytes += row.document.as_ref().map_or(0, |document| document.text.len());
        self.rows.push(row);
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= BATCH_ROWS || self.bytes >= BATCH_BYTES
    }
}

/// The text of the row to come.
#[derive(Default)]
struct Text {
    hasher: TextHasher,
    bytes: Vec<u8>,
    /// As the coordinator will refuse it.
    refused: Option<RowError>,
}

impl Text {
    fn push(&mut self, piece: &[u8]) {
        if self.refused.is_some() {
            return;
        }
        if let Err(error) = self.hasher.write(piece) {
            self.refused = Some(row_error(error.code(), error.to_string()));
            self.bytes = Vec::new();
            return;
        }
        debug_assert!((self.bytes.len() as u64) <= MAX_TEXT_BYTES);
        self.bytes.extend_from_slice(piece);
    }

    fn finish(self, metadata: String) -> Result<Document, RowError> {
        if let Some(error) = self.refused {
            return Err(error);
        }
        let named = self.hasher.finish().map_err(|error| row_error(error.code(), error.to_string()))?;
        let text = String::from_utf8(self.bytes).map_err(|error| row_error(ErrorCode::NotUtf8, error.to_string()))?;
        Ok(Document { text, hash: named.hash, metadata })
    }
}

impl Measure {
    /// Blocks: it tokenises the text.
    pub(in crate::commands) fn size(&self, text: &str) -> Result<Size> {
        let mut size = Size { text_bytes: text.len() as u64, ..Size::default() };
        for chunk in self.chunker.chunks(text) {
            let tokens = chunk?.tokens;
            size.tokens += u64::from(tokens);
            size.chunks += 1;
            size.soft_tokens += self.adapter.soft_tokens(tokens as usize) as u64;
        }
        let vectors = size.chunks * (self.adapter.d_enc as u64 * F16_BYTES + CHUNK_ROW_BYTES);
        size.prompt_bytes = size.soft_tokens * self.adapter.d_model as u64 * F16_BYTES + vectors;
        let mut compressed = Counting(0);
        zstd::stream::copy_encode(text.as_bytes(), &mut compressed, COMPRESSION_LEVEL)?;
        size.compressed_bytes = compressed.0;
        Ok(size)
    }
}

struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Count {
    fn add(
        &mut self,
        id: &str,
        verdict: Verdict,
        size: Option<Size>,
        tell: &mut impl FnMut(&str, &Verdict) -> Result<()>,
    ) -> Result<()> {
        self.rows += 1;
        match &verdict {
            Verdict::New => self.new += 1,
            Verdict::Changed => self.changed += 1,
            Verdict::Annotated => self.annotated += 1,
            Verdict::Unchanged => self.unchanged += 1,
            Verdict::Stored => self.stored += 1,
            Verdict::Failed(error) => *self.errors.entry(error.code.clone()).or_default() += 1,
        }
        self.size = self.size.plus(size.unwrap_or_default());
        tell(id, &verdict)
    }

    /// Rows that fail.
    pub(in crate::commands) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

impl Size {
    fn plus(self, other: Self) -> Self {
        Self {
            text_bytes: self.text_bytes + other.text_bytes,
            tokens: self.tokens + other.tokens,
            chunks: self.chunks + other.chunks,
            soft_tokens: self.soft_tokens + other.soft_tokens,
            prompt_bytes: self.prompt_bytes + other.prompt_bytes,
            compressed_bytes: self.compressed_bytes + other.compressed_bytes,
        }
    }
}

#[cfg(test)]
mod tests;
