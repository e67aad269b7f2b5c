//! `e2llm jobs`: bulk jobs of this store.

mod status;
mod train;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::{
    CancelJobRequest, DeleteJobRequest, DeleteJobResponse, GetJobRequest, JobStatus, ListJobsRequest, ResumeJobRequest,
    job_event::Event,
};
use e2llm_runtime::Channel;
use e2llm_runtime::{RetryPolicy, retry};
use serde_json::json;
use tonic::{Response, Status};

use super::{dry_run, submit};
use crate::app::App;
use crate::cli::{JobsCommand, OutputArgs, Submission};
use crate::failure::{Interrupted, SOME_FAILED, of_call, warn_line};
use crate::job;
use crate::local::{Needs, Services};
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::render::{self, clean, count};
use crate::view::View;
pub(super) use status::kind_name;
use status::{status_block, status_json, status_text};

pub(crate) async fn run(app: &App, command: JobsCommand) -> Result<ExitCode> {
    let command = match command {
        JobsCommand::Submit(args) => return submit(app, args.submission).await,
        command => command,
    };
    let services = app.services(needs(&command)).await?;
    let jobs = Jobs { app, services: &services };
    let result = jobs.run(command).await;
    services.stop().await;
    result
}

async fn submit(app: &App, submission: Submission) -> Result<ExitCode> {
    if let Submission::Train(work) = &submission {
        let (services, job) = train::submit(app, work).await?;
        return submitted(app, services, &job).await;
    }
    let work = submit::work(app, submission).await?;
    if work.job.dry_run {
        return dry_run::run(app, &work).await;
    }
    let (services, job) = submit::submit(app, &work).await?;
    submitted(app, services, &job).await
}

async fn submitted(app: &App, services: Services, job: &str) -> Result<ExitCode> {
    let shown = Jobs { app, services: &services }.show(job).await;
    if services.are_own() && !app.settings.quiet {
        warn_line(&format!("it runs when it is watched or its results are fetched here: e2llm jobs watch {job}"));
    }
    services.stop().await;
    shown
}

/// What is waited for needs somebody to work on it.
fn needs(command: &JobsCommand) -> Needs {
    match command {
        JobsCommand::Watch { .. } | JobsCommand::Result { .. } | JobsCommand::Resume { .. } => Needs::Models,
        JobsCommand::Submit(_)
        | JobsCommand::List
        | JobsCommand::Show { .. }
        | JobsCommand::Bundle { .. }
        | JobsCommand::Cancel { .. }
        | JobsCommand::Delete { .. } => Needs::Records,
    }
}

/// The commands.
struct Jobs<'a> {
    app: &'a App,
    services: &'a Services,
}

impl Jobs<'_> {
    async fn run(&self, command: JobsCommand) -> Result<ExitCode> {
        match command {
            JobsCommand::Submit(args) => submit(self.app, args.submission).await,
            JobsCommand::List => self.app.interruptible(self.list()).await?,
            JobsCommand::Show { job } => self.app.interruptible(self.show(&job)).await?,
            JobsCommand::Watch { job } => self.watch(&job).await,
            JobsCommand::Result { job, output } => self.result(&job, &output).await,
            JobsCommand::Cancel { job } => {
                let cancel = async |mut client: CoordinatorClient<Channel>, job_id: String| {
                    client.cancel_job(CancelJobRequest { job_id }).await
                };
                self.print(&self.call("Coordinator.CancelJob", &job, cancel).await?)
            }
            JobsCommand::Bundle { job, output } => self.bundle(&job, &output).await,
            JobsCommand::Delete { job } => self.delete(&job).await,
            JobsCommand::Resume { job } => self.resume(&job).await,
        }
    }

    async fn list(&self) -> Result<ExitCode> {
        let list = async || self.services.coordinator().list_jobs(ListJobsRequest::default()).await;
        let policy = RetryPolicy::default();
        let listed = retry(&policy, "Coordinator.ListJobs", self.services.address(), list).await.map_err(of_call)?;
        for status in &listed.into_inner().jobs {
            self.print(status)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn show(&self, job: &str) -> Result<ExitCode> {
        let status = self.status(job).await?;
        let json = self.app.settings.json;
        output::print_line(&if json { status_json(&status).to_string() } else { status_block(&status) })?;
        Ok(ExitCode::SUCCESS)
    }

    async fn status(&self, job: &str) -> Result<JobStatus> {
        let get = async |mut client: CoordinatorClient<Channel>, job_id: String| {
            client.get_job(GetJobRequest { job_id }).await
        };
        self.call("Coordinator.GetJob", job, get).await
    }

    async fn delete(&self, job: &str) -> Result<ExitCode> {
        let request = DeleteJobRequest { job_id: job.to_owned() };
        let delete = async || self.services.coordinator().delete_job(request.clone()).await;
        let policy = RetryPolicy::default();
        let deleted = retry(&policy, "Coordinator.DeleteJob", self.services.address(), delete).await;
        let DeleteJobResponse { objects, bytes } = deleted.map_err(of_call)?.into_inner();
        output::print_line(&if self.app.settings.json {
            json!({"job_id": job, "deleted": true, "objects": objects, "bytes": bytes}).to_string()
        } else {
            format!("deleted job {}: {} objects, {}", clean(job), count(objects), render::bytes(bytes))
        })?;
        Ok(ExitCode::SUCCESS)
    }

    async fn bundle(&self, job: &str, directory: &Path) -> Result<ExitCode> {
        let status = self.status(job).await?;
        let fingerprint = train::fetch_bundle(self.services, &status, directory).await?;
        output::print_line(&if self.app.settings.json {
            json!({"job_id": job, "fingerprint": fingerprint, "directory": directory}).to_string()
        } else {
            format!("bundle {fingerprint} in {}", directory.display())
        })?;
        Ok(ExitCode::SUCCESS)
    }

    async fn resume(&self, job: &str) -> Result<ExitCode> {
        let resume = async |mut client: CoordinatorClient<Channel>, job_id: String| {
            client.resume_job(ResumeJobRequest { job_id }).await
        };
        let status = self.call("Coordinator.ResumeJob", job, resume).await?;
        if status.state == "planning" {
            bail!("job {job} was interrupted before all its rows were read; repeat the command that submitted it");
        }
        if self.app.settings.server.is_some() { self.print(&status) } else { self.watch(job).await }
    }

    /// Workers of this process take no tasks of jobs for another bundle, so that waiting for one would have no end.
    fn must_be_of_this_bundle(&self, status: &JobStatus) -> Result<()> {
        let has_ended = matches!(status.state.as_str(), "succeeded" | "cancelled");
        match self.services.fingerprint() {
            Some(ours) if !has_ended && !ours.starts_with(&status.fingerprint) => bail!(
                "job {} is for bundle {}, not for {ours}, which is in use here; give the other one with --bundle",
                status.job_id,
                status.fingerprint
            ),
            _ => Ok(()),
        }
    }

    /// Shows a job's progress until it ends. Leaving early leaves the job as it is.
    async fn watch(&self, job: &str) -> Result<ExitCode> {
        let mut last = self.status(job).await?;
        self.must_be_of_this_bundle(&last)?;
        let mut progress = Progress::start(kind_name(last.kind()), self.app.settings.quiet || self.app.settings.json);
        let mut events = job::progress_of(self.services, job);
        loop {
            let event = tokio::select! {
                event = events.next() => event?,
                () = self.app.shutdown.requested() => return Err(Interrupted::default().into()),
            };
            let Some(event) = event else { break };
            let Event::Status(status) = event else { continue };
            if status.state != "planning" {
                progress.all_rows_are_known(status.rows);
            }
            progress.update(&status);
            if self.app.settings.json {
                self.print(&status)?;
            }
            last = status;
        }
        drop(progress);
        if !self.app.settings.json {
            self.print(&last)?;
        }
        Ok(match (last.state.as_str(), last.rows_failed) {
            ("succeeded", 0) => ExitCode::SUCCESS,
            ("succeeded", _) => SOME_FAILED.into(),
            _ => ExitCode::FAILURE,
        })
    }

    async fn result(&self, job: &str, output: &OutputArgs) -> Result<ExitCode> {
        let (settings, status) = (&self.app.settings, self.status(job).await?);
        self.must_be_of_this_bundle(&status)?;
        let mut view = View::new(status.kind(), Output::open(output, settings.json)?, settings.quiet);
        // A cancelled job has results too: what it finished.
        job::watch(self.services, job, &mut view, &self.app.shutdown).await?;
        view.finish(settings.quiet)
    }

    /// One call about a job, tried again while it may pass.
    async fn call(
        &self,
        name: &'static str,
        job: &str,
        call: impl AsyncFn(CoordinatorClient<Channel>, String) -> Result<Response<JobStatus>, Status>,
    ) -> Result<JobStatus> {
        let attempt = async || call(self.services.coordinator(), job.to_owned()).await;
        let policy = RetryPolicy::default();
        let answer = retry(&policy, name, self.services.address(), attempt).await.map_err(of_call)?;
        Ok(answer.into_inner())
    }

    fn print(&self, status: &JobStatus) -> Result<ExitCode> {
        let json = self.app.settings.json;
        output::print_line(&if json { status_json(status).to_string() } else { status_text(status) })?;
        Ok(ExitCode::SUCCESS)
    }
}
