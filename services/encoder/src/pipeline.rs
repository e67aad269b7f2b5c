use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2llm_api::v1::index_client::IndexClient;
use e2llm_api::v1::{CommitRequest, DocKey, DocRecord, GetRequest, Segment};
use e2llm_api::{Collection, DocId, ErrorCode, Metadata};
use e2llm_model::chunk::Chunk;
use e2llm_model::{DocumentEncoder, EncodedChunk, unit};
use e2llm_runtime::Channel;
use e2llm_runtime::failpoint::reach_with;
use e2llm_runtime::{RetryPolicy, retry};
use e2llm_store::{BlobName, ChunkMeta, MAX_CHUNKS, SoftPrompt, Store};
use half::f16;
use metrics::counter;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::error::EncodeError;
use crate::patience::Wait;

/// Chunks encoded between two looks at whether anyone still waits.
const BATCH_CHUNKS: usize = 64;
/// How often a document is encoded for a commit that is refused because something was deleted meanwhile. Garbage is
/// collected every few hours: more than one refusal in a row is a fault.
const COMMITS: u32 = 3;
/// How long a full store or index is waited for, unless said otherwise.
const PATIENCE: Duration = Duration::from_secs(60);

/// Encodes documents of the store and commits their records. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pipeline {
    encoder: Arc<DocumentEncoder>,
    fingerprint: Arc<str>,
    store: Store,
    index: IndexClient<Channel>,
    /// One computes at a time: its products already use every core.
    compute: Arc<Semaphore>,
    /// One document stands in line for that: a question's vector waits for one batch at most.
    documents: Arc<Semaphore>,
    patience: Duration,
}

/// A document to encode; its text is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The set it belongs to.
    pub collection: Collection,
    /// Its name.
    pub doc_id: DocId,
    /// blake3 of its text, hex.
    pub text_hash: String,
    /// What to know of it from now on; `None` leaves what its record under this bundle says.
    pub metadata: Option<Metadata>,
}

/// A document's record, and whether anything had to be done for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// What the index holds now, but for a summary.
    pub record: DocRecord,
    /// Nothing was written: same text, bundle, ratio and metadata as before. A document of which only the metadata
    /// differ is committed anew, so not unchanged, though nothing of it is encoded again.
    pub unchanged: bool,
}

/// What is summed up over a document's segments.
#[derive(Default)]
struct Totals {
    segments: Vec<Segment>,
    tokens: u64,
    vector: Vec<f32>,
}

impl Pipeline {
    /// `fingerprint` is the bundle's.
    pub fn new(encoder: Arc<DocumentEncoder>, fingerprint: &str, store: Store, index: IndexClient<Channel>) -> Self {
        counter!("e2llm_documents_encoded_total").increment(0);
        counter!("e2llm_chunks_encoded_total").increment(0);
        let (fingerprint, one) = (fingerprint.into(), || Arc::new(Semaphore::new(1)));
        Self { encoder, fingerprint, store, index, compute: one(), documents: one(), patience: PATIENCE }
    }

    /// How long what is encoded waits for a full disk or quota before the document fails. Default: 60 s.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The encoder half of the bundle.
    pub(crate) fn encoder(&self) -> &Arc<DocumentEncoder> {
        &self.encoder
    }

    /// The store documents are read from and written to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The bundle's fingerprint.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Unit vectors `[d_enc]` of texts.
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EncodeError> {
        let encoder = self.encoder.clone();
        self.compute(move || texts.iter().map(|text| Ok(encoder.embed(text)?)).collect()).await
    }

    /// Whether the encoder computes: the vector of a short text is a unit vector. Waits for its turn.
    pub async fn check_forward(&self) -> Result<(), String> {
        let vectors = self.embed(vec!["ready".to_owned()]).await.map_err(|error| error.to_string())?;
        let norm = vectors.concat().iter().map(|x| x * x).sum::<f32>().sqrt();
        let sound = (norm - 1.0).abs() < 1e-3;
        if sound { Ok(()) } else { Err(format!("a forward pass gave a vector of norm {norm} instead of 1")) }
    }

    /// Encodes a document unless the index already has it, and commits its record.
    ///
    /// What is found in the store may be deleted as garbage before the commit, which is then refused: the document is
    /// encoded again, and what is gone stored again.
    pub async fn encode(&self, document: &Document) -> Result<Encoded, EncodeError> {
        for _ in 1..COMMITS {
            match self.encode_once(document).await {
                Err(error) if error.code() == ErrorCode::ObjectGone => {
                    warn!(doc_id = %document.doc_id, %error, "encoding again what was deleted meanwhile");
                }
                done => return done,
            }
        }
        self.encode_once(document).await
    }

    async fn encode_once(&self, document: &Document) -> Result<Encoded, EncodeError> {
        let earlier = self.earlier(document).await?;
        let metadata = metadata(document, earlier.as_ref());
        if let Some(record) = self.reusable(document, earlier).await? {
            if record.metadata == metadata {
                return Ok(Encoded { record, unchanged: true });
            }
            return self.commit(DocRecord { metadata, ..record }).await;
        }
        let text: Arc<str> = self.store.get_text(&document.text_hash).await?.into();
        reach_with("encoder.text_read", &document.doc_id);
        let mut totals = Totals::default();
        let mut start = 0;
        while let Some(chunks) = self.next_chunks(&text, start).await? {
            start = chunks.last().map_or(text.len(), |c| c.end);
            self.segment(document, &text, chunks, &mut totals).await?;
        }
        if totals.segments.is_empty() {
            return Err(EncodeError::Empty { doc_id: document.doc_id.to_string() });
        }
        let record = self.record(document, &text, totals);
        reach_with("encoder.before_commit", &record.doc_id);
        let encoded = self.commit(DocRecord { metadata, ..record }).await?;
        counter!("e2llm_documents_encoded_total").increment(1);
        counter!("e2llm_chunks_encoded_total").increment(u64::from(encoded.record.chunks));
        Ok(encoded)
    }

    /// The record that the index has under this bundle, without its summary, which the index keeps by itself.
    async fn earlier(&self, document: &Document) -> Result<Option<DocRecord>, EncodeError> {
        let key = DocKey {
            collection: document.collection.to_string(),
            doc_id: document.doc_id.to_string(),
            fingerprint: self.fingerprint.to_string(),
        };
        let request = GetRequest { key: Some(key) };
        let policy = RetryPolicy::default();
        let found = retry(&policy, "Index.Get", "the index", || {
            let (mut index, request) = (self.index.clone(), request.clone());
            async move { index.get(request).await }
        });
        match found.await {
            Ok(response) => Ok(response.into_inner().record.map(|record| DocRecord { summary: None, ..record })),
            Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The earlier record, when it was made from the same text and its soft prompts are there.
    async fn reusable(
        &self,
        document: &Document,
        earlier: Option<DocRecord>,
    ) -> Result<Option<DocRecord>, EncodeError> {
        let Some(record) = earlier.filter(|record| record.text_hash == document.text_hash) else { return Ok(None) };
        Ok(self.is_stored(&record).await?.then_some(record))
    }

    /// Whether the record's soft prompts are all there: damaged ones are set aside, and made anew by encoding again.
    async fn is_stored(&self, record: &DocRecord) -> Result<bool, EncodeError> {
        for segment in &record.segments {
            let name = BlobName::new(&segment.input_key, &segment.content_hash)?;
            if !self.store.exists(&name.path()).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn commit(&self, record: DocRecord) -> Result<Encoded, EncodeError> {
        let request = CommitRequest { records: vec![record.clone()] };
        let policy = RetryPolicy::default();
        let mut wait = Wait::new(&record.doc_id, self.patience);
        let version = loop {
            let committed = retry(&policy, "Index.Commit", "the index", || {
                let (mut index, request) = (self.index.clone(), request.clone());
                async move { index.commit(request).await }
            });
            match committed.await {
                Ok(response) => break response.into_inner().manifest,
                Err(error) => wait.after(error.into()).await?,
            }
        };
        reach_with("encoder.committed", &record.doc_id);
        Ok(Encoded { record: DocRecord { version, ..record }, unchanged: false })
    }

    /// The chunks of the next segment, from byte `start` on.
    async fn next_chunks(&self, text: &Arc<str>, start: usize) -> Result<Option<Vec<Chunk>>, EncodeError> {
        let (encoder, text) = (self.encoder.clone(), text.clone());
        self.compute_document(move || {
            let shifted = |chunk: Chunk| Chunk { start: chunk.start + start, end: chunk.end + start, ..chunk };
            let chunks = encoder.chunker().chunks(&text[start..]).take(MAX_CHUNKS);
            let chunks: Vec<Chunk> = chunks.map(|c| Ok(shifted(c?))).collect::<Result<_, EncodeError>>()?;
            Ok((!chunks.is_empty()).then_some(chunks))
        })
        .await
    }

    /// Encodes one segment, or finds it already stored.
    async fn segment(
        &self,
        document: &Document,
        text: &Arc<str>,
        chunks: Vec<Chunk>,
        totals: &mut Totals,
    ) -> Result<(), EncodeError> {
        let range = chunks.first().map_or(0, |c| c.start)..chunks.last().map_or(0, |c| c.end);
        let input_key = self.input_key(&document.text_hash, range.start, range.end);
        if let Some(segment) = self.store.find_blob(&input_key).await? {
            let prompt = self.store.get_blob(&segment).await?;
            totals.add(segment, &prompt);
            return Ok(());
        }
        let encoded = self.encode_chunks(text, &chunks).await?;
        let prompt = self.prompt(document, input_key, &chunks, &encoded);
        let mut wait = Wait::new(document.doc_id.as_str(), self.patience);
        let segment = loop {
            match self.store.put_blob(&prompt).await {
                Ok(segment) => break segment,
                Err(error) => wait.after(error.into()).await?,
            }
        };
        reach_with("encoder.blob_written", &document.doc_id);
        totals.add(segment, &prompt);
        Ok(())
    }

    async fn encode_chunks(&self, text: &Arc<str>, chunks: &[Chunk]) -> Result<Vec<EncodedChunk>, EncodeError> {
        let mut encoded = Vec::with_capacity(chunks.len());
        for batch in chunks.chunks(BATCH_CHUNKS) {
            let (encoder, text, batch) = (self.encoder.clone(), text.clone(), batch.to_vec());
            let part = self.compute_document(move || {
                let texts: Vec<&str> = batch.iter().map(|c| c.text(&text)).collect();
                Ok(encoder.encode(&texts)?)
            });
            encoded.extend(part.await?);
        }
        Ok(encoded)
    }

    fn prompt(&self, document: &Document, input_key: String, chunks: &[Chunk], encoded: &[EncodedChunk]) -> SoftPrompt {
        let halves = |values: &[f32]| values.iter().map(|v| f16::from_f32(*v)).collect::<Vec<_>>();
        let meta = |(chunk, encoded): (&Chunk, &EncodedChunk)| ChunkMeta {
            text_start: chunk.start as u64,
            text_end: chunk.end as u64,
            tokens: encoded.tokens as u32,
            soft_tokens: encoded.count as u32,
        };
        SoftPrompt {
            fingerprint: self.fingerprint.to_string(),
            ratio: self.encoder.ratio() as u32,
            input_key,
            text_hash: document.text_hash.clone(),
            text_start: chunks.first().map_or(0, |c| c.start as u64),
            text_end: chunks.last().map_or(0, |c| c.end as u64),
            d_model: self.encoder.d_model(),
            d_enc: self.encoder.d_enc(),
            chunks: chunks.iter().zip(encoded).map(meta).collect(),
            soft: encoded.iter().flat_map(|e| halves(&e.soft)).collect(),
            vectors: encoded.iter().flat_map(|e| halves(&e.vector)).collect(),
        }
    }

    fn record(&self, document: &Document, text: &str, totals: Totals) -> DocRecord {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        DocRecord {
            collection: document.collection.to_string(),
            doc_id: document.doc_id.to_string(),
            fingerprint: self.fingerprint.to_string(),
            ratio: self.encoder.ratio() as u32,
            version: 0,
            text_hash: document.text_hash.clone(),
            text_bytes: text.len() as u64,
            text_stored: true,
            source_tokens: totals.tokens,
            chunks: totals.segments.iter().map(|s| s.chunks).sum(),
            soft_tokens: totals.segments.iter().map(|s| s.soft_tokens).sum(),
            d_model: self.encoder.d_model() as u32,
            segments: totals.segments,
            mean_vector: unit(totals.vector).iter().flat_map(|v| v.to_le_bytes()).collect(),
            encoded_unix_ms: now.as_millis() as u64,
            ..DocRecord::default()
        }
    }

    /// Hash of everything a segment's soft tokens are made from. The fingerprint covers models, adapter, ratio and chunker.
    fn input_key(&self, text_hash: &str, start: usize, end: usize) -> String {
        let text = format!("{}\n{}\n{text_hash}\n{start}\n{end}", self.fingerprint, self.encoder.ratio());
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    /// The same for documents, which give way to questions between their batches.
    async fn compute_document<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, EncodeError> + Send + 'static,
    ) -> Result<T, EncodeError> {
        let _place = self.documents.acquire().await.map_err(|e| EncodeError::Stopped(e.to_string()))?;
        self.compute(work).await
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, EncodeError> + Send + 'static,
    ) -> Result<T, EncodeError> {
        let stopped = |e: &dyn std::fmt::Display| EncodeError::Stopped(e.to_string());
        let _turn = self.compute.acquire().await.map_err(|e| stopped(&e))?;
        tokio::task::spawn_blocking(work).await.map_err(|e| stopped(&e))?
    }
}

/// The metadata of the record to come, as records hold it.
fn metadata(document: &Document, earlier: Option<&DocRecord>) -> String {
    match (&document.metadata, earlier) {
        (None, earlier) => earlier.map(|record| record.metadata.clone()).unwrap_or_default(),
        (Some(new), Some(record)) if Metadata::parse(&record.metadata).as_ref() == Ok(new) => record.metadata.clone(),
        (Some(new), _) => new.to_string(),
    }
}

impl Totals {
    fn add(&mut self, segment: Segment, prompt: &SoftPrompt) {
        self.segments.push(segment);
        self.tokens += prompt.chunks.iter().map(|c| u64::from(c.tokens)).sum::<u64>();
        self.vector.resize(prompt.d_enc, 0.0);
        for vector in prompt.vectors.chunks_exact(prompt.d_enc) {
            self.vector.iter_mut().zip(vector).for_each(|(sum, v)| *sum += v.to_f32());
        }
    }
}
