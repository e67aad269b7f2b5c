use std::sync::Arc;

use e2llm_api::v1::coordinator_server::Coordinator;
use e2llm_api::v1::{
    AcknowledgeJobRequest, AcknowledgeJobResponse, BundlePiece, CancelJobRequest, DeleteJobRequest, DeleteJobResponse,
    ExpireJobsRequest, ExpireJobsResponse, GetBundleRequest, GetJobRequest, HeldTextsRequest, HeldTextsResponse,
    JobEvent, JobStatus, JobsOfRequest, JobsOfResponse, ListJobsRequest, ListJobsResponse, PutTextResponse,
    ReportStatusRequest, ReportStatusResponse, ResumeJobRequest, SubmitJobRequest, SubmitJobResponse, TextPiece,
    WatchJobRequest,
};
use e2llm_api::{ErrorCode, status};
use e2llm_runtime::auth::{Caller, caller};
use e2llm_runtime::{Clock, Shutdown, SystemClock};
use e2llm_store::Store;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::engine::Engine;
use crate::ids::JobId;
use crate::journal::Journal;
use crate::report::{Turns, report};
use crate::submit::submit;
use crate::watch::Watch;
use crate::{CoordinatorError, CoordinatorOptions, LoadJobs, measure, objects, retention};

/// Events that may wait for a slow listener.
const EVENT_QUEUE: usize = 64;
/// Pieces of a bundle that may wait for a slow reader.
const PIECE_QUEUE: usize = 4;
/// Most documents that one call asks about.
const MAX_DOCUMENTS: usize = 1000;

/// Plans jobs, leases their tasks and commits their results. Cheap to clone; clones share one state.
#[derive(Clone)]
pub struct CoordinatorService {
    engine: Arc<Engine>,
    turns: Arc<Turns>,
}

impl CoordinatorService {
    /// A coordinator on `store`. Jobs that were not finished go on, see [`LoadJobs`].
    ///
    /// `shutdown` ends what waits: watches and reports that hold out for a task.
    ///
    /// # Errors
    /// When the store cannot be listed or read. A damaged job is logged and left out.
    pub async fn open(store: Store, options: CoordinatorOptions, shutdown: Shutdown) -> Result<Self, CoordinatorError> {
        Self::open_with_clock(store, options, shutdown, Arc::new(SystemClock)).await
    }

    /// The same with a clock of the caller's, by which leases expire.
    ///
    /// # Errors
    /// As [`CoordinatorService::open`].
    pub async fn open_with_clock(
        store: Store,
        options: CoordinatorOptions,
        shutdown: Shutdown,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CoordinatorError> {
        measure::begin();
        let load = options.load;
        let engine = Arc::new(Engine::new(Journal::new(store), options, clock, shutdown));
        if load == LoadJobs::Unfinished {
            engine.load_unfinished().await?;
            tokio::spawn(retention::run(Arc::clone(&engine)));
        }
        Ok(Self { engine, turns: Arc::default() })
    }

    /// The job that a caller names. One of a collection that is not open to the caller is as unknown as one that is not there.
    async fn job(&self, caller: &Caller, name: &str) -> Result<JobId, CoordinatorError> {
        let job = JobId::new(name)?;
        if !caller.may_use_all() && !caller.may_use(&self.engine.status(&job).await?.collection) {
            return Err(CoordinatorError::NoSuchJob(job.to_string()));
        }
        Ok(job)
    }
}

impl std::fmt::Debug for CoordinatorService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoordinatorService").field("options", &self.engine.options).finish_non_exhaustive()
    }
}

#[e2llm_runtime::async_trait]
impl Coordinator for CoordinatorService {
    type WatchJobStream = ReceiverStream<Result<JobEvent, Status>>;
    type GetBundleStream = ReceiverStream<Result<BundlePiece, Status>>;
    type HeldTextsStream = ReceiverStream<Result<HeldTextsResponse, Status>>;

    async fn submit_job(
        &self,
        request: Request<Streaming<SubmitJobRequest>>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        // On a task of its own: a client that goes away must not leave the job half submitted.
        let caller = caller(&request);
        let submission = tokio::spawn(submit(Arc::clone(&self.engine), caller, request.into_inner()));
        let lost = |_| status(ErrorCode::Internal, "the submission ended unexpectedly; see the coordinator's log");
        Ok(Response::new(submission.await.map_err(lost)??))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<JobStatus>, Status> {
        let job = self.job(&caller(&request), &request.get_ref().job_id).await?;
        Ok(Response::new(self.engine.status(&job).await?))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let caller = caller(&request);
        let ListJobsRequest { id_prefix, unacknowledged } = request.into_inner();
        let mut jobs = self.engine.list(&id_prefix, unacknowledged).await?;
        jobs.retain(|job| caller.may_use(&job.collection));
        Ok(Response::new(ListJobsResponse { jobs }))
    }

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        let caller = caller(&request);
        let WatchJobRequest { job_id, results } = request.into_inner();
        let job = self.job(&caller, &job_id).await?;
        self.engine.open(&job).await?;
        let (events, receiver) = mpsc::channel(EVENT_QUEUE);
        let watch = Watch::new(Arc::clone(&self.engine), job, results, events)?;
        tokio::spawn(watch.run());
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<JobStatus>, Status> {
        let job = self.job(&caller(&request), &request.get_ref().job_id).await?;
        Ok(Response::new(self.engine.cancel(&job).await?))
    }

    async fn resume_job(&self, request: Request<ResumeJobRequest>) -> Result<Response<JobStatus>, Status> {
        let job = self.job(&caller(&request), &request.get_ref().job_id).await?;
        Ok(Response::new(self.engine.resume(&job).await?))
    }

    async fn acknowledge_job(
        &self,
        request: Request<AcknowledgeJobRequest>,
    ) -> Result<Response<AcknowledgeJobResponse>, Status> {
        let job = self.job(&caller(&request), &request.get_ref().job_id).await?;
        self.engine.acknowledge(&job).await?;
        Ok(Response::new(AcknowledgeJobResponse {}))
    }

    async fn expire_jobs(&self, request: Request<ExpireJobsRequest>) -> Result<Response<ExpireJobsResponse>, Status> {
        caller(&request).check_all()?;
        let retention::Expired { jobs, objects, bytes } =
            retention::expire(&self.engine, request.into_inner().dry_run).await?;
        let job_ids = jobs.iter().map(JobId::to_string).collect();
        Ok(Response::new(ExpireJobsResponse { job_ids, objects, bytes }))
    }

    async fn delete_job(&self, request: Request<DeleteJobRequest>) -> Result<Response<DeleteJobResponse>, Status> {
        let job = self.job(&caller(&request), &request.get_ref().job_id).await?;
        let (objects, bytes) = retention::delete(&self.engine, &job).await?;
        Ok(Response::new(DeleteJobResponse { objects, bytes }))
    }

    async fn jobs_of(&self, request: Request<JobsOfRequest>) -> Result<Response<JobsOfResponse>, Status> {
        caller(&request).check(&request.get_ref().collection)?;
        let JobsOfRequest { collection, doc_ids } = request.into_inner();
        if doc_ids.len() > MAX_DOCUMENTS {
            return Err(CoordinatorError::TooMany { count: doc_ids.len(), most: MAX_DOCUMENTS }.into());
        }
        let jobs = retention::jobs_of(&self.engine, &collection, &doc_ids.into_iter().collect()).await?;
        Ok(Response::new(JobsOfResponse { jobs }))
    }

    async fn held_texts(&self, request: Request<HeldTextsRequest>) -> Result<Response<Self::HeldTextsStream>, Status> {
        caller(&request).check_all()?;
        let (hashes, receiver) = mpsc::channel(EVENT_QUEUE);
        tokio::spawn(retention::send_held_texts(Arc::clone(&self.engine), hashes));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn put_text(&self, request: Request<Streaming<TextPiece>>) -> Result<Response<PutTextResponse>, Status> {
        Ok(Response::new(objects::put_text(self.engine.journal.store(), request.into_inner()).await?))
    }

    async fn get_bundle(&self, request: Request<GetBundleRequest>) -> Result<Response<Self::GetBundleStream>, Status> {
        let job = self.job(&caller(&request), &request.get_ref().job_id).await?;
        self.engine.open(&job).await?;
        let files = self.engine.with_job(&job, |job| job.bundle_files())?;
        if files.is_empty() {
            return Err(CoordinatorError::NoBundle(job.to_string()).into());
        }
        let store = self.engine.journal.store().clone();
        let (pieces, receiver) = mpsc::channel(PIECE_QUEUE);
        tokio::spawn(objects::send_files(store, files, pieces));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn report_status(
        &self,
        request: Request<ReportStatusRequest>,
    ) -> Result<Response<ReportStatusResponse>, Status> {
        caller(&request).check_all()?;
        Ok(Response::new(report(&self.engine, &self.turns, request.into_inner()).await?))
    }
}
