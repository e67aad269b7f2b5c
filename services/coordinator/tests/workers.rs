//! The worker loop against a real coordinator.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use e2llm_api::v1::*;
use e2llm_api::{ErrorCode, row_error};
use e2llm_coordinator::CoordinatorOptions;
use e2llm_runtime::worker::{TaskHandler, WorkerLoop, WorkerOptions};
use e2llm_runtime::{CancellationToken, Shutdown};
use tokio::sync::Notify;

/// Waits until it is told to go on, or cancelled; a document named `panic` makes it panic.
#[derive(Default)]
struct Gate {
    begun: AtomicUsize,
    cancelled: AtomicUsize,
    most_at_once: AtomicUsize,
    running: AtomicUsize,
    open: Notify,
}

#[derive(Clone, Default)]
struct Gated(Arc<Gate>);

#[e2llm_runtime::async_trait]
impl TaskHandler for Gated {
    async fn run(&self, task: Task, cancel: CancellationToken) -> Result<Vec<RowResult>, RowError> {
        let gate = &self.0;
        if task.rows.iter().any(|row| row.id == "panic") {
            panic!("a document made the handler panic");
        }
        gate.begun.fetch_add(1, Ordering::SeqCst);
        gate.most_at_once.fetch_max(gate.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let outcome = tokio::select! {
            () = gate.open.notified() => Ok(task.rows.iter().map(|row| encoded(row, "t")).collect()),
            () = cancel.cancelled() => {
                gate.cancelled.fetch_add(1, Ordering::SeqCst);
                Err(row_error(ErrorCode::Cancelled, "cancelled"))
            }
        };
        gate.running.fetch_sub(1, Ordering::SeqCst);
        outcome
    }
}

async fn eventually(mut condition: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("it did not come to that");
}

fn quick() -> WorkerOptions {
    WorkerOptions { heartbeat: Duration::from_millis(50), drain: Duration::from_millis(200), ..Default::default() }
}

fn beating() -> CoordinatorOptions {
    CoordinatorOptions { heartbeat: Duration::from_millis(50), ..small() }
}

#[tokio::test]
async fn a_worker_never_runs_more_tasks_than_it_has_slots() {
    let cluster = Cluster::start(beating()).await;
    let handler = Gated::default();
    let worker = WorkerLoop::new(cluster.client(), "w", Stage::Encode, 2, handler.clone()).with_options(quick());
    tokio::spawn(worker.run(cluster.shutdown.clone()));
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b", "c", "d", "e"])).await.unwrap();
    let watcher = tokio::spawn(cluster.watch("job").await.finish());
    while !watcher.is_finished() {
        handler.0.open.notify_waiters();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(watcher.await.unwrap().0.len(), 5);
    assert_eq!(handler.0.begun.load(Ordering::SeqCst), 5, "no task was done twice");
    assert_eq!(handler.0.most_at_once.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_row_and_nothing_else() {
    let cluster = Cluster::start(CoordinatorOptions { encode_rows: 3, ..beating() }).await;
    let handler = Gated::default();
    let worker = WorkerLoop::new(cluster.client(), "w", Stage::Encode, 1, handler.clone()).with_options(quick());
    tokio::spawn(worker.run(cluster.shutdown.clone()));
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "panic", "c"])).await.unwrap();
    let watcher = tokio::spawn(cluster.watch("job").await.finish());
    while !watcher.is_finished() {
        handler.0.open.notify_waiters();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(codes(&watcher.await.unwrap().0), ["OK", "INTERNAL", "OK"]);
}

#[tokio::test]
async fn cancelling_a_job_cancels_its_running_tasks() {
    let cluster = Cluster::start(beating()).await;
    let handler = Gated::default();
    let worker = WorkerLoop::new(cluster.client(), "w", Stage::Encode, 1, handler.clone()).with_options(quick());
    tokio::spawn(worker.run(cluster.shutdown.clone()));
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a"])).await.unwrap();
    eventually(|| handler.0.begun.load(Ordering::SeqCst) == 1).await;
    cluster.client().cancel_job(CancelJobRequest { job_id: "job".into() }).await.unwrap();
    eventually(|| handler.0.cancelled.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_worker_that_stops_finishes_what_it_can_and_hands_back_the_rest() {
    let cluster = Cluster::start(beating()).await;
    let handler = Gated::default();
    let stop = Shutdown::new();
    let worker = WorkerLoop::new(cluster.client(), "w", Stage::Encode, 2, handler.clone()).with_options(quick());
    let stopped = tokio::spawn(worker.run(stop.clone()));
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b"])).await.unwrap();
    eventually(|| handler.0.begun.load(Ordering::SeqCst) == 2).await;
    stop.request();
    handler.0.open.notify_one();
    tokio::time::timeout(Duration::from_secs(10), stopped).await.unwrap().unwrap();
    assert_eq!(cluster.status("job").await.rows_done, 1);
    let rest = cluster.worker("other", Stage::Encode).take_one().await;
    assert_eq!(rest.attempt, 2, "another worker gets it without waiting for the lease to end");
}

#[tokio::test]
async fn results_survive_a_coordinator_that_is_away_when_they_are_ready() {
    let cluster = Cluster::start(beating()).await;
    let handler = Gated::default();
    let (proxy, listener) = e2llm_runtime::in_process();
    // The worker's connection leads to the first coordinator, then nowhere, then to the second.
    let front = Switch::default();
    front.set(Some(cluster.client()));
    let server = e2llm_runtime::ServerBuilder::new(Default::default()).coordinator(front.clone());
    tokio::spawn(server.serve_in_process(listener, Shutdown::new()));
    let worker = WorkerLoop::new(proxy.endpoint().coordinator(), "w", Stage::Encode, 1, handler.clone());
    tokio::spawn(worker.with_options(quick()).run(Shutdown::new()));
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a"])).await.unwrap();
    eventually(|| handler.0.begun.load(Ordering::SeqCst) == 1).await;
    front.set(None);
    handler.0.open.notify_one();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let cluster = cluster.restart().await;
    front.set(Some(cluster.client()));
    let (rows, status) = cluster.watch("job").await.finish().await;
    assert_eq!((codes(&rows), status.state.as_str()), (vec!["OK"], "succeeded"));
    assert_eq!(handler.0.begun.load(Ordering::SeqCst), 1, "nothing was done twice");
}

/// Forwards reports to the coordinator it is set to: a network that can be cut.
#[derive(Clone, Default)]
struct Switch(Arc<std::sync::Mutex<Option<Client>>>);

impl Switch {
    fn set(&self, to: Option<Client>) {
        *self.0.lock().unwrap() = to;
    }
}

#[e2llm_runtime::async_trait]
impl coordinator_server::Coordinator for Switch {
    type WatchJobStream = tokio_stream::wrappers::ReceiverStream<Result<JobEvent, tonic::Status>>;
    type HeldTextsStream =
        tokio_stream::wrappers::ReceiverStream<Result<e2llm_api::v1::HeldTextsResponse, tonic::Status>>;
    type GetBundleStream = tokio_stream::wrappers::ReceiverStream<Result<BundlePiece, tonic::Status>>;

    async fn report_status(
        &self,
        request: tonic::Request<ReportStatusRequest>,
    ) -> Result<tonic::Response<ReportStatusResponse>, tonic::Status> {
        let client = self.0.lock().unwrap().clone();
        match client {
            Some(mut client) => client.report_status(request.into_inner()).await,
            None => Err(tonic::Status::unavailable("the line is cut")),
        }
    }
    async fn submit_job(
        &self,
        _: tonic::Request<tonic::Streaming<SubmitJobRequest>>,
    ) -> Result<tonic::Response<SubmitJobResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("reports only"))
    }
    async fn get_job(&self, _: tonic::Request<GetJobRequest>) -> Result<tonic::Response<JobStatus>, tonic::Status> {
        Err(tonic::Status::unimplemented("reports only"))
    }
    async fn list_jobs(
        &self,
        _: tonic::Request<ListJobsRequest>,
    ) -> Result<tonic::Response<ListJobsResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("reports only"))
    }
    async fn watch_job(
        &self,
        _: tonic::Request<WatchJobRequest>,
    ) -> Result<tonic::Response<Self::WatchJobStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("reports only"))
    }
    async fn cancel_job(
        &self,
        _: tonic::Request<CancelJobRequest>,
    ) -> Result<tonic::Response<JobStatus>, tonic::Status> {
        Err(tonic::Status::unimplemented("reports only"))
    }
    async fn resume_job(
        &self,
        _: tonic::Request<e2llm_api::v1::ResumeJobRequest>,
    ) -> Result<tonic::Response<JobStatus>, tonic::Status> {
        Err(tonic::Status::unimplemented("reports only"))
    }
    async fn acknowledge_job(
        &self,
        _: tonic::Request<AcknowledgeJobRequest>,
    ) -> Result<tonic::Response<AcknowledgeJobResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("reports only"))
    }
    async fn expire_jobs(
        &self,
        _: tonic::Request<e2llm_api::v1::ExpireJobsRequest>,
    ) -> Result<tonic::Response<e2llm_api::v1::ExpireJobsResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }
    async fn delete_job(
        &self,
        _: tonic::Request<DeleteJobRequest>,
    ) -> Result<tonic::Response<DeleteJobResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }
    async fn jobs_of(
        &self,
        _: tonic::Request<JobsOfRequest>,
    ) -> Result<tonic::Response<JobsOfResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }
    async fn put_text(
        &self,
        _: tonic::Request<tonic::Streaming<TextPiece>>,
    ) -> Result<tonic::Response<PutTextResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }
    async fn get_bundle(
        &self,
        _: tonic::Request<GetBundleRequest>,
    ) -> Result<tonic::Response<Self::GetBundleStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }
    async fn held_texts(
        &self,
        _: tonic::Request<e2llm_api::v1::HeldTextsRequest>,
    ) -> Result<tonic::Response<Self::HeldTextsStream>, tonic::Status> {
        Err(tonic::Status::unimplemented("not here"))
    }
}
