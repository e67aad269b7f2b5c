use std::sync::Arc;

use e2llm_api::v1::DocRecord;
use e2llm_model::chunk::trim_blank;
use e2llm_model::expand::Candidate;
use e2llm_model::prompt::gap_after;
use e2llm_store::{ReadCache, SoftPrompt};

use crate::error::DecodeError;

/// A document fetched for answering: its verified soft prompts and, where kept, its text.
#[derive(Debug, Clone)]
pub(crate) struct LoadedDocument {
    pub(crate) record: DocRecord,
    prompts: Vec<Arc<SoftPrompt>>,
    /// Unit chunk vectors of all segments, `[chunks, d_enc]`, f32.
    vectors: Vec<f32>,
    text: Option<Arc<str>>,
}

/// One chunk of a loaded document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ChunkRef {
    segment: usize,
    /// Index within the segment.
    chunk: usize,
    /// Index within the document.
    pub(crate) number: usize,
    /// First row of its soft tokens in the segment.
    row: usize,
}

impl LoadedDocument {
    /// Fetches every segment; `with_text` also the text, when the store has it.
    pub(crate) async fn load(
        store: &ReadCache,
        record: DocRecord,
        with_text: bool,
        d_model: usize,
    ) -> Result<Self, DecodeError> {
        let mut prompts = Vec::with_capacity(record.segments.len());
        for segment in &record.segments {
            let prompt = store.soft_prompt(segment).await?;
            if prompt.d_model != d_model {
                return Err(DecodeError::Width { doc_id: record.doc_id, found: prompt.d_model, expected: d_model });
            }
            prompts.push(prompt);
        }
        let vectors = prompts.iter().flat_map(|p| p.vectors.iter().map(|v| v.to_f32())).collect();
        let text = match with_text && record.text_stored {
            true => Some(store.text(&record.text_hash).await?),
            false => None,
        };
        Ok(Self { record, prompts, vectors, text })
    }

    /// All chunks in document order.
    pub(crate) fn chunks(&self) -> Vec<ChunkRef> {
        let mut chunks = Vec::new();
        for (segment, prompt) in self.prompts.iter().enumerate() {
            let mut row = 0;
            for (chunk, meta) in prompt.chunks.iter().enumerate() {
                chunks.push(ChunkRef { segment, chunk, number: chunks.len(), row });
                row += meta.soft_tokens as usize;
            }
        }
        chunks
    }

    /// What expansion needs to know of a chunk.
    pub(crate) fn candidate(&self, chunk: ChunkRef) -> Candidate<'_> {
        let width = self.prompts[chunk.segment].d_enc;
        Candidate {
            vector: &self.vectors[chunk.number * width..(chunk.number + 1) * width],
            soft_tokens: self.prompts[chunk.segment].chunks[chunk.chunk].soft_tokens as usize,
        }
    }

    /// Byte range of a chunk in the document's text.
    pub(crate) fn range(&self, chunk: ChunkRef) -> std::ops::Range<usize> {
        let meta = &self.prompts[chunk.segment].chunks[chunk.chunk];
        meta.text_start as usize..meta.text_end as usize
    }

    /// The chunk's raw text without the blank stretch around it, when the document's text was kept.
    pub(crate) fn text(&self, chunk: ChunkRef) -> Option<&str> {
        self.text.as_ref()?.get(self.range(chunk)).map(trim_blank)
    }

    /// What a chunk's range ends with before the next one begins: the shortest blank that says as much.
    pub(crate) fn gap(&self, range: &std::ops::Range<usize>) -> &'static str {
        gap_after(self.text.as_ref().and_then(|text| text.get(range.clone())).unwrap_or_default())
    }

    /// Whether it has a soft token.
    pub(crate) fn has_soft_tokens(&self) -> bool {
        self.prompts.iter().any(|prompt| !prompt.soft.is_empty())
    }

    /// `count` soft tokens from number `start` on, over and over, `[count, d_model]`, f32.
    pub(crate) fn soft_from(&self, start: usize, count: usize) -> Vec<f32> {
        let rows = self.prompts.iter().flat_map(|prompt| prompt.soft.chunks(prompt.d_model));
        let total = self.prompts.iter().map(|prompt| prompt.soft.len() / prompt.d_model.max(1)).sum::<usize>().max(1);
        rows.cycle().skip(start % total).take(count).flatten().map(|value| value.to_f32()).collect()
    }

    /// The chunk's soft tokens `[count, d_model]`, f32.
    pub(crate) fn soft(&self, chunk: ChunkRef) -> Vec<f32> {
        let prompt = &self.prompts[chunk.segment];
        let count = prompt.chunks[chunk.chunk].soft_tokens as usize;
        let rows = &prompt.soft[chunk.row * prompt.d_model..(chunk.row + count) * prompt.d_model];
        rows.iter().map(|v| v.to_f32()).collect()
    }
}
