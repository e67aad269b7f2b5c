//! What a job is called, so that repeating an interrupted command goes on with its job.

use anyhow::Result;
use e2llm_api::ErrorCode;
use e2llm_api::v1::{AcknowledgeJobRequest, GetJobRequest, JobSpec, JobStatus, ListJobsRequest, ResumeJobRequest};
use e2llm_runtime::{CallError, RetryPolicy, retry};
use prost::Message;

use crate::failure::of_call;
use crate::local::Services;

/// How a command's job is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobName {
    /// By the user: the same name is the same job, finished or not.
    Given(String),
    /// By what the command does: until its results have arrived, the job goes on when the command is repeated. A prefix
    /// of ids.
    Repeatable(String),
    /// The same of a command that only submits: until all rows are planned.
    Submitted(String),
}

/// The job to submit under.
#[derive(Debug, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) job_id: String,
    /// The job as an earlier run left it.
    pub(crate) earlier: Option<JobStatus>,
}

impl Chosen {
    /// A job that nothing went before, and that nothing can go on with.
    pub(crate) fn fresh() -> Self {
        Self { job_id: super::new_id(), earlier: None }
    }

    /// Whether the earlier run cancelled the job, so that it had to be taken up again.
    pub(crate) fn was_cancelled(&self) -> bool {
        self.earlier.as_ref().is_some_and(|earlier| earlier.state == "cancelled")
    }

    /// Whether the job needs nothing any more.
    pub(crate) fn has_finished(&self) -> bool {
        self.earlier.as_ref().is_some_and(|earlier| earlier.state == "succeeded")
    }
}

impl JobName {
    /// The prefix that stands for doing `spec` with what was `typed` in this directory.
    pub(crate) fn prefix(purpose: &str, spec: &JobSpec, typed: &str) -> String {
        let directory = std::env::current_dir().unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        for part in [spec.encode_to_vec(), typed.into(), directory.as_os_str().as_encoded_bytes().into()] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(&part);
        }
        format!("{purpose}-{}-", &hasher.finalize().to_hex()[..12])
    }

    /// Finds the job that goes on, or a name for a new one. A cancelled job is taken up again.
    pub(crate) async fn choose(&self, services: &Services) -> Result<Chosen> {
        let earlier = match self {
            Self::Given(name) => status(services, name).await?,
            Self::Repeatable(prefix) => latest(services, prefix).await?,
            Self::Submitted(prefix) => {
                latest(services, prefix).await?.filter(|job| matches!(job.state.as_str(), "planning" | "cancelled"))
            }
        };
        let Some(earlier) = earlier else { return Ok(self.anew()) };
        let chosen = Chosen { job_id: earlier.job_id.clone(), earlier: Some(earlier) };
        if chosen.was_cancelled() {
            resume(services, &chosen.job_id).await?;
        }
        Ok(chosen)
    }

    /// A job that nothing went before.
    pub(crate) fn anew(&self) -> Chosen {
        let job_id = match self {
            Self::Given(name) => name.clone(),
            Self::Repeatable(prefix) | Self::Submitted(prefix) => format!("{prefix}{}", super::new_id()),
        };
        Chosen { job_id, earlier: None }
    }

    /// Gives up an earlier job whose input has changed since: it is neither worked on nor found again. One that someone
    /// else may be waiting for stays as it is.
    pub(crate) async fn give_up(services: &Services, chosen: &Chosen) {
        if chosen.was_cancelled() || services.are_own() {
            super::cancel(services, &chosen.job_id).await;
            Self::acknowledge(services, &chosen.job_id).await;
        }
    }

    /// Says that the job's results have arrived, so that the command starts anew when it is repeated.
    pub(crate) async fn acknowledge(services: &Services, job_id: &str) {
        let request = AcknowledgeJobRequest { job_id: job_id.to_owned() };
        let acknowledge = async || services.coordinator().acknowledge_job(request.clone()).await;
        let policy = RetryPolicy::default();
        let called = retry(&policy, "Coordinator.AcknowledgeJob", services.address(), acknowledge).await;
        if let Err(error) = called {
            tracing::warn!(%error, job_id, "a repeated command will print the results of this job once more");
        }
    }
}

async fn status(services: &Services, name: &str) -> Result<Option<JobStatus>> {
    let request = GetJobRequest { job_id: name.to_owned() };
    let get = async || services.coordinator().get_job(request.clone()).await;
    absent_if_unknown(retry(&RetryPolicy::default(), "Coordinator.GetJob", services.address(), get).await)
}

fn absent_if_unknown(answer: Result<tonic::Response<JobStatus>, CallError>) -> Result<Option<JobStatus>> {
    match answer {
        Ok(status) => Ok(Some(status.into_inner())),
        Err(error) if error.code() == ErrorCode::NotFound => Ok(None),
        Err(error) => Err(of_call(error)),
    }
}

/// The latest job of this prefix whose results have not arrived. Ids sort by time.
async fn latest(services: &Services, prefix: &str) -> Result<Option<JobStatus>> {
    let request = ListJobsRequest { id_prefix: prefix.to_owned(), unacknowledged: true };
    let list = async || services.coordinator().list_jobs(request.clone()).await;
    let listed = retry(&RetryPolicy::default(), "Coordinator.ListJobs", services.address(), list).await;
    Ok(listed.map_err(of_call)?.into_inner().jobs.pop())
}

async fn resume(services: &Services, job_id: &str) -> Result<()> {
    let request = ResumeJobRequest { job_id: job_id.to_owned() };
    let resume = async || services.coordinator().resume_job(request.clone()).await;
    retry(&RetryPolicy::default(), "Coordinator.ResumeJob", services.address(), resume).await.map_err(of_call)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2llm_api::v1::JobKind;

    #[test]
    fn the_same_work_has_the_same_name_and_other_work_another() {
        let spec = JobSpec { kind: JobKind::Summarize.into(), ..Default::default() };
        let name = JobName::prefix("run", &spec, "a");
        assert_eq!(name, JobName::prefix("run", &spec, "a"));
        assert_ne!(name, JobName::prefix("run", &spec, "b"));
        assert_ne!(name, JobName::prefix("submit", &spec, "a"));
        let brief = JobSpec { instruction: "Be brief.".into(), ..spec };
        assert_ne!(name, JobName::prefix("run", &brief, "a"));
        let id = JobName::Repeatable(name.clone()).anew().job_id;
        assert!(id.starts_with(&name) && e2llm_coordinator::JobId::new(&id).is_ok(), "{id}");
    }
}
