use e2llm_api::v1::{JobKind, JobSpec, Row, RowError, RowResult};
use e2llm_api::{ErrorCode, row_error};
use e2llm_runtime::worker::TaskHandler;
use e2llm_runtime::{CancellationToken, async_trait};
use tracing::warn;

use crate::answering::{Answered, Answering, Emit, Request, Task};
use crate::engine::Priority;
use crate::error::DecodeError;
use crate::keeping;

/// Does the decode tasks of bulk jobs.
#[derive(Debug, Clone)]
pub struct DecodeTasks {
    answering: Answering,
}

impl DecodeTasks {
    /// Works with `answering`.
    pub fn new(answering: Answering) -> Self {
        Self { answering }
    }

    async fn row(
        &self,
        spec: &JobSpec,
        row: &Row,
        cancel: &CancellationToken,
    ) -> Result<(String, Answered), DecodeError> {
        let asks = spec.kind() == JobKind::Ask;
        let request = Request {
            collection: collection(spec).to_owned(),
            doc_ids: if asks { row.doc_ids.clone() } else { vec![row.id.clone()] },
            task: if asks { Task::Ask(row.question.clone()) } else { Task::Summarize(spec.instruction.clone()) },
            generate: spec.generate.clone().unwrap_or_default(),
            context: spec.context.unwrap_or_default(),
            priority: Priority::Bulk,
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        let cancel = cancel.clone();
        let emit: Emit = Box::new(move |text| !cancel.is_cancelled() && sender.send(text.to_owned()).is_ok());
        let answered = self.answering.answer(&request, emit).await?;
        let text: String = receiver.try_iter().collect();
        Ok((text.trim().to_owned(), answered))
    }
}

fn collection(spec: &JobSpec) -> &str {
    if spec.collection.is_empty() { "default" } else { &spec.collection }
}

#[async_trait]
impl TaskHandler for DecodeTasks {
    async fn run(&self, task: e2llm_api::v1::Task, cancel: CancellationToken) -> Result<Vec<RowResult>, RowError> {
        let spec = task.spec.unwrap_or_default();
        let mut results = Vec::with_capacity(task.rows.len());
        let mut summaries = Vec::new();
        for row in &task.rows {
            if cancel.is_cancelled() {
                return Err(row_error(ErrorCode::Cancelled, "the task is no longer wanted"));
            }
            let mut result = RowResult { number: row.number, id: row.id.clone(), ..RowResult::default() };
            match self.row(&spec, row, &cancel).await {
                Ok((text, answered)) => {
                    if spec.kind() == JobKind::Summarize {
                        let of = |source| keeping::summary(source, &text, &spec.instruction, &task.job_id);
                        summaries.extend(answered.sources.into_iter().map(of));
                    }
                    result.text = text;
                    result.usage = Some(answered.usage);
                }
                Err(error) if error.code().is_retriable() || error.code() == ErrorCode::Cancelled => {
                    return Err(error.row());
                }
                Err(error) => {
                    warn!(id = %row.id, %error, "decode failed");
                    result.error = Some(error.row());
                }
            }
            results.push(result);
        }
        keeping::keep(self.answering.index(), collection(&spec), summaries).await;
        Ok(results)
    }
}
