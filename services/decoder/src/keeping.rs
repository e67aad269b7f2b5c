//! Hands summaries to the index, which keeps them with their documents.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2llm_api::v1::index_client::IndexClient;
use e2llm_api::v1::{DocSummary, PutSummariesRequest, Summary};
use e2llm_runtime::Channel;
use e2llm_runtime::{RetryPolicy, retry};
use tracing::warn;

use crate::answering::Source;

/// Summaries of one call: with the longest texts and instructions they still fit a message.
const BATCH: usize = 100;

/// Longest text that the index keeps, in bytes.
const MAX_TEXT: usize = 64 << 10;

/// A summary is a copy of the row's result: it is not worth holding up the task for long.
const PATIENCE: RetryPolicy = RetryPolicy {
    tries: 3,
    deadline: Duration::from_secs(5),
    first_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(1),
};

/// The summary `text` of `source`, as the index keeps it.
pub(crate) fn summary(source: Source, text: &str, instruction: &str, job_id: &str) -> DocSummary {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let summary = Summary {
        text: text.to_owned(),
        instruction: instruction.to_owned(),
        created_unix_ms: now.as_millis() as u64,
        job_id: job_id.to_owned(),
    };
    let Source { doc_id, fingerprint, text_hash } = source;
    DocSummary { doc_id, fingerprint, text_hash, summary: Some(summary) }
}

/// Keeps summaries. What cannot be kept is logged: the rows have their summaries all the same.
pub(crate) async fn keep(index: IndexClient<Channel>, collection: &str, mut summaries: Vec<DocSummary>) {
    let fits = |text: &str| text.len() <= MAX_TEXT;
    summaries.retain(|of| {
        let fits = of.summary.as_ref().is_some_and(|kept| fits(&kept.text) && fits(&kept.instruction));
        if !fits {
            warn!(doc_id = of.doc_id, "summary or instruction is too long to be kept with its document");
        }
        fits
    });
    for batch in summaries.chunks(BATCH) {
        let request = PutSummariesRequest { collection: collection.to_owned(), summaries: batch.to_vec() };
        let put = retry(&PATIENCE, "Index.PutSummaries", "the index", || {
            let (mut index, request) = (index.clone(), request.clone());
            async move { index.put_summaries(request).await }
        });
        if let Err(error) = put.await {
            warn!(summaries = batch.len(), %error, "summaries are not kept with their documents");
        }
    }
}
