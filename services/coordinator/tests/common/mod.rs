//! A real coordinator on a memory store, served in-process, and a worker that is driven by hand.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::time::Duration;

use e2llm_api::row_error;
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::job_event::Event;
use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::*;
use e2llm_coordinator::{CoordinatorOptions, CoordinatorService};
use e2llm_runtime::Channel;
use e2llm_runtime::worker::{TaskHandler, WorkerLoop};
use e2llm_runtime::{
    CancellationToken, Clock, Dialer, ManualClock, ServerBuilder, ServerOptions, Shutdown, in_process,
};
use e2llm_store::Store;
use tonic::{Status, Streaming};

pub type Client = CoordinatorClient<Channel>;

/// A coordinator that can be replaced by a new one on the same store.
pub struct Cluster {
    pub store: Store,
    pub clock: Arc<ManualClock>,
    pub options: CoordinatorOptions,
    pub shutdown: Shutdown,
    dialer: Dialer,
}

impl Cluster {
    pub async fn start(options: CoordinatorOptions) -> Self {
        let store = Store::open("memory://").await.unwrap();
        let clock = Arc::<ManualClock>::default();
        Self::on(store, clock.clone(), clock, options).await
    }

    async fn on(store: Store, clock: Arc<ManualClock>, used: Arc<dyn Clock>, options: CoordinatorOptions) -> Self {
        let shutdown = Shutdown::new();
        let service = CoordinatorService::open_with_clock(store.clone(), options.clone(), shutdown.clone(), used);
        let service = service.await.unwrap();
        let (dialer, listener) = in_process();
        let server = ServerBuilder::new(ServerOptions { drain: Duration::ZERO, ..Default::default() });
        tokio::spawn(server.coordinator(service).serve_in_process(listener, shutdown.clone()));
        Self { store, clock, options, shutdown, dialer }
    }

    /// Stops this coordinator and starts another one that knows nothing but the store.
    pub async fn restart(self) -> Self {
        let (options, clock) = (self.options.clone(), self.clock.clone());
        self.restart_with(options, clock).await
    }

    /// The same with other options, and a clock of the test's own.
    pub async fn restart_with(self, options: CoordinatorOptions, clock: Arc<dyn Clock>) -> Self {
        self.shutdown.request();
        Self::on(self.store, self.clock, clock, options).await
    }

    pub fn client(&self) -> Client {
        self.dialer.endpoint().coordinator()
    }

    pub async fn submit(&self, spec: JobSpec, parts: Vec<Part>) -> Result<SubmitJobResponse, Status> {
        self.client().submit_job(tokio_stream::iter(requests(spec, parts))).await.map(|answer| answer.into_inner())
    }

    pub async fn status(&self, job: &str) -> JobStatus {
        self.client().get_job(GetJobRequest { job_id: job.into() }).await.unwrap().into_inner()
    }

    pub async fn watch(&self, job: &str) -> Watcher {
        let request = WatchJobRequest { job_id: job.into(), results: true };
        Watcher(self.client().watch_job(request).await.unwrap().into_inner())
    }

    pub fn worker(&self, id: &str, stage: Stage) -> HandWorker {
        HandWorker { client: self.client(), id: id.into(), stage }
    }

    /// Runs real worker loops for both stages until the cluster stops.
    pub fn run_workers(&self) {
        for stage in [Stage::Encode, Stage::Decode] {
            let handler = Echo { store: self.store.clone() };
            let worker = WorkerLoop::new(self.client(), format!("{stage:?}"), stage, 2, handler);
            tokio::spawn(worker.run(self.shutdown.clone()));
        }
    }
}

/// Options that suit tests: one row per task, and reports that do not wait long.
pub fn small() -> CoordinatorOptions {
    CoordinatorOptions {
        encode_rows: 1,
        decode_rows: 1,
        long_poll: Duration::from_millis(30),
        adopt_grace: Duration::ZERO,
        ..Default::default()
    }
}

/// Encodes by reading the stored text and naming its hash; decodes by repeating the id.
pub struct Echo {
    pub store: Store,
}

#[e2llm_runtime::async_trait]
impl TaskHandler for Echo {
    async fn run(&self, task: Task, _: CancellationToken) -> Result<Vec<RowResult>, RowError> {
        let mut results = Vec::new();
        for row in &task.rows {
            results.push(match task.stage() {
                Stage::Encode => encoded(row, &self.store.get_text(&row.text_hash).await.unwrap()),
                _ => decoded(row),
            });
        }
        Ok(results)
    }
}

pub fn encoded(row: &Row, text: &str) -> RowResult {
    let record = DocRecord {
        doc_id: row.id.clone(),
        text_hash: row.text_hash.clone(),
        source_tokens: text.split_whitespace().count() as u64,
        ..Default::default()
    };
    RowResult { number: row.number, id: row.id.clone(), record: Some(record), ..Default::default() }
}

pub fn decoded(row: &Row) -> RowResult {
    let usage = Some(Usage { generated_tokens: 3, ..Default::default() });
    let text = format!("about {}{}", row.id, row.question);
    RowResult { number: row.number, id: row.id.clone(), text, usage, ..Default::default() }
}

pub fn failed(row: &Row, code: e2llm_api::ErrorCode) -> RowResult {
    RowResult { number: row.number, id: row.id.clone(), error: Some(row_error(code, "no")), ..Default::default() }
}

/// A worker whose every report is written out by the test.
pub struct HandWorker {
    pub client: Client,
    pub id: String,
    pub stage: Stage,
}

impl HandWorker {
    pub async fn report(&mut self, report: ReportStatusRequest) -> ReportStatusResponse {
        let report = ReportStatusRequest { worker_id: self.id.clone(), stage: self.stage.into(), ..report };
        self.client.report_status(report).await.unwrap().into_inner()
    }

    pub async fn take(&mut self, slots: u32) -> Vec<Task> {
        self.report(ReportStatusRequest { slots, ..Default::default() }).await.tasks
    }

    pub async fn take_one(&mut self) -> Task {
        let mut tasks = self.take(1).await;
        assert_eq!(tasks.len(), 1, "a task was expected");
        tasks.remove(0)
    }

    pub async fn holds(&mut self, task: &Task) -> ReportStatusResponse {
        self.report(ReportStatusRequest { in_progress: vec![reference(task)], ..Default::default() }).await
    }

    pub async fn succeed(&mut self, task: &Task, rows: Vec<RowResult>) -> ReportStatusResponse {
        let success = TaskSuccess { task: Some(reference(task)), rows, busy_us: 1000 };
        self.report(ReportStatusRequest { successes: vec![success], ..Default::default() }).await
    }

    pub async fn fail(&mut self, task: &Task, code: e2llm_api::ErrorCode) -> ReportStatusResponse {
        let error = Some(row_error(code, "it broke"));
        let failure = TaskFailure { task: Some(reference(task)), error, retriable: code.is_retriable() };
        self.report(ReportStatusRequest { failures: vec![failure], ..Default::default() }).await
    }
}

pub fn reference(task: &Task) -> TaskRef {
    e2llm_runtime::worker::task_ref(task)
}

pub struct Watcher(Streaming<JobEvent>);

impl Watcher {
    pub async fn next(&mut self) -> Option<Event> {
        let event = tokio::time::timeout(Duration::from_secs(20), self.0.message()).await.expect("an event");
        event.unwrap().map(|event| event.event.unwrap())
    }

    pub async fn next_row(&mut self) -> RowResult {
        loop {
            match self.next().await.expect("the job ended before the row") {
                Event::Row(row) => return row,
                Event::Status(_) => {}
            }
        }
    }

    /// All rows to come, and the last status.
    pub async fn finish(mut self) -> (Vec<RowResult>, JobStatus) {
        let (mut rows, mut last) = (Vec::new(), None);
        while let Some(event) = self.next().await {
            match event {
                Event::Row(row) => rows.push(row),
                Event::Status(status) => last = Some(status),
            }
        }
        (rows, last.unwrap())
    }
}

pub fn spec(kind: JobKind, job: &str) -> JobSpec {
    JobSpec { kind: kind.into(), job_id: job.into(), collection: "c".into(), ..Default::default() }
}

/// A document with its text.
pub fn document(id: &str, text: &str) -> Vec<Part> {
    let piece = Part::Piece(TextPiece { text: text.as_bytes().to_vec() });
    vec![piece, Part::Row(Row { id: id.into(), ..Default::default() })]
}

pub fn documents(ids: &[&str]) -> Vec<Part> {
    ids.iter().flat_map(|id| document(id, &format!("text of {id}"))).collect()
}

pub fn bare(id: &str) -> Part {
    Part::Row(Row { id: id.into(), ..Default::default() })
}

pub fn requests(spec: JobSpec, parts: Vec<Part>) -> Vec<SubmitJobRequest> {
    std::iter::once(Part::Spec(spec)).chain(parts).map(|part| SubmitJobRequest { part: Some(part) }).collect()
}

pub fn codes(rows: &[RowResult]) -> Vec<&str> {
    rows.iter().map(|row| row.error.as_ref().map_or("OK", |error| error.code.as_str())).collect()
}
