//! `e2llm jobs`: bulk jobs of this store.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::{
    CancelJobRequest, DeleteJobRequest, DeleteJobResponse, GetJobRequest, JobKind, JobStatus, ListJobsRequest,
    ResumeJobRequest, job_event::Event,
};
use e2llm_runtime::{RetryPolicy, retry};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Response, Status};

use super::{dry_run, submit};
use crate::app::App;
use crate::cli::{JobsCommand, OutputArgs, Submission};
use crate::failure::{Interrupted, of_call, warn_line};
use crate::job;
use crate::local::{Needs, Services};
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::render::{self, clean, count, duration};
use crate::view::View;

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
    let work = submit::work(app, submission).await?;
    if work.job.dry_run {
        return dry_run::run(app, &work).await;
    }
    let (services, job) = submit::submit(app, &work).await?;
    let shown = Jobs { app, services: &services }.show(&job).await;
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

    /// Shows a job's progress until it ends. Leaving early leaves the job as it is.
    async fn watch(&self, job: &str) -> Result<ExitCode> {
        let mut last = self.status(job).await?;
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
        let is_whole = last.state == "succeeded" && last.rows_failed == 0;
        Ok(if is_whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    async fn result(&self, job: &str, output: &OutputArgs) -> Result<ExitCode> {
        let (settings, status) = (&self.app.settings, self.status(job).await?);
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

pub(super) fn kind_name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Unspecified => "unknown",
        JobKind::Encode => "encode",
        JobKind::Summarize => "summarize",
        JobKind::Ask => "ask",
    }
}

fn status_json(status: &JobStatus) -> Value {
    json!({
        "job_id": status.job_id, "kind": kind_name(status.kind()), "state": status.state,
        "collection": status.collection, "fingerprint": status.fingerprint, "priority": status.priority, "rows": status.rows,
        "rows_encoded": status.rows_encoded, "rows_done": status.rows_done, "rows_failed": status.rows_failed,
        "source_tokens": status.source_tokens, "generated_tokens": status.generated_tokens,
        "tasks_open": status.tasks_open, "tasks_running": status.tasks_running, "retries": status.retries,
        "encode_busy_s": seconds(status.encode_busy_us), "decode_busy_s": seconds(status.decode_busy_us),
        "created_unix_ms": status.created_unix_ms, "ended_unix_ms": status.ended_unix_ms,
        "expires_unix_ms": status.expires_unix_ms,
    })
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

fn status_text(status: &JobStatus) -> String {
    let mut text = format!(
        "{}  {:<9}  {:<9}  {} of {} rows done, {} failed",
        clean(&status.job_id),
        kind_name(status.kind()),
        clean(&status.state),
        count(status.rows_done),
        count(status.rows),
        count(status.rows_failed)
    );
    if status.retries > 0 {
        text += &format!(", {} tried again", count(status.retries));
    }
    if let Some(took) = status.ended_unix_ms.checked_sub(status.created_unix_ms) {
        text += &format!(", in {}", duration(took / 1000));
    }
    if status.priority != 0 {
        text += &format!(", priority {}", status.priority);
    }
    for (name, unix_ms) in times(status) {
        text += &format!(", {name} {}", time(unix_ms));
    }
    text
}

/// All of a status, a line for each thing.
fn status_block(status: &JobStatus) -> String {
    let mut text = format!(
        "{}\n  {} in collection {}",
        clean(&status.job_id),
        kind_name(status.kind()),
        clean(&status.collection)
    );
    if !status.fingerprint.is_empty() {
        text += &format!(", bundle {}", clean(&status.fingerprint));
    }
    text += &format!(
        "\n  {}: {} of {} rows done, {} encoded, {} failed; {} attempts were repeated\n  priority {}",
        clean(&status.state),
        count(status.rows_done),
        count(status.rows),
        count(status.rows_encoded),
        count(status.rows_failed),
        count(status.retries),
        status.priority
    );
    for (name, unix_ms) in times(status) {
        text += &format!(", {name} {}", time(unix_ms));
    }
    text += &format!("\n  {} tasks open, {} of them running", count(status.tasks_open), count(status.tasks_running));
    text += &format!(
        "\n  {} tokens read in {:.1} s of encoding, {} written in {:.1} s of decoding",
        count(status.source_tokens),
        seconds(status.encode_busy_us),
        count(status.generated_tokens),
        seconds(status.decode_busy_us)
    );
    text
}

/// The times that are known.
fn times(status: &JobStatus) -> impl Iterator<Item = (&'static str, u64)> {
    let times =
        [("created", status.created_unix_ms), ("ended", status.ended_unix_ms), ("expires", status.expires_unix_ms)];
    times.into_iter().filter(|(_, unix_ms)| *unix_ms > 0)
}

/// Such as `2026-11-24T01:05:35Z`.
fn time(unix_ms: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(unix_ms / 1000));
    // Beyond the year 9999 there is nothing to format.
    let latest = Duration::from_secs(253_402_300_799);
    match time {
        Some(time) if unix_ms / 1000 <= latest.as_secs() => humantime::format_rfc3339_seconds(time).to_string(),
        _ => "never".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_how_far_the_job_is() {
        let status = JobStatus {
            job_id: "j1".into(),
            kind: JobKind::Summarize.into(),
            state: "running".into(),
            rows: 1200,
            rows_done: 7,
            rows_failed: 1,
            created_unix_ms: 1000,
            ..Default::default()
        };
        let started = "created 1970-01-01T00:00:01Z";
        let line = format!("j1  summarize  running    7 of 1,200 rows done, 1 failed, {started}");
        assert_eq!(status_text(&status), line);
        assert_eq!(status_json(&status)["kind"], "summarize");
        let ended = JobStatus { ended_unix_ms: 9500, expires_unix_ms: 70_000, retries: 2, priority: -3, ..status };
        let ends = format!(
            "1 failed, 2 tried again, in 8 s, priority -3, {started}, ended 1970-01-01T00:00:09Z, \
             expires 1970-01-01T00:01:10Z"
        );
        assert!(status_text(&ended).ends_with(&ends), "{}", status_text(&ended));
        let block = status_block(&ended);
        for part in ["0 encoded, 1 failed; 2 attempts were repeated", "priority -3", "ended 1970-01-01T00:00:09Z"] {
            assert!(block.contains(part), "{block}");
        }
        assert_eq!(time(u64::MAX), "never");
    }
}
