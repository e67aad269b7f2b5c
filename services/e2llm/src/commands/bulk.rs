//! What `encode`, `summarize` and `ask --input` share: read rows, run a job, show it.

use std::process::ExitCode;

use anyhow::{Result, bail};
use e2llm_api::v1::{JobKind, JobSpec};
use tokio::sync::mpsc;

use crate::app::App;
use crate::cli::OutputArgs;
use crate::failure::Interrupted;
use crate::input::{Input, Part};
use crate::job::{self, Rows};
use crate::local::Needs;
use crate::output::Output;
use crate::view::View;

/// Runs a job of `kind` over the rows; the fields of `spec` that all jobs share are filled in here.
pub(super) async fn run(
    app: &App,
    kind: JobKind,
    spec: JobSpec,
    parts: mpsc::Receiver<Part>,
    output: &OutputArgs,
) -> Result<ExitCode> {
    let output = Output::open(output, app.settings.json)?;
    let rows = app.interruptible(Rows::look_ahead(parts)).await?;
    if let Some(failures) = rows.only_failures() {
        if failures.is_empty() {
            bail!("the input holds no documents; give a directory with .txt or .md files, a text, or a .jsonl");
        }
        let mut view = View::new(kind, output, app.settings.quiet);
        failures.iter().try_for_each(|row| view.row(row))?;
        return view.finish(app.settings.quiet);
    }
    let services = app.services(Needs::Models).await?;
    let mut view = View::new(kind, output, app.settings.quiet);
    let job_id = job::new_id();
    let collection = app.settings.collection.to_string();
    let spec = JobSpec { kind: kind.into(), collection, job_id: job_id.clone(), ..spec };
    let result = job::run(&services, spec, rows, &mut view, &app.shutdown).await;
    services.stop().await;
    match result {
        Ok(()) => view.finish(app.settings.quiet),
        Err(error) if error.is::<Interrupted>() => Err(how_to_go_on(kind, &job_id, view.tally().rows).into()),
        Err(error) => Err(error),
    }
}

fn how_to_go_on(kind: JobKind, job_id: &str, rows: u64) -> Interrupted {
    let again = "run the same command again to go on";
    let hint = match kind {
        JobKind::Ask => format!("{again}; the {rows} answers so far: e2llm jobs show {job_id} --results"),
        JobKind::Summarize => format!(
            "{again}, what is encoded is not encoded again; the {rows} summaries so far: \
             e2llm jobs show {job_id} --results"
        ),
        JobKind::Encode | JobKind::Unspecified => format!("{again}, what is encoded is not encoded again"),
    };
    Interrupted { hint: Some(hint) }
}

/// The sources behind what was typed; fetches sample texts on first use.
pub(super) async fn sources(app: &App, inputs: Vec<String>) -> Result<Vec<Input>> {
    let mut sources = Vec::new();
    for input in inputs {
        sources.push(match input.strip_prefix("sample:") {
            Some(name) => sample(app, name.to_owned()).await?,
            None if input == "-" && sources.contains(&Input::Stdin) => bail!("`-` stands twice; give it once"),
            None if input == "-" => Input::Stdin,
            None => Input::Path(input.into()),
        });
    }
    Ok(sources)
}

async fn sample(app: &App, name: String) -> Result<Input> {
    let fetcher = app.settings.fetcher()?;
    let fetch = tokio::task::spawn_blocking(move || fetcher.fetch_sample(&name));
    Ok(Input::Path(app.interruptible(fetch).await???.dir))
}
