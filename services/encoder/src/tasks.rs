use e2llm_api::v1::{Row, RowError, RowResult, Task};
use e2llm_api::{Collection, DocId, ErrorCode, Metadata};
use e2llm_runtime::failpoint::begin_row;
use e2llm_runtime::worker::TaskHandler;
use e2llm_runtime::{CancellationToken, async_trait};
use tracing::{Instrument, info_span, warn};

use crate::error::EncodeError;
use crate::pipeline::{Document, Encoded, Pipeline};

/// Does the encode tasks of bulk jobs.
#[derive(Debug, Clone)]
pub struct EncodeTasks {
    pipeline: Pipeline,
}

impl EncodeTasks {
    /// Works with `pipeline`.
    pub fn new(pipeline: Pipeline) -> Self {
        Self { pipeline }
    }

    async fn row(&self, collection: &str, row: &Row) -> Result<Encoded, EncodeError> {
        let collection = Collection::new(collection)?;
        let metadata = Metadata::requested(&row.metadata)?;
        let (doc_id, text_hash) = (DocId::new(row.id.as_str())?, row.text_hash.clone());
        let document = Document { collection, doc_id, text_hash, metadata };
        self.pipeline.encode(&document).await
    }
}

#[async_trait]
impl TaskHandler for EncodeTasks {
    async fn run(&self, task: Task, cancel: CancellationToken) -> Result<Vec<RowResult>, RowError> {
        let collection = task.spec.as_ref().map_or("default", |spec| spec.collection.as_str());
        let mut results = Vec::with_capacity(task.rows.len());
        for row in &task.rows {
            if cancel.is_cancelled() {
                return Err(e2llm_api::row_error(ErrorCode::Cancelled, "the task is no longer wanted"));
            }
            begin_row("encode", &row.id);
            let mut result = RowResult { number: row.number, id: row.id.clone(), ..RowResult::default() };
            match self.row(collection, row).instrument(info_span!("encode", doc_id = row.id)).await {
                Ok(encoded) => {
                    result.record = Some(encoded.record);
                    result.unchanged = encoded.unchanged;
                }
                // A failure that may pass is the task's, to be tried again; any other is the row's own result.
                Err(error) if error.code().is_retriable() => return Err(error.row()),
                Err(error) => {
                    warn!(doc_id = %row.id, %error, "encode failed");
                    result.error = Some(error.row());
                }
            }
            results.push(result);
        }
        Ok(results)
    }
}
