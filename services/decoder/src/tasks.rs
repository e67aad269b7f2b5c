use e2llm_api::v1::{ChoiceScore, JobKind, JobSpec, Row, RowError, RowResult};
use e2llm_api::{ErrorCode, row_error};
use e2llm_runtime::failpoint::{begin_row, reach_with};
use e2llm_runtime::worker::TaskHandler;
use e2llm_runtime::{CancellationToken, async_trait};
use futures::stream::{self, StreamExt, TryStreamExt};
use tracing::{Instrument, info_span, warn};

use crate::answering::{Answered, Answering, Request, Source, Task};
use crate::engine::{Emit, Priority};
use crate::error::DecodeError;
use crate::keeping;

/// Rows of a task that are written in one batch.
const AT_ONCE: usize = 8;

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

    /// A row's result, which may be an error of its own, and the documents it was made from.
    async fn finish(
        &self,
        spec: &JobSpec,
        row: &Row,
        cancel: &CancellationToken,
    ) -> Result<(RowResult, Vec<Source>), RowError> {
        begin_row("decode", &row.id);
        let mut result = RowResult { number: row.number, id: row.id.clone(), ..RowResult::default() };
        match self.row(spec, row, cancel).await {
            Ok((text, scores, answered)) => {
                reach_with("decoder.generated", &row.id);
                (result.text, result.scores) = (text, scores);
                result.usage = Some(answered.usage);
                Ok((result, answered.sources))
            }
            Err(error) if error.code().is_retriable() || error.code() == ErrorCode::Cancelled => Err(error.row()),
            Err(error) => {
                warn!(id = %row.id, %error, "decode failed");
                result.error = Some(error.row());
                Ok((result, Vec::new()))
            }
        }
    }

    async fn row(
        &self,
        spec: &JobSpec,
        row: &Row,
        cancel: &CancellationToken,
    ) -> Result<(String, Vec<ChoiceScore>, Answered), DecodeError> {
        let request = request(spec, row);
        let scores = match row.choices.as_slice() {
            [] => Vec::new(),
            choices => self.answering.score(&request, choices.to_vec()).await?.0,
        };
        let (sender, receiver) = std::sync::mpsc::channel();
        let cancel = cancel.clone();
        let emit: Emit = Box::new(move |text| !cancel.is_cancelled() && sender.send(text.to_owned()).is_ok());
        let answered = self.answering.answer(&request, emit).await?;
        let text: String = receiver.try_iter().collect();
        Ok((text.trim().to_owned(), scores, answered))
    }
}

/// What is wanted of a row: a summary, the job's one question about its document, or a question of its own.
fn request(spec: &JobSpec, row: &Row) -> Request {
    let (doc_ids, task) = match spec.kind() {
        JobKind::Ask if spec.question.is_empty() => (row.doc_ids.clone(), own_task(row)),
        JobKind::Ask => (vec![row.id.clone()], Task::Ask(spec.question.clone())),
        _ => (vec![row.id.clone()], Task::Summarize(spec.instruction.clone())),
    };
    Request {
        collection: collection(spec).to_owned(),
        doc_ids,
        task,
        generate: row.generate.clone().or_else(|| spec.generate.clone()).unwrap_or_default(),
        context: row.context.clone().or_else(|| spec.context.clone()).unwrap_or_default(),
        priority: Priority::Bulk,
    }
}

/// A question as it is asked everywhere, one with an instruction of its own, or an instruction about the whole documents.
fn own_task(row: &Row) -> Task {
    let (question, instruction) = (row.question.clone(), row.instruction.clone());
    match (question.trim().is_empty(), instruction.trim().is_empty()) {
        (_, true) => Task::Ask(question),
        (true, false) => Task::Summarize(instruction),
        (false, false) => Task::Follow { instruction, question },
    }
}

fn collection(spec: &JobSpec) -> &str {
    if spec.collection.is_empty() { "default" } else { &spec.collection }
}

#[async_trait]
impl TaskHandler for DecodeTasks {
    async fn run(&self, task: e2llm_api::v1::Task, cancel: CancellationToken) -> Result<Vec<RowResult>, RowError> {
        let spec = task.spec.unwrap_or_default();
        let each: Vec<_> = task
            .rows
            .iter()
            .map(|row| self.finish(&spec, row, &cancel).instrument(info_span!("answer", row = row.id)))
            .collect();
        let rows = stream::iter(each).buffered(AT_ONCE);
        let finished = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(row_error(ErrorCode::Cancelled, "the task is no longer wanted")),
            finished = rows.try_collect::<Vec<_>>() => finished,
        }?;
        let mut summaries = Vec::new();
        if spec.kind() == JobKind::Summarize {
            for (result, sources) in &finished {
                let of =
                    |source: &Source| keeping::summary(source.clone(), &result.text, &spec.instruction, &task.job_id);
                summaries.extend(sources.iter().map(of));
            }
        }
        keeping::keep(self.answering.index(), collection(&spec), summaries).await;
        reach_with("decoder.summary_kept", &task.task_id);
        Ok(finished.into_iter().map(|(result, _)| result).collect())
    }
}

#[cfg(test)]
mod tests {
    use e2llm_api::v1::GenerateOptions;

    use super::*;

    #[test]
    fn one_question_for_all_is_asked_of_the_document_that_a_row_is() {
        let spec = |question: &str| JobSpec {
            kind: JobKind::Ask.into(),
            question: question.to_owned(),
            instruction: "in short".to_owned(),
            ..Default::default()
        };
        let row = Row {
            id: "row".to_owned(),
            doc_ids: vec!["a".to_owned(), "b".to_owned()],
            question: "who?".to_owned(),
            ..Default::default()
        };
        let wanted = |spec: &JobSpec| {
            let Request { doc_ids, task, .. } = request(spec, &row);
            (doc_ids.join(" "), task)
        };
        assert_eq!(wanted(&spec("")), ("a b".to_owned(), Task::Ask("who?".to_owned())));
        assert_eq!(wanted(&spec("why?")), ("row".to_owned(), Task::Ask("why?".to_owned())));
        let own = Row {
            instruction: "Say who.".to_owned(),
            generate: Some(GenerateOptions { max_tokens: 3, ..Default::default() }),
            ..row.clone()
        };
        let Request { task, generate, .. } = request(&spec(""), &own);
        let follow = Task::Follow { instruction: "Say who.".to_owned(), question: "who?".to_owned() };
        assert_eq!((task, generate.max_tokens), (follow, 3));
        let whole = request(&spec(""), &Row { question: String::new(), ..own });
        assert_eq!(whole.task, Task::Summarize("Say who.".to_owned()));
        let summaries = JobSpec { kind: JobKind::Summarize.into(), ..spec("") };
        assert_eq!(wanted(&summaries), ("row".to_owned(), Task::Summarize("in short".to_owned())));
    }
}
