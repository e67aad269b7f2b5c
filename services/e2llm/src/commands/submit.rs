//! `e2llm jobs submit`: plans a job and leaves it to the coordinator.

use anyhow::Result;
use e2llm_api::v1::RowResult;

use super::bulk::{Purpose, Work};
use super::{ask, encode, summarize};
use crate::app::App;
use crate::cli::Submission;
use crate::job::Audience;
use crate::local::Services;
use crate::progress::Progress;

/// What is to be submitted.
pub(super) async fn work(app: &App, submission: Submission) -> Result<Work> {
    match submission {
        Submission::Encode(args) => encode::work(app, args).await,
        Submission::Summarize(args) => summarize::work(app, args).await,
        Submission::Ask(args) => ask::work(app, args).await,
        Submission::Train(_) => anyhow::bail!("a training job has no rows to read"),
    }
}

/// Plans the job: its name, and the services that planned it.
pub(super) async fn submit(app: &App, work: &Work) -> Result<(Services, String)> {
    let rows = work.look_ahead(app).await?;
    let begun = work.begin(app, Purpose::Submit, rows).await?;
    let services = begun.services.clone();
    let quiet = app.settings.quiet || app.settings.json;
    let mut planning = Planning { progress: Progress::start("submit", quiet) };
    match work.carry_out(app, begun, Purpose::Submit, &mut planning).await {
        Ok((_, chosen)) => Ok((services, chosen.job_id)),
        Err(error) => {
            services.stop().await;
            Err(error)
        }
    }
}

/// Shows how many rows are planned.
struct Planning {
    progress: Progress,
}

impl Audience for Planning {
    fn row(&mut self, _: &RowResult) -> Result<()> {
        Ok(())
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn rows(&self) -> u64 {
        0
    }
}
