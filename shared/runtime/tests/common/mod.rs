//! The service that tests of servers serve.
#![allow(dead_code, unreachable_pub)]

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use e2llm_api::v1::coordinator_server::Coordinator;
use e2llm_api::v1::*;
use e2llm_api::{ErrorCode, status};
use e2llm_runtime::{Endpoint, code_of, with_deadline};
use futures::Stream;
use tonic::{Request, Response, Status, Streaming};

/// A service small enough to be obvious: it knows jobs named `known`, waits before it answers for `slow`, and
/// notes how submissions ended.
#[derive(Clone, Default)]
pub struct Jobs {
    /// How submissions ended: messages read, or why not.
    pub submissions: Arc<Mutex<Vec<Result<usize, ErrorCode>>>>,
}

impl Jobs {
    async fn read(self, mut stream: Streaming<SubmitJobRequest>) {
        let mut messages = 0;
        let ended = loop {
            match stream.message().await {
                Ok(Some(_)) => messages += 1,
                Ok(None) => break Ok(messages),
                Err(failure) => break Err(code_of(&failure)),
            }
        };
        self.submissions.lock().unwrap().push(ended);
    }
}

#[e2llm_runtime::async_trait]
impl Coordinator for Jobs {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<JobEvent, Status>> + Send>>;
    type HeldTextsStream = Pin<Box<dyn Stream<Item = Result<e2llm_api::v1::HeldTextsResponse, Status>> + Send>>;
    type GetBundleStream = Pin<Box<dyn Stream<Item = Result<BundlePiece, Status>> + Send>>;

    async fn get_job(&self, request: Request<GetJobRequest>) -> Result<Response<JobStatus>, Status> {
        let job_id = request.into_inner().job_id;
        match job_id.as_str() {
            "known" => {}
            "slow" => tokio::time::sleep(Duration::from_millis(300)).await,
            _ => return Err(status(ErrorCode::NotFound, format!("no job {job_id:?}"))),
        }
        Ok(Response::new(JobStatus { job_id, ..Default::default() }))
    }
    async fn list_jobs(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        let jobs = vec![JobStatus { job_id: "x".repeat(12 << 20), ..Default::default() }];
        Ok(Response::new(ListJobsResponse { jobs }))
    }
    async fn submit_job(
        &self,
        request: Request<Streaming<SubmitJobRequest>>,
    ) -> Result<Response<SubmitJobResponse>, Status> {
        // Apart, because this call is dropped when its client goes away.
        tokio::spawn(self.clone().read(request.into_inner())).await.unwrap();
        Ok(Response::new(SubmitJobResponse::default()))
    }
    async fn watch_job(&self, _: Request<WatchJobRequest>) -> Result<Response<Self::WatchJobStream>, Status> {
        Ok(Response::new(Box::pin(futures::stream::pending())))
    }
    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<JobStatus>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn resume_job(&self, _: Request<e2llm_api::v1::ResumeJobRequest>) -> Result<Response<JobStatus>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn expire_jobs(
        &self,
        _: Request<e2llm_api::v1::ExpireJobsRequest>,
    ) -> Result<Response<e2llm_api::v1::ExpireJobsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn put_text(&self, _: Request<Streaming<TextPiece>>) -> Result<Response<PutTextResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn get_bundle(&self, _: Request<GetBundleRequest>) -> Result<Response<Self::GetBundleStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn held_texts(
        &self,
        _: Request<e2llm_api::v1::HeldTextsRequest>,
    ) -> Result<Response<Self::HeldTextsStream>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn acknowledge_job(
        &self,
        _: Request<e2llm_api::v1::AcknowledgeJobRequest>,
    ) -> Result<Response<e2llm_api::v1::AcknowledgeJobResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn delete_job(
        &self,
        _: Request<e2llm_api::v1::DeleteJobRequest>,
    ) -> Result<Response<e2llm_api::v1::DeleteJobResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn jobs_of(
        &self,
        _: Request<e2llm_api::v1::JobsOfRequest>,
    ) -> Result<Response<e2llm_api::v1::JobsOfResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
    async fn report_status(&self, _: Request<ReportStatusRequest>) -> Result<Response<ReportStatusResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

/// Asks for a job and drops the answer.
pub async fn get_job(endpoint: &Endpoint, job: &str) -> Result<(), Status> {
    let request = with_deadline(GetJobRequest { job_id: job.to_owned() }, Duration::from_secs(5));
    endpoint.coordinator().get_job(request).await.map(drop)
}
