//! Runs one job on the coordinator: submits its rows while they are read, and watches its results meanwhile.

mod watch;

use std::time::Duration;

use anyhow::{Result, bail};
use e2llm_api::v1::submit_job_request::Part as Message;
use e2llm_api::v1::{
    CancelJobRequest, JobSpec, Row, RowResult, SubmitJobRequest, SubmitJobResponse, TextPiece, job_event,
};
use e2llm_runtime::{Shutdown, with_deadline};
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::{interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::failure::{self, Interrupted};
use crate::input::Part;
use crate::local::Services;
use crate::view::View;
use watch::{Wanted, Watch};

/// How long the farewell to a job may take.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);
/// Failed rows kept while looking for one that has work in it.
const LOOK_AHEAD: usize = 1000;

/// The rows of a job, the first of which may have been looked at.
pub(crate) struct Rows {
    head: Vec<Part>,
    rest: mpsc::Receiver<Part>,
}

impl Rows {
    /// Reads ahead until something needs the services. An input of nothing but errors needs none.
    pub(crate) async fn look_ahead(mut rest: mpsc::Receiver<Part>) -> Self {
        let mut head = Vec::new();
        while head.len() < LOOK_AHEAD {
            let Some(part) = rest.recv().await else { break };
            let is_failure = matches!(part, Part::Failed { .. });
            head.push(part);
            if !is_failure {
                break;
            }
        }
        Self { head, rest }
    }

    /// The rows as results, if all have failed already.
    pub(crate) fn only_failures(&self) -> Option<Vec<RowResult>> {
        // A full head says nothing about the rest.
        if self.head.len() >= LOOK_AHEAD {
            return None;
        }
        let failure = |(number, part): (usize, &Part)| match part {
            Part::Failed { id, error } => {
                let number = number as u64;
                Some(RowResult { number, id: id.clone(), error: Some(error.clone()), ..Default::default() })
            }
            _ => None,
        };
        self.head.iter().enumerate().map(failure).collect()
    }

    fn into_requests(self, spec: JobSpec) -> impl Stream<Item = SubmitJobRequest> {
        let parts = stream::iter(self.head).chain(ReceiverStream::new(self.rest)).map(message);
        stream::iter([Message::Spec(spec)]).chain(parts).map(|part| SubmitJobRequest { part: Some(part) })
    }
}

fn message(part: Part) -> Message {
    Message::Row(match part {
        Part::Piece(text) => return Message::Piece(TextPiece { text }),
        Part::Document { id, bytes, metadata } => Row { id, text_bytes: bytes, metadata, ..Default::default() },
        Part::Stored { id, text_hash } => Row { id, text_hash, ..Default::default() },
        Part::Question { id, doc_ids, question } => Row { id, doc_ids, question, ..Default::default() },
        Part::Failed { id, error } => Row { id, error: Some(error), ..Default::default() },
    })
}

/// A fresh job id; ids sort by time.
pub(crate) fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// Submits a job and shows it until it ends. A job that is left early is cancelled.
pub(crate) async fn run(
    services: &Services,
    spec: JobSpec,
    rows: Rows,
    view: &mut View,
    shutdown: &Shutdown,
) -> Result<()> {
    let job_id = spec.job_id.clone();
    let mut client = services.coordinator();
    let submission = tokio::spawn(async move { client.submit_job(rows.into_requests(spec)).await });
    let stop_submission = submission.abort_handle();
    let result = follow(services, &job_id, Some(submission), view, shutdown).await;
    if result.is_err() {
        stop_submission.abort();
        // The first error is the one to tell; a coordinator that cannot be reached cannot be told anything.
        let request = with_deadline(CancelJobRequest { job_id: job_id.clone() }, CANCEL_DEADLINE);
        let _ = timeout(CANCEL_DEADLINE, services.coordinator().cancel_job(request)).await;
    }
    match result? {
        End::Succeeded => Ok(()),
        End::Cancelled => {
            bail!("job {job_id} was cancelled after {} rows; run the command again to go on", view.tally().rows)
        }
    }
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Succeeded,
    Cancelled,
}

/// The progress of a job that was submitted before, without its rows. Dropping it leaves the job as it is.
pub(crate) fn progress_of(services: &Services, job_id: &str) -> Watch {
    Watch::start(services, job_id, Wanted::Progress)
}

/// Shows a job that was submitted before, until it ends.
pub(crate) async fn watch(services: &Services, job_id: &str, view: &mut View, shutdown: &Shutdown) -> Result<End> {
    follow(services, job_id, None, view, shutdown).await
}

type Submission = tokio::task::JoinHandle<Result<tonic::Response<SubmitJobResponse>, Status>>;

async fn follow(
    services: &Services,
    job_id: &str,
    mut submission: Option<Submission>,
    view: &mut View,
    shutdown: &Shutdown,
) -> Result<End> {
    let wanted = if submission.is_some() { Wanted::RowsOfNewJob } else { Wanted::Rows };
    let mut events = Watch::start(services, job_id, wanted);
    let mut ticker = interval(Duration::from_secs(1));
    let mut expected = None;
    let mut state = String::new();
    loop {
        tokio::select! {
            event = events.next() => match event? {
                Some(job_event::Event::Row(row)) => view.row(&row)?,
                Some(job_event::Event::Status(status)) => {
                    view.status(&status);
                    state = status.state;
                }
                None => break,
            },
            rows = submitted(&mut submission, services.address()), if submission.is_some() => {
                let rows = rows?;
                expected = Some(rows);
                view.submitted(rows);
            }
            _ = ticker.tick() => view.tick(),
            () = shutdown.requested() => return Err(Interrupted::default().into()),
        }
    }
    if state == "cancelled" {
        return Ok(End::Cancelled);
    }
    if submission.is_some() {
        expected = Some(submitted(&mut submission, services.address()).await?);
    }
    check_complete(job_id, expected, view.tally().rows)?;
    Ok(End::Succeeded)
}

/// Waits for the end of the submission and takes it.
async fn submitted(submission: &mut Option<Submission>, address: &str) -> Result<u64> {
    let Some(running) = submission else { return Ok(0) };
    let joined = running.await;
    *submission = None;
    match joined {
        Ok(Ok(response)) => Ok(response.into_inner().rows),
        Ok(Err(status)) => Err(failure::of_status(&status, address)),
        Err(error) => bail!("submitting the job failed: {error}"),
    }
}

/// Every row must have come back.
fn check_complete(job_id: &str, expected: Option<u64>, shown: u64) -> Result<()> {
    match expected {
        Some(expected) if expected != shown => {
            bail!("job {job_id} returned {shown} of {expected} rows; see `e2llm jobs show {job_id}`")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
