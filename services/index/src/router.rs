//! One index in front of several shards.

use std::collections::HashMap;

use e2llm_api::ErrorCode;
use e2llm_api::v1::index_client::IndexClient;
use e2llm_api::v1::index_server::Index;
use e2llm_api::v1::{self, DocRecord, LookedUp, SearchHit};
use e2llm_runtime::Channel;
use futures::future::try_join_all;
use prost::Message;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::doc_index::RecordKey;
use crate::rpc::{DEFAULT_HITS, DEFAULT_PAGE, MAX_RESPONSE, PAGE_BYTES};
use crate::shard::shard_of;
use crate::{IndexError, paging};

/// Sends each request to the shards that it concerns, and puts their answers together as one index would have given them. It runs inside the
/// processes that call the index.
///
/// Manifest numbers of several shards are told as the highest of them. A page of a list asks all shards; garbage is not collected.
#[derive(Debug, Clone)]
pub struct Router {
    shards: Vec<IndexClient<Channel>>,
}

impl Router {
    /// Clients of all shards, in the order of their numbers.
    pub fn new(shards: Vec<IndexClient<Channel>>) -> Self {
        Self { shards }
    }

    fn owner(&self, collection: &str, doc_id: &str) -> usize {
        shard_of(collection, doc_id, self.shards.len())
    }

    /// Items by the shard they belong to, each with its place; only shards that have any.
    fn split<T>(&self, items: Vec<T>, owner: impl Fn(&T) -> usize) -> Vec<(IndexClient<Channel>, Vec<usize>, Vec<T>)> {
        let mut parts: Vec<(Vec<usize>, Vec<T>)> = self.shards.iter().map(|_| Default::default()).collect();
        for (place, item) in items.into_iter().enumerate() {
            if let Some((places, part)) = parts.get_mut(owner(&item)) {
                places.push(place);
                part.push(item);
            }
        }
        let with_client = self.shards.iter().cloned().zip(parts);
        with_client
            .filter(|(_, (places, _))| !places.is_empty())
            .map(|(client, (places, part))| (client, places, part))
            .collect()
    }
}

#[tonic::async_trait]
impl Index for Router {
    type CollectGarbageStream = ReceiverStream<Result<v1::CollectGarbageResponse, Status>>;

    async fn collect_garbage(
        &self,
        _: Request<Streaming<v1::CollectGarbageRequest>>,
    ) -> Result<Response<Self::CollectGarbageStream>, Status> {
        let message = "the index has several shards, of which none knows what the others use: their garbage cannot be collected yet";
        Err(IndexError::invalid(message).into())
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let records = request.into_inner().records;
        let parts = self.split(records, |record| self.owner(&record.collection, &record.doc_id));
        let commits = parts.into_iter().map(|(mut client, _, records)| async move {
            Ok::<_, Status>(client.commit(v1::CommitRequest { records }).await?.into_inner().manifest)
        });
        let manifest = try_join_all(commits).await?.into_iter().max().unwrap_or_default();
        Ok(Response::new(v1::CommitResponse { manifest }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let request = request.into_inner();
        let owner = request.key.as_ref().map_or(0, |key| self.owner(&key.collection, &key.doc_id));
        let mut client = self.shards.get(owner).cloned().ok_or_else(no_shards)?;
        client.get(request).await
    }

    async fn batch_get(&self, request: Request<v1::BatchGetRequest>) -> Result<Response<v1::BatchGetResponse>, Status> {
        let keys = request.into_inner().keys;
        let mut results = vec![LookedUp::default(); keys.len()];
        let parts = self.split(keys, |key| self.owner(&key.collection, &key.doc_id));
        let lookups = parts.into_iter().map(|(mut client, places, keys)| async move {
            let found = client.batch_get(v1::BatchGetRequest { keys }).await?.into_inner().results;
            Ok::<_, Status>(places.into_iter().zip(found).collect::<Vec<_>>())
        });
        let mut bytes = 0;
        for (place, found) in try_join_all(lookups).await?.into_iter().flatten() {
            bytes += found.encoded_len() + 8;
            results[place] = found;
        }
        if bytes > MAX_RESPONSE {
            let message = format!("records exceed {MAX_RESPONSE} bytes; ask for fewer keys at once");
            return Err(IndexError::refused(ErrorCode::TooLarge, message).into());
        }
        Ok(Response::new(v1::BatchGetResponse { results }))
    }

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let request = request.into_inner();
        let size = if request.page_size == 0 { DEFAULT_PAGE } else { request.page_size } as usize;
        let collection = request.collection.clone();
        let pages = self.shards.iter().cloned().map(|mut client| {
            let request = request.clone();
            async move { Ok::<_, Status>(client.list(request).await?.into_inner()) }
        });
        let (records, next) = merged(try_join_all(pages).await?, &collection, size)?;
        Ok(Response::new(v1::ListResponse {
            records,
            next_page_token: next.map_or_else(String::new, |key| paging::token(&key)),
        }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let v1::DeleteRequest { collection, doc_ids } = request.into_inner();
        let places: HashMap<String, usize> = doc_ids.iter().cloned().zip(0..).collect();
        let parts = self.split(doc_ids, |doc_id| self.owner(&collection, doc_id));
        let deletions = parts.into_iter().map(|(mut client, _, doc_ids)| {
            let collection = collection.clone();
            async move { Ok::<_, Status>(client.delete(v1::DeleteRequest { collection, doc_ids }).await?.into_inner()) }
        });
        let mut all = v1::DeleteResponse::default();
        for part in try_join_all(deletions).await? {
            all.manifest = all.manifest.max(part.manifest);
            all.deleted.extend(part.deleted);
            all.unknown.extend(part.unknown);
        }
        all.deleted.sort_by_key(|doc_id| places.get(doc_id));
        all.unknown.sort_by_key(|doc_id| places.get(doc_id));
        Ok(Response::new(all))
    }

    async fn put_summaries(
        &self,
        request: Request<v1::PutSummariesRequest>,
    ) -> Result<Response<v1::PutSummariesResponse>, Status> {
        let v1::PutSummariesRequest { collection, summaries } = request.into_inner();
        let parts = self.split(summaries, |summary| self.owner(&collection, &summary.doc_id));
        let puts = parts.into_iter().map(|(mut client, _, summaries)| {
            let request = v1::PutSummariesRequest { collection: collection.clone(), summaries };
            async move { Ok::<_, Status>(client.put_summaries(request).await?.into_inner()) }
        });
        let mut all = v1::PutSummariesResponse::default();
        for part in try_join_all(puts).await? {
            all.manifest = all.manifest.max(part.manifest);
            all.kept += part.kept;
            all.dropped += part.dropped;
        }
        Ok(Response::new(all))
    }

    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchResponse>, Status> {
        let request = request.into_inner();
        let limit = if request.limit == 0 { DEFAULT_HITS } else { request.limit } as usize;
        let searches = self.shards.iter().cloned().map(|mut client| {
            let request = request.clone();
            async move { Ok::<_, Status>(client.search(request).await?.into_inner().hits) }
        });
        let mut hits: Vec<SearchHit> = try_join_all(searches).await?.into_iter().flatten().collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        hits.truncate(limit);
        hits.truncate(fitting(&hits, MAX_RESPONSE));
        Ok(Response::new(v1::SearchResponse { hits }))
    }
}

fn no_shards() -> Status {
    IndexError::invalid("the index has no addresses; give at least one").into()
}

fn key_of(record: &DocRecord) -> RecordKey {
    RecordKey {
        collection: record.collection.clone(),
        doc_id: record.doc_id.clone(),
        fingerprint: record.fingerprint.clone(),
    }
}

/// How many of these messages, from the first on, take no more than so many bytes.
fn fitting<'a, M: Message + 'a>(messages: impl IntoIterator<Item = &'a M>, most: usize) -> usize {
    let mut bytes = 0;
    messages
        .into_iter()
        .take_while(|message| {
            bytes += message.encoded_len() + 16;
            bytes <= most
        })
        .count()
}

/// Pages of all shards that began after the same key, as one page of `size`; and the key after which the next one begins.
///
/// A shard that has more has looked only up to where its own next page begins: beyond the nearest such place it is not known what comes.
fn merged(
    pages: Vec<v1::ListResponse>,
    collection: &str,
    size: usize,
) -> Result<(Vec<DocRecord>, Option<RecordKey>), IndexError> {
    let more = pages.iter().filter(|page| !page.next_page_token.is_empty());
    let seen = more.map(|page| paging::parse(&page.next_page_token, collection)).collect::<Result<Vec<_>, _>>()?;
    let end = seen.into_iter().min();
    let records = pages.into_iter().flat_map(|page| page.records);
    let mut records: Vec<(RecordKey, DocRecord)> = records.map(|record| (key_of(&record), record)).collect();
    records.retain(|(key, _)| end.as_ref().is_none_or(|end| key <= end));
    records.sort_by(|(a, _), (b, _)| a.cmp(b));
    // One record may come on top, as from one index.
    let fits = fitting(records.iter().map(|(_, record)| record), PAGE_BYTES).saturating_add(1).min(size);
    let is_cut = records.len() > fits;
    records.truncate(fits);
    let last = records.last().map(|(key, _)| key.clone());
    let next = if is_cut { last } else { end };
    Ok((records.into_iter().map(|(_, record)| record).collect(), next))
}
