//! A client that does what the command line does: submits until the job is planned, watches until it has ended.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2llm_api::ErrorCode;
use e2llm_api::v1::job_event::Event;
use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::{
    ContextOptions, GenerateOptions, JobKind, JobSpec, JobStatus, Row, RowResult, SubmitJobRequest, TextPiece,
    WatchJobRequest,
};
use e2llm_runtime::{Endpoint, code_of};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::corpus::Document;

/// Documents that arrive together and become one task.
const TOGETHER: usize = 2;
/// Between two groups: longer than the coordinator waits for a page to fill.
const GAP: Duration = Duration::from_millis(250);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);
/// The longest that a job may take with everything that happens to it.
const LONGEST: Duration = Duration::from_secs(180);

/// A job to run.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) kind: JobKind,
    pub(crate) documents: Vec<Document>,
    /// 0 is the coordinator's own.
    pub(crate) max_attempts: u32,
}

/// What can be seen of a job while it runs.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    has_ended: AtomicBool,
    refusals: Mutex<Vec<ErrorCode>>,
}

impl Progress {
    /// Whether the last row and the final status have come.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Codes with which submissions were refused.
    pub(crate) fn refusals(&self) -> Vec<ErrorCode> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refused(&self, code: ErrorCode) {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).push(code);
    }
}

/// How a job ended.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) status: JobStatus,
    pub(crate) rows: Vec<RowResult>,
}

impl Job {
    /// Documents of this job are in a collection of their own.
    pub(crate) fn collection(&self) -> &str {
        &self.id
    }

    fn spec(&self) -> JobSpec {
        let question = if self.kind == JobKind::Ask { "What does this paragraph allow?" } else { "" };
        JobSpec {
            kind: self.kind.into(),
            collection: self.collection().to_owned(),
            job_id: self.id.clone(),
            question: question.to_owned(),
            generate: Some(GenerateOptions { max_tokens: 6, ..Default::default() }),
            // Some raw text behind the soft tokens, and few positions, so that many runs cost little.
            context: Some(ContextOptions {
                max_positions: Some(128),
                expand_chunks: Some(1),
                expand_positions: Some(48),
                ..Default::default()
            }),
            max_attempts: self.max_attempts,
            ..Default::default()
        }
    }

    /// Runs it to its end on the coordinator at `endpoint`.
    pub(crate) async fn run(&self, endpoint: &Endpoint, progress: &Progress) -> Result<Outcome> {
        let both = async { tokio::try_join!(self.submit(endpoint, progress), self.watch(endpoint)) };
        let outcome = tokio::time::timeout(LONGEST, both).await;
        progress.has_ended.store(true, Ordering::SeqCst);
        let ((), outcome) = outcome.with_context(|| format!("job {} has not ended within {LONGEST:?}", self.id))??;
        Ok(outcome)
    }

    async fn submit(&self, endpoint: &Endpoint, progress: &Progress) -> Result<()> {
        loop {
            let (sender, messages) = mpsc::channel(1);
            let stream = ReceiverStream::new(messages);
            let mut client = endpoint.coordinator();
            let (submitted, ()) = tokio::join!(client.submit_job(stream), self.send(sender));
            match submitted {
                Ok(response) => {
                    let rows = response.into_inner().rows;
                    ensure!(rows == self.documents.len() as u64, "the job was planned with {rows} rows");
                    return Ok(());
                }
                Err(status) => {
                    progress.refused(code_of(&status));
                    may_try_again(&status)?;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sends everything, or as much as the coordinator takes.
    async fn send(&self, sender: mpsc::Sender<SubmitJobRequest>) {
        let message = |part| SubmitJobRequest { part: Some(part) };
        if sender.send(message(Part::Spec(self.spec()))).await.is_err() {
            return;
        }
        for (number, document) in self.documents.iter().enumerate() {
            if number > 0 && number % TOGETHER == 0 {
                tokio::time::sleep(GAP).await;
            }
            let text = document.text.as_bytes().to_vec();
            let row = Row { id: document.id.clone(), text_bytes: text.len() as u64, ..Default::default() };
            for part in [Part::Piece(TextPiece { text }), Part::Row(row)] {
                if sender.send(message(part)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Takes each row once, across broken connections, until the job has ended.
    async fn watch(&self, endpoint: &Endpoint) -> Result<Outcome> {
        let mut rows: Vec<RowResult> = Vec::new();
        loop {
            match self.follow(endpoint, &mut rows).await {
                Ok(Some(status)) => return Ok(Outcome { status, rows }),
                // The coordinator was stopped.
                Ok(None) => {}
                Err(status) if code_of(&status) == ErrorCode::NotFound && rows.is_empty() => {}
                Err(status) => may_try_again(&status)?,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&self, endpoint: &Endpoint, rows: &mut Vec<RowResult>) -> Result<Option<JobStatus>, Status> {
        let request = WatchJobRequest { job_id: self.id.clone(), results: true };
        let mut events = endpoint.coordinator().watch_job(request).await?.into_inner();
        let (mut last, mut sent) = (None, 0);
        while let Some(event) = events.message().await? {
            match event.event {
                Some(Event::Status(status)) => last = Some(status),
                Some(Event::Row(row)) => {
                    // Each connection begins with the first row.
                    match rows.get(sent) {
                        None => rows.push(row),
                        Some(before) if *before == row => {}
                        Some(before) => return Err(Status::data_loss(format!("{before:?} came again as {row:?}"))),
                    }
                    sent += 1;
                }
                None => {}
            }
        }
        Ok(last.filter(|status| status.state == "succeeded"))
    }
}

fn may_try_again(status: &Status) -> Result<()> {
    if code_of(status).is_retriable() { Ok(()) } else { bail!("{status:?}") }
}

/// Waits until `condition` holds; `false` if the job ended first.
pub(crate) async fn until(progress: &Progress, longest: Duration, condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + longest;
    loop {
        if condition() {
            return true;
        }
        if progress.has_ended() || Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
