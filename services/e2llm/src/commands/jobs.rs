//! `e2llm jobs`: bulk jobs of this store.

use std::process::ExitCode;

use anyhow::Result;
use e2llm_api::v1::{CancelJobRequest, GetJobRequest, JobKind, JobStatus, ListJobsRequest};
use e2llm_runtime::{RetryPolicy, retry};
use serde_json::{Value, json};

use crate::app::App;
use crate::cli::{JobsCommand, OutputArgs};
use crate::failure::of_call;
use crate::job;
use crate::local::{Needs, Services};
use crate::output::{self, Output};
use crate::render::{clean, count};
use crate::view::View;

pub(crate) async fn run(app: &App, command: JobsCommand) -> Result<ExitCode> {
    let services = app.services(needs(&command)).await?;
    let result = match command {
        JobsCommand::Show { job, results: true, output } => results(app, &services, &job, &output).await,
        command => app.interruptible(call(app, &services, command)).await.and_then(|result| result),
    };
    services.stop().await;
    result
}

/// Results are waited for, so somebody has to work on them.
fn needs(command: &JobsCommand) -> Needs {
    if matches!(command, JobsCommand::Show { results: true, .. }) { Needs::Models } else { Needs::Records }
}

async fn call(app: &App, services: &Services, command: JobsCommand) -> Result<ExitCode> {
    let client = services.coordinator();
    let (policy, address) = (RetryPolicy::default(), services.address());
    let statuses = match command {
        JobsCommand::List => {
            let list = async || client.clone().list_jobs(ListJobsRequest {}).await;
            retry(&policy, "Coordinator.ListJobs", address, list).await.map_err(of_call)?.into_inner().jobs
        }
        JobsCommand::Show { job: job_id, .. } => {
            let get = async || client.clone().get_job(GetJobRequest { job_id: job_id.clone() }).await;
            vec![retry(&policy, "Coordinator.GetJob", address, get).await.map_err(of_call)?.into_inner()]
        }
        JobsCommand::Cancel { job: job_id } => {
            let cancel = async || client.clone().cancel_job(CancelJobRequest { job_id: job_id.clone() }).await;
            vec![retry(&policy, "Coordinator.CancelJob", address, cancel).await.map_err(of_call)?.into_inner()]
        }
    };
    for status in &statuses {
        output::print_line(&if app.settings.json { status_json(status).to_string() } else { status_text(status) })?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn results(app: &App, services: &Services, job_id: &str, output: &OutputArgs) -> Result<ExitCode> {
    let request = GetJobRequest { job_id: job_id.to_owned() };
    let get = async || services.coordinator().get_job(request.clone()).await;
    let status = retry(&RetryPolicy::default(), "Coordinator.GetJob", services.address(), get)
        .await
        .map_err(of_call)?
        .into_inner();
    let mut view = View::new(status.kind(), Output::open(output, app.settings.json)?, app.settings.quiet);
    // A cancelled job has results too: what it finished.
    job::watch(services, job_id, &mut view, &app.shutdown).await?;
    view.finish(app.settings.quiet)
}

fn kind_name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Unspecified => "unknown",
        JobKind::Encode => "encode",
        JobKind::Summarize => "summarize",
        JobKind::Ask => "ask",
    }
}

fn status_json(status: &JobStatus) -> Value {
    json!({
        "job_id": status.job_id, "kind": kind_name(status.kind()), "state": status.state, "rows": status.rows,
        "rows_encoded": status.rows_encoded, "rows_done": status.rows_done, "rows_failed": status.rows_failed,
        "source_tokens": status.source_tokens, "generated_tokens": status.generated_tokens,
    })
}

fn status_text(status: &JobStatus) -> String {
    format!(
        "{}  {:<9}  {:<9}  {} of {} rows done, {} failed",
        clean(&status.job_id),
        kind_name(status.kind()),
        clean(&status.state),
        count(status.rows_done),
        count(status.rows),
        count(status.rows_failed)
    )
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
            ..Default::default()
        };
        assert_eq!(status_text(&status), "j1  summarize  running    7 of 1,200 rows done, 1 failed");
        assert_eq!(status_json(&status)["kind"], "summarize");
    }
}
