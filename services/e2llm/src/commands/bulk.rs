//! What `encode`, `summarize`, `ask` of many and `jobs submit` share: read rows, run a job, show it.

use std::process::ExitCode;

use anyhow::{Result, bail};
use e2llm_api::v1::{JobKind, JobSpec, JobStatus};

use super::dry_run;
use super::source::Source;
use crate::app::App;
use crate::cli::{JobArgs, OutputArgs};
use crate::failure::{Interrupted, warn_line};
use crate::job::{self, Audience, Chosen, JobName, Rows, Taken};
use crate::local::{self, Needs, Services};
use crate::output::Output;
use crate::render::count;
use crate::view::View;

/// What a bulk command does.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) kind: JobKind,
    /// What is not the same for all jobs.
    pub(super) spec: JobSpec,
    pub(super) source: Source,
    /// The inputs as they were typed.
    pub(super) typed: String,
    pub(super) job: JobArgs,
}

/// What for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To see the job to its end.
    Run,
    /// To plan it.
    Submit,
}

/// Services, and rows that hold work for them.
pub(super) struct Begun {
    pub(super) services: Services,
    pub(super) rows: Rows,
}

/// Does the work and prints the results.
pub(super) async fn run(app: &App, work: Work, output: &OutputArgs) -> Result<ExitCode> {
    if work.job.dry_run {
        return dry_run::run(app, &work).await;
    }
    let mut view = View::new(work.kind, Output::open(output, app.settings.json)?, app.settings.quiet);
    let rows = work.look_ahead(app).await?;
    // A job with a name may have been submitted when the input could still be read.
    let failures = rows.as_ref().filter(|_| work.job.job.is_none()).and_then(Rows::only_failures);
    if let Some(failures) = failures {
        failures.iter().try_for_each(|row| view.row(row))?;
        return view.finish(app.settings.quiet);
    }
    let begun = work.begin(app, Purpose::Run, rows).await?;
    let services = begun.services.clone();
    let finished = match work.carry_out(app, begun, Purpose::Run, &mut view).await {
        Ok(done) => finish(app, &services, view, done).await,
        Err(error) => Err(error),
    };
    services.stop().await;
    finished
}

/// Makes the output final; only then the job is done with.
async fn finish(app: &App, services: &Services, view: View, (name, chosen): (JobName, Chosen)) -> Result<ExitCode> {
    let code = view.finish(app.settings.quiet)?;
    if matches!(name, JobName::Repeatable(_)) {
        JobName::acknowledge(services, &chosen.job_id).await;
    }
    Ok(code)
}

impl Work {
    /// Reads until there is something for services to do; `None` if rows come from them. The input is not empty.
    pub(super) async fn look_ahead(&self, app: &App) -> Result<Option<Rows>> {
        let Some(parts) = self.source.read() else { return Ok(None) };
        let rows = app.interruptible(Rows::look_ahead(parts)).await?;
        if rows.are_none() {
            bail!("the input holds no documents; give a directory with .txt or .md files, a text, or a .jsonl");
        }
        Ok(Some(rows))
    }

    /// Starts services, with the rows read so far.
    pub(super) async fn begin(&self, app: &App, purpose: Purpose, rows: Option<Rows>) -> Result<Begun> {
        let services = app.services(purpose.needs()).await?;
        if let Some(rows) = rows {
            return Ok(Begun { services, rows });
        }
        let parts = self.source.read_with(app, &services);
        match app.interruptible(Rows::look_ahead(parts)).await {
            Ok(rows) if !rows.are_none() => Ok(Begun { services, rows }),
            nothing => {
                services.stop().await;
                nothing?;
                bail!("no stored document meets the conditions; `e2llm docs list` shows what there is")
            }
        }
    }

    /// Runs or plans the job, going on with an earlier one where there is one.
    pub(super) async fn carry_out(
        &self,
        app: &App,
        begun: Begun,
        purpose: Purpose,
        audience: &mut impl Audience,
    ) -> Result<(JobName, Chosen)> {
        let Begun { services, rows } = begun;
        let spec = self.spec(app, &services).await?;
        let name = self.name(purpose, &spec, &rows);
        let mut chosen = app.interruptible(name.choose(&services)).await??;
        note_earlier(app, &chosen);
        // Under the user's own name a finished job is printed, whatever its input holds by now.
        let is_done = chosen.has_finished() && matches!(name, JobName::Given(_));
        let rows = if is_done { Rows::none() } else { rows };
        let mut result = purpose.attempt(app, &services, &spec, rows, &chosen, audience).await;
        if let Err(error) = &result
            && matches!(error.downcast_ref(), Some(Taken::OtherJob(_)))
        {
            let rows = self.rows_of_other_input(app, &services, &name, &chosen, error).await?;
            chosen = name.anew();
            result = purpose.attempt(app, &services, &spec, rows, &chosen, audience).await;
        }
        match result {
            Ok(()) => Ok((name, chosen)),
            Err(error) if error.is::<Interrupted>() => Err(self.how_to_go_on(purpose, &chosen.job_id).into()),
            Err(error) => Err(error),
        }
    }

    /// The rows once more, for a new job: those of the earlier one are no longer what the input holds.
    async fn rows_of_other_input(
        &self,
        app: &App,
        services: &Services,
        name: &JobName,
        chosen: &Chosen,
        taken: &anyhow::Error,
    ) -> Result<Rows> {
        if matches!(name, JobName::Given(_)) {
            bail!("{taken}: the command or its input is not the same as then; give another --job")
        }
        let job = &chosen.job_id;
        JobName::give_up(services, chosen).await;
        if !self.source.is_lasting() {
            bail!(
                "the input is not that of job {job}, which was interrupted and is given up now; \
                 run the command again to start anew, for standard input cannot be read twice"
            );
        }
        if !app.settings.quiet {
            warn_line(&format!("the input has changed since job {job} was interrupted: starting a new job"));
        }
        app.interruptible(Rows::look_ahead(self.source.read_with(app, services))).await
    }

    /// All of the spec but the job's name.
    async fn spec(&self, app: &App, services: &Services) -> Result<JobSpec> {
        let spec = JobSpec { kind: self.kind.into(), ..self.spec.clone() };
        self.job.options.apply_to(common_spec(app, services, spec).await?)
    }

    fn name(&self, purpose: Purpose, spec: &JobSpec, rows: &Rows) -> JobName {
        if let Some(name) = &self.job.job {
            return JobName::Given(name.clone());
        }
        // What has no name of its own is recognised by its beginning.
        let beginning = if self.source.is_lasting() { String::new() } else { rows.beginning().to_string() };
        let typed = format!("{}{beginning}", self.typed);
        match purpose {
            Purpose::Run => JobName::Repeatable(JobName::prefix("run", spec, &typed)),
            Purpose::Submit => JobName::Submitted(JobName::prefix("submit", spec, &typed)),
        }
    }

    fn how_to_go_on(&self, purpose: Purpose, job_id: &str) -> Interrupted {
        let input = if self.source.is_lasting() { "" } else { " on the same input" };
        let mut hint = format!("run the same command{input} again to go on, what is done is not done again");
        let results = match self.kind {
            JobKind::Ask => "answers",
            JobKind::Summarize => "summaries",
            JobKind::Encode | JobKind::Train | JobKind::Unspecified => "",
        };
        if purpose == Purpose::Run && !results.is_empty() {
            hint += &format!("; the {results} so far: e2llm jobs result {job_id}");
        }
        Interrupted { hint: Some(hint) }
    }
}

impl Purpose {
    /// Planning needs no models.
    fn needs(self) -> Needs {
        match self {
            Purpose::Run => Needs::Models,
            Purpose::Submit => Needs::Records,
        }
    }

    async fn attempt(
        self,
        app: &App,
        services: &Services,
        spec: &JobSpec,
        rows: Rows,
        chosen: &Chosen,
        audience: &mut impl Audience,
    ) -> Result<()> {
        match self {
            Purpose::Run => job::run(services, spec.clone(), rows, chosen, audience, &app.shutdown).await,
            Purpose::Submit => {
                job::submit(services, spec.clone(), rows, chosen, audience, &app.shutdown).await.map(drop)
            }
        }
    }
}

/// Collection and bundle of a job. Services of this process work with one bundle; those of a server choose.
pub(crate) async fn common_spec(app: &App, services: &Services, spec: JobSpec) -> Result<JobSpec> {
    let fingerprint = match services.fingerprint() {
        Some(fingerprint) => fingerprint.to_owned(),
        None if services.are_own() => app.interruptible(local::prepare(&app.settings)).await??.fingerprint.clone(),
        None => String::new(),
    };
    Ok(JobSpec { collection: app.settings.collection.to_string(), fingerprint, ..spec })
}

/// Says that an earlier job goes on.
fn note_earlier(app: &App, chosen: &Chosen) {
    let Some(JobStatus { job_id, state, rows, rows_done, .. }) = &chosen.earlier else { return };
    if app.settings.quiet {
        return;
    }
    let rows = count(*rows);
    warn_line(&match state.as_str() {
        "succeeded" => format!("job {job_id} has finished: printing the results of its {rows} rows"),
        _ => format!("going on with job {job_id}: {} of {rows} rows are done", count(*rows_done)),
    });
}
