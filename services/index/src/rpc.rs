//! The RPCs of `e2llm.v1.Index`.

use std::collections::HashSet;

use e2llm_api::v1::{self, index_server::Index};
use e2llm_api::{Collection, ErrorCode, MAX_MESSAGE_BYTES};
use e2llm_runtime::auth::caller;
use e2llm_store::manifest::Change;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::doc_index::{ListQuery, RecordKey};
use crate::live::Live;
use crate::{Filter, IndexError, IndexService, gc, paging, validate};

pub(crate) const DEFAULT_PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;
const MAX_KEYS: usize = 1000;
pub(crate) const DEFAULT_HITS: u32 = 10;

/// What a response may hold; the rest of a message is for its frame.
pub(crate) const MAX_RESPONSE: usize = MAX_MESSAGE_BYTES - (64 << 10);

/// A page closes at this size, and one record may come on top.
pub(crate) const PAGE_BYTES: usize = MAX_RESPONSE / 2;

/// Records that one call looks at; a page may be empty and still have a next one. Decoding that many takes a fraction of
/// a second.
const LOOK_AT: usize = 20_000;

/// Reports of a call that may wait for a slow reader.
const REPORTS: usize = 16;

#[tonic::async_trait]
impl Index for IndexService {
    type CollectGarbageStream = ReceiverStream<Result<v1::CollectGarbageResponse, Status>>;

    async fn collect_garbage(
        &self,
        request: Request<Streaming<v1::CollectGarbageRequest>>,
    ) -> Result<Response<Self::CollectGarbageStream>, Status> {
        caller(&request).check_all()?;
        let (reports, receiver) = mpsc::channel(REPORTS);
        tokio::spawn(gc::serve(self.clone(), request.into_inner(), reports));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let caller = caller(&request);
        let mut records = request.into_inner().records;
        records.iter().try_for_each(|record| caller.check(&record.collection))?;
        records.iter().try_for_each(|record| self.shard.check(&record.collection, &record.doc_id))?;
        // The index knows better which summaries are kept.
        records.iter_mut().for_each(|record| record.summary = None);
        validate::records(&records)?;
        self.await_view().await?;
        let records = self.read(move |live| validate::lengths(&records, live).map(|()| records)).await?;
        let written = self.put(records).await?;
        Ok(Response::new(v1::CommitResponse { manifest: written.manifest }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let missing = || IndexError::invalid("key is missing; name a collection and a document");
        let caller = caller(&request);
        let key = validate::key(&request.into_inner().key.ok_or_else(missing)?)?;
        caller.check(&key.collection)?;
        self.shard.check(&key.collection, &key.doc_id)?;
        let record = self.read(move |live| look_up(live, &key)?.ok_or_else(|| not_found(&key))).await?;
        Ok(Response::new(v1::GetResponse { record: Some(record) }))
    }

    async fn batch_get(&self, request: Request<v1::BatchGetRequest>) -> Result<Response<v1::BatchGetResponse>, Status> {
        let caller = caller(&request);
        let keys = request.into_inner().keys;
        keys.iter().try_for_each(|key| caller.check(&key.collection))?;
        keys.iter().try_for_each(|key| self.shard.check(&key.collection, &key.doc_id))?;
        at_most("keys", keys.len())?;
        keys.iter().try_for_each(|key| validate::key(key).map(drop))?;
        let results = self.read(move |live| batch(live, keys)).await?;
        Ok(Response::new(v1::BatchGetResponse { results }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        caller(&request).check(&request.get_ref().collection)?;
        let query = list_query(request.into_inner())?;
        let page = self.read(move |live| live.index().list(&query)).await?;
        let next_page_token = page.last.filter(|_| page.more).map(|last| paging::token(&last)).unwrap_or_default();
        Ok(Response::new(v1::ListResponse { records: page.records, next_page_token }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        caller(&request).check(&request.get_ref().collection)?;
        let v1::DeleteRequest { collection, mut doc_ids } = request.into_inner();
        at_most("doc_ids", doc_ids.len())?;
        doc_ids.iter().try_for_each(|doc_id| validate::document(&collection, doc_id))?;
        doc_ids.iter().try_for_each(|doc_id| self.shard.check(&collection, doc_id))?;
        let mut seen = HashSet::new();
        doc_ids.retain(|doc_id| seen.insert(doc_id.clone()));
        let delete = |doc_id: &String| Change::Delete { collection: collection.clone(), doc_id: doc_id.clone() };
        let bytes = doc_ids.iter().map(|doc_id| collection.len() + doc_id.len()).sum();
        let written = self.write(doc_ids.iter().map(delete).collect(), bytes).await?;
        let mut response = v1::DeleteResponse { manifest: written.manifest, ..Default::default() };
        for (doc_id, removed) in doc_ids.into_iter().zip(&written.removed) {
            let list = if removed.is_empty() { &mut response.unknown } else { &mut response.deleted };
            list.push(doc_id);
        }
        Ok(Response::new(response))
    }

    async fn put_summaries(
        &self,
        request: Request<v1::PutSummariesRequest>,
    ) -> Result<Response<v1::PutSummariesResponse>, Status> {
        caller(&request).check(&request.get_ref().collection)?;
        let v1::PutSummariesRequest { collection, summaries } = request.into_inner();
        at_most("summaries", summaries.len())?;
        validate::summaries(&collection, &summaries)?;
        summaries.iter().try_for_each(|summary| self.shard.check(&collection, &summary.doc_id))?;
        let bytes = summaries.iter().map(Message::encoded_len).sum();
        let changes = summaries.into_iter().map(|summary| Change::Summary(of_document(&collection, summary))).collect();
        let written = self.write(changes, bytes).await?;
        let kept = written.kept.iter().filter(|kept| **kept).count();
        let dropped = (written.kept.len() - kept) as u32;
        Ok(Response::new(v1::PutSummariesResponse { manifest: written.manifest, kept: kept as u32, dropped }))
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchResponse>, Status> {
        caller(&request).check(&request.get_ref().collection)?;
        let request = request.into_inner();
        check_search(&request)?;
        let hits = self.read(move |live| search(live, &request)).await?;
        Ok(Response::new(v1::SearchResponse { hits }))
    }
}

fn of_document(collection: &str, summary: v1::DocSummary) -> v1::SummaryOf {
    let v1::DocSummary { doc_id, fingerprint, text_hash, summary } = summary;
    v1::SummaryOf { collection: collection.to_owned(), doc_id, fingerprint, text_hash, summary }
}

fn look_up(live: &Live, key: &RecordKey) -> Result<Option<v1::DocRecord>, IndexError> {
    if key.fingerprint.is_empty() {
        return live.index().newest(&key.collection, &key.doc_id);
    }
    live.index().get(key)
}

fn not_found(key: &RecordKey) -> IndexError {
    let RecordKey { collection, doc_id, fingerprint } = key;
    let under = if fingerprint.is_empty() { String::new() } else { format!(" under fingerprint {fingerprint}") };
    let message = format!("document {doc_id:?} is not in collection {collection:?}{under}; encode it first");
    IndexError::refused(ErrorCode::NotFound, message)
}

fn at_most(what: &str, count: usize) -> Result<(), IndexError> {
    if count <= MAX_KEYS {
        return Ok(());
    }
    Err(IndexError::invalid(format!("{count} {what} in one request; send at most {MAX_KEYS}")))
}

fn batch(live: &Live, keys: Vec<v1::DocKey>) -> Result<Vec<v1::LookedUp>, IndexError> {
    let mut bytes = 0;
    let mut results = Vec::with_capacity(keys.len());
    for key in keys {
        let record = look_up(live, &validate::key(&key)?)?;
        let looked_up = v1::LookedUp { key: Some(key), record };
        bytes += looked_up.encoded_len() + 8;
        if bytes > MAX_RESPONSE {
            let message = format!("records exceed {MAX_RESPONSE} bytes; ask for fewer keys at once");
            return Err(IndexError::refused(ErrorCode::TooLarge, message));
        }
        results.push(looked_up);
    }
    Ok(results)
}

fn list_query(request: v1::ListRequest) -> Result<ListQuery, IndexError> {
    Collection::new(&*request.collection)?;
    let limit = if request.page_size == 0 { DEFAULT_PAGE } else { request.page_size };
    if limit > MAX_PAGE {
        return Err(IndexError::invalid(format!("page_size {limit} is too large; ask for at most {MAX_PAGE}")));
    }
    if request.id_prefix.chars().any(char::is_control) {
        return Err(IndexError::invalid(format!(
            "id_prefix {:?} has control characters; ids have none",
            request.id_prefix
        )));
    }
    let after = match request.page_token.as_str() {
        "" => None,
        token => Some(paging::parse(token, &request.collection)?),
    };
    let fingerprint = Some(request.fingerprint).filter(|fingerprint| !fingerprint.is_empty());
    fingerprint.as_deref().map_or(Ok(()), validate::fingerprint)?;
    Ok(ListQuery {
        collection: Some(request.collection),
        id_prefix: request.id_prefix,
        fingerprint,
        after,
        limit: limit as usize,
        max_bytes: PAGE_BYTES,
        filter: Filter::parse(&request.r#where)?,
        look_at: Some(LOOK_AT),
        without_summaries: !request.summaries,
    })
}

fn check_search(request: &v1::SearchRequest) -> Result<(), IndexError> {
    Collection::new(&*request.collection)?;
    validate::fingerprint(&request.fingerprint)?;
    if request.limit > MAX_PAGE {
        let message = format!("limit {} is too large; ask for at most {MAX_PAGE}", request.limit);
        return Err(IndexError::invalid(message));
    }
    validate::floats(&request.vector).map_err(|problem| IndexError::invalid(format!("vector {problem}")))
}

fn search(live: &Live, request: &v1::SearchRequest) -> Result<Vec<v1::SearchHit>, IndexError> {
    let v1::SearchRequest { collection, fingerprint, vector, limit } = request;
    let limit = if *limit == 0 { DEFAULT_HITS } else { *limit } as usize;
    if let Some(length) = live.vector_length(collection, fingerprint).filter(|n| *n != vector.len()) {
        let message = format!(
            "vector has {} values, those of fingerprint {fingerprint} have {length}; embed with the same bundle",
            vector.len()
        );
        return Err(IndexError::invalid(message));
    }
    let mut hits = Vec::new();
    let mut bytes = 0;
    for nearest in live.nearest(collection, fingerprint, vector, limit) {
        let key =
            RecordKey { collection: collection.clone(), doc_id: nearest.doc_id, fingerprint: fingerprint.clone() };
        // a document deleted since the scan is no hit
        let Some(record) = live.index().get(&key)? else { continue };
        bytes += record.encoded_len() + 16;
        if bytes > MAX_RESPONSE {
            break;
        }
        hits.push(v1::SearchHit { record: Some(record), score: nearest.score });
    }
    Ok(hits)
}
