//! Runs one job on the coordinator: submits its rows while they are read, and watches its results meanwhile.

mod name;
mod rows;
mod watch;

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};
use e2llm_api::ErrorCode;
use e2llm_api::v1::{CancelJobRequest, JobSpec, JobStatus, RowResult, SubmitJobResponse, job_event};
use e2llm_runtime::{Shutdown, code_of, with_deadline};
use tokio::time::{interval, timeout};
use tonic::Status;

use crate::failure::{self, Interrupted};
use crate::local::Services;
use crate::progress::Progress;
pub(crate) use name::{Chosen, JobName};
pub(crate) use rows::Rows;
use watch::{Wanted, Watch};

/// How long the farewell to a job may take.
const CANCEL_DEADLINE: Duration = Duration::from_secs(5);

/// Who is told how a job goes.
pub(crate) trait Audience {
    /// A row is finished; rows come in input order.
    fn row(&mut self, row: &RowResult) -> Result<()>;
    /// Rows told of so far.
    fn rows(&self) -> u64;
    /// Where progress is shown.
    fn progress(&mut self) -> &mut Progress;
    /// The job's newest counts.
    fn status(&mut self, status: &JobStatus) {
        self.progress().update(status);
    }
    /// All rows are submitted.
    fn submitted(&mut self, rows: u64) {
        self.progress().all_rows_are_known(rows);
    }
    /// Time passes.
    fn tick(&mut self) {
        self.progress().tick();
    }
}

/// The job's name is taken.
#[derive(Debug)]
pub(crate) enum Taken {
    /// By a job that does something else, or with other rows.
    OtherJob(String),
    /// By someone who is submitting it.
    Busy(String),
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Taken::OtherJob(message) | Taken::Busy(message)) = self;
        f.write_str(message)
    }
}

impl std::error::Error for Taken {}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Succeeded,
    Cancelled,
}

/// A fresh job id; ids sort by time.
fn new_id() -> String {
    uuid::Uuid::now_v7().simple().to_string()
}

/// Submits a job and shows it until it ends. A job that is left early is cancelled.
pub(crate) async fn run(
    services: &Services,
    spec: JobSpec,
    rows: Rows,
    chosen: &Chosen,
    audience: &mut impl Audience,
    shutdown: &Shutdown,
) -> Result<()> {
    let job_id = &chosen.job_id;
    let mut submission = Submission::start(services, spec, rows, chosen);
    let work = async {
        if chosen.earlier.is_none() {
            return follow(services, job_id, Expected::Submitted(&mut submission), audience, shutdown).await;
        }
        // Until all rows are known to be the same as before, none of its results may be shown.
        let rows = submission.end(services, Wanted::Progress, audience, shutdown).await?;
        follow(services, job_id, Expected::Rows(rows), audience, shutdown).await
    };
    let result = work.await;
    if let Err(error) = &result {
        submission.leave(services, chosen, error).await;
    }
    match result? {
        End::Succeeded => Ok(()),
        End::Cancelled => {
            bail!("job {job_id} was cancelled after {} rows; run the command again to go on", audience.rows())
        }
    }
}

/// Submits a job until all its rows are planned; returns their number. A job that is left before is cancelled.
pub(crate) async fn submit(
    services: &Services,
    spec: JobSpec,
    rows: Rows,
    chosen: &Chosen,
    audience: &mut impl Audience,
    shutdown: &Shutdown,
) -> Result<u64> {
    let mut submission = Submission::start(services, spec, rows, chosen);
    let planned = submission.end(services, Wanted::ProgressOfNewJob, audience, shutdown).await;
    if let Err(error) = &planned {
        submission.leave(services, chosen, error).await;
    }
    planned
}

/// The progress of a job that was submitted before, without its rows. Dropping it leaves the job as it is.
pub(crate) fn progress_of(services: &Services, job_id: &str) -> Watch {
    Watch::start(services, job_id, Wanted::Progress)
}

/// Shows a job that was submitted before, until it ends.
pub(crate) async fn watch(
    services: &Services,
    job_id: &str,
    audience: &mut impl Audience,
    shutdown: &Shutdown,
) -> Result<End> {
    follow(services, job_id, Expected::Unknown, audience, shutdown).await
}

/// A stream of rows to the coordinator.
struct Submission {
    job_id: String,
    address: String,
    /// `None` once its end was told.
    running: Option<tokio::task::JoinHandle<Result<tonic::Response<SubmitJobResponse>, Status>>>,
}

impl Submission {
    fn start(services: &Services, spec: JobSpec, rows: Rows, chosen: &Chosen) -> Self {
        let job_id = chosen.job_id.clone();
        let planned = chosen.earlier.as_ref().map_or(0, |earlier| earlier.rows);
        let requests = rows.into_requests(JobSpec { job_id: job_id.clone(), ..spec }, planned);
        let mut client = services.coordinator();
        let running = tokio::spawn(async move { client.submit_job(requests).await });
        Self { job_id, address: services.address().to_owned(), running: Some(running) }
    }

    fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Waits for its end: the number of rows. Dropping the future loses nothing.
    async fn rows(&mut self) -> Result<u64> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let joined = running.await;
        self.running = None;
        let status = match joined {
            Ok(Ok(response)) => return Ok(response.into_inner().rows),
            Ok(Err(status)) => status,
            Err(error) => bail!("submitting the job failed: {error}"),
        };
        let message = status.message().to_owned();
        Err(match code_of(&status) {
            ErrorCode::AlreadyExists => Taken::OtherJob(message).into(),
            ErrorCode::Busy => Taken::Busy(message).into(),
            _ => failure::of_status(&status, &self.address),
        })
    }

    /// Shows progress until its end: the number of rows.
    async fn end(
        &mut self,
        services: &Services,
        wanted: Wanted,
        audience: &mut impl Audience,
        shutdown: &Shutdown,
    ) -> Result<u64> {
        let mut events = Watch::start(services, &self.job_id, wanted);
        let mut job_goes_on = true;
        let mut ticker = interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                event = events.next(), if job_goes_on => match event? {
                    Some(job_event::Event::Status(status)) => audience.status(&status),
                    Some(job_event::Event::Row(_)) => {}
                    None => job_goes_on = false,
                },
                rows = self.rows() => {
                    let rows = rows?;
                    audience.submitted(rows);
                    return Ok(rows);
                }
                _ = ticker.tick() => audience.tick(),
                () = shutdown.requested() => return Err(Interrupted::default().into()),
            }
        }
    }

    /// Ends it after an error, and cancels the job unless that is somebody else's.
    async fn leave(&mut self, services: &Services, chosen: &Chosen, error: &anyhow::Error) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        let is_ours = match error.downcast_ref::<Taken>() {
            None => true,
            Some(Taken::Busy(_)) => false,
            // It was cancelled before this command took it up.
            Some(Taken::OtherJob(_)) => chosen.was_cancelled(),
        };
        if is_ours {
            cancel(services, &self.job_id).await;
        }
    }
}

/// Cancels a job, if the coordinator can be reached: one that cannot be told goes on.
async fn cancel(services: &Services, job_id: &str) {
    let request = with_deadline(CancelJobRequest { job_id: job_id.to_owned() }, CANCEL_DEADLINE);
    // The error that led here is the one to tell.
    let _ = timeout(CANCEL_DEADLINE, services.coordinator().cancel_job(request)).await;
}

/// How many rows have to come back.
enum Expected<'a> {
    Unknown,
    Rows(u64),
    /// As many as are still being submitted.
    Submitted(&'a mut Submission),
}

async fn follow(
    services: &Services,
    job_id: &str,
    mut expected: Expected<'_>,
    audience: &mut impl Audience,
    shutdown: &Shutdown,
) -> Result<End> {
    let wanted = if matches!(expected, Expected::Submitted(_)) { Wanted::RowsOfNewJob } else { Wanted::Rows };
    let mut events = Watch::start(services, job_id, wanted);
    let mut ticker = interval(Duration::from_secs(1));
    let mut state = String::new();
    loop {
        tokio::select! {
            event = events.next() => match event? {
                Some(job_event::Event::Row(row)) => audience.row(&row)?,
                Some(job_event::Event::Status(status)) => {
                    audience.status(&status);
                    state = status.state;
                }
                None => break,
            },
            rows = expected.submitted() => {
                let rows = rows?;
                audience.submitted(rows);
                expected = Expected::Rows(rows);
            }
            _ = ticker.tick() => audience.tick(),
            () = shutdown.requested() => return Err(Interrupted::default().into()),
        }
    }
    if state == "cancelled" {
        return Ok(End::Cancelled);
    }
    if matches!(&expected, Expected::Submitted(submission) if submission.is_running()) {
        expected = Expected::Rows(expected.submitted().await?);
    }
    check_complete(job_id, &expected, audience.rows())?;
    Ok(End::Succeeded)
}

impl Expected<'_> {
    /// Waits for the end of the submission, if there is one.
    async fn submitted(&mut self) -> Result<u64> {
        match self {
            Expected::Submitted(submission) => submission.rows().await,
            Expected::Unknown | Expected::Rows(_) => std::future::pending().await,
        }
    }
}

/// Every row must have come back.
fn check_complete(job_id: &str, expected: &Expected<'_>, shown: u64) -> Result<()> {
    match expected {
        Expected::Rows(expected) if *expected != shown => {
            bail!("job {job_id} returned {shown} of {expected} rows; see `e2llm jobs show {job_id}`")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
