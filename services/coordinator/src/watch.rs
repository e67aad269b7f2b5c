use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use e2llm_api::v1::job_event::Event;
use e2llm_api::v1::{JobEvent, JobStatus, RowResult};
use e2llm_api::{ErrorCode, status};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tonic::Status;

use crate::CoordinatorError;
use crate::engine::Engine;
use crate::ids::JobId;
use crate::job::Source;

/// Shortest time between two status events.
const STATUS_INTERVAL: Duration = Duration::from_millis(200);
/// Rows looked at in one go.
const BATCH: usize = 256;
/// Parts kept while their rows wait for their turn.
const CACHED_PARTS: usize = 64;

pub(crate) type Events = mpsc::Sender<Result<JobEvent, Status>>;

/// Sends a job's events until it ends, nobody listens or the coordinator stops.
///
/// Results are read back from their parts, so memory does not grow with the job. The final status comes last.
pub(crate) struct Watch {
    engine: Arc<Engine>,
    job: JobId,
    changed: watch::Receiver<()>,
    events: Events,
    /// The next row to send; `None` if results are not wanted.
    cursor: Option<u64>,
    parts: PartCache,
    last_status: Option<(Instant, JobStatus)>,
}

/// Why a watch ends.
enum End {
    Listener,
    Failed(Status),
}

impl From<CoordinatorError> for End {
    fn from(error: CoordinatorError) -> Self {
        End::Failed(error.into())
    }
}

impl Watch {
    pub(crate) fn new(
        engine: Arc<Engine>,
        job: JobId,
        results: bool,
        events: Events,
    ) -> Result<Self, CoordinatorError> {
        let changed = engine.with_job(&job, |job| job.subscribe())?;
        let parts = PartCache::default();
        Ok(Self { engine, job, changed, events, cursor: results.then_some(0), parts, last_status: None })
    }

    pub(crate) async fn run(mut self) {
        if let Err(End::Failed(failure)) = self.follow().await {
            // A listener that has gone needs no reason.
            let _ = self.events.send(Err(failure)).await;
        }
    }

    async fn follow(&mut self) -> Result<(), End> {
        loop {
            self.changed.mark_unchanged();
            // The job may have been put aside after it ended.
            self.engine.open(&self.job).await?;
            let first = self.cursor.unwrap_or(u64::MAX);
            let (current, has_ended, rows) =
                self.engine.with_job(&self.job, |job| (job.status(), job.has_ended(), job.final_rows(first, BATCH)))?;
            if rows.is_empty() && has_ended {
                return self.send(Event::Status(current)).await;
            }
            if !has_ended {
                self.send_status(current).await?;
            }
            for (number, source) in &rows {
                let row = self.parts.row(&self.engine, &self.job, *number, source).await?;
                self.send(Event::Row(row)).await?;
                self.cursor = Some(number + 1);
            }
            if rows.is_empty() {
                self.wait().await?;
            }
        }
    }

    /// Sends the status if it changed and the last one was a while ago.
    async fn send_status(&mut self, current: JobStatus) -> Result<(), End> {
        let is_due = match &self.last_status {
            None => true,
            Some((at, last)) => *last != current && at.elapsed() >= STATUS_INTERVAL,
        };
        if is_due {
            self.last_status = Some((Instant::now(), current.clone()));
            self.send(Event::Status(current)).await?;
        }
        Ok(())
    }

    /// Waits for a change, or until a status that was held back may be sent.
    async fn wait(&mut self) -> Result<(), End> {
        let current = self.engine.with_job(&self.job, |job| job.status())?;
        let held_back = self.last_status.as_ref().filter(|(_, last)| *last != current);
        let status_at = held_back.map(|(at, _)| *at + STATUS_INTERVAL);
        let until_status = async {
            match status_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.changed.changed() => {
                if changed.is_err() {
                    // The job was put aside; it is subscribed to again when it is back.
                    self.engine.open(&self.job).await?;
                    self.changed = self.engine.with_job(&self.job, |job| job.subscribe())?;
                }
                Ok(())
            }
            () = until_status => Ok(()),
            () = self.events.closed() => Err(End::Listener),
            () = self.engine.shutdown.requested() => {
                Err(End::Failed(status(ErrorCode::Unavailable, "the coordinator is stopping; watch the job again")))
            }
        }
    }

    async fn send(&self, event: Event) -> Result<(), End> {
        self.events.send(Ok(JobEvent { event: Some(event) })).await.map_err(|_| End::Listener)
    }
}

/// Results of the parts read last, each row until it is sent.
#[derive(Default)]
struct PartCache {
    parts: HashMap<Source, HashMap<u64, RowResult>>,
    order: VecDeque<Source>,
}

impl PartCache {
    async fn row(
        &mut self,
        engine: &Engine,
        job: &JobId,
        number: u64,
        source: &Source,
    ) -> Result<RowResult, CoordinatorError> {
        if let Some(row) = self.parts.get_mut(source).and_then(|rows| rows.remove(&number)) {
            return Ok(row);
        }
        let mut rows: HashMap<u64, RowResult> = match source {
            Source::Part(name) => {
                engine.journal.part(job, name).await?.into_iter().map(|row| (row.number, row)).collect()
            }
            Source::Page(page) => refused_rows(engine, job, *page).await?,
        };
        let missing = || CoordinatorError::Corrupt {
            path: format!("jobs/{job}"),
            reason: format!("the result of row {number} is not where its commit says"),
        };
        let row = rows.remove(&number).ok_or_else(missing)?;
        self.keep(source.clone(), rows);
        Ok(row)
    }

    fn keep(&mut self, source: Source, rows: HashMap<u64, RowResult>) {
        if self.parts.insert(source.clone(), rows).is_none() {
            self.order.push_back(source);
        }
        if self.order.len() > CACHED_PARTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.parts.remove(&oldest);
        }
    }
}

/// The rows of a page that came with an error, as results.
async fn refused_rows(engine: &Engine, job: &JobId, page: u32) -> Result<HashMap<u64, RowResult>, CoordinatorError> {
    let rows = engine.journal.page(job, page).await?.rows.into_iter().filter(|row| row.error.is_some());
    let result =
        |row: e2llm_api::v1::Row| RowResult { number: row.number, id: row.id, error: row.error, ..Default::default() };
    Ok(rows.map(|row| (row.number, result(row))).collect())
}
