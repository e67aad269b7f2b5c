//! `e2llm eval`: several systems answer tasks with known answers, as jobs of the services.
//!
//! The documents of the tasks are encoded into a collection of their own, where those that are there already are skipped; then
//! every task is asked of every system. The asking is named by what it asks of which bundle: the same command goes on where it
//! was interrupted, and once it is done prints the same answers.

mod tasks;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use e2llm_api::MAX_PIECE_BYTES;
use e2llm_api::v1::{DocRecord, GenerateOptions, JobKind, JobSpec, Row, RowResult};
use e2llm_data::LineWriter;
use e2llm_eval::{Outcome, Positions, Report, System};
use e2llm_model::prompt;

use crate::app::App;
use crate::commands::bulk::common_spec;
use crate::failure::warn_line;
use crate::input::Part;
use crate::job::{self, Audience, JobName, Rows};
use crate::local::{Needs, Services};
use crate::output::print_line;
use crate::progress::Progress;
use tasks::{Sampled, Tasks};

/// Where the documents of evaluations are kept.
const COLLECTION: &str = "eval";

/// Flags of `e2llm eval`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// Tasks: JSON Lines of {"id", "task", "context", "prompt", "answer" or "answers"}, as `data synthesize` and `data
    /// prepare` make them
    #[arg(required = true, value_name = "FILE")]
    tasks: Vec<PathBuf>,
    /// Who answers: soft tokens alone (soft), with raw text of the nearest chunks (expand), the same beside another
    /// document's soft tokens (other), raw text of the nearest chunks in as many positions (rag), the opening (opening), the
    /// text cut to the window (full), without a document (none)
    #[arg(
        long,
        value_name = "SYSTEM",
        value_delimiter = ',',
        default_value = "soft,expand,other,rag,opening,full,none"
    )]
    systems: Vec<System>,
    /// At most so many tasks of each kind and length, the first of the files
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// Most decoder positions of a document, the full text apart
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    max_positions: u32,
    /// Chunks that expansion reads as raw text
    #[arg(long, value_name = "M", default_value_t = 6)]
    expand: u32,
    /// Most decoder positions for those
    #[arg(long, value_name = "N", default_value_t = 768)]
    expand_positions: u32,
    /// File for every answer with its score: JSON Lines
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Runs the command to its table.
pub(crate) async fn run(app: &App, args: &EvalArgs) -> Result<()> {
    let tasks = Tasks::read(&args.tasks, args.samples)?;
    let services = app.services(Needs::Models).await?;
    let answered = answer(app, args, &services, &tasks).await;
    services.stop().await;
    let outcomes = answered?;
    if let Some(path) = &args.output {
        let mut writer = LineWriter::create(path)?;
        outcomes.iter().try_for_each(|outcome| writer.write(outcome))?;
        writer.commit()?;
    }
    let report = Report::new(&outcomes);
    match app.settings.json {
        true => report.rows.iter().try_for_each(|row| print_line(&serde_json::to_string(row)?)),
        false => print_line(&report.markdown()),
    }
}

async fn answer(app: &App, args: &EvalArgs, services: &Services, tasks: &Tasks) -> Result<Vec<Outcome>> {
    let encoded = carry_out(app, services, JobKind::Encode, documents(tasks), "").await?;
    let records: BTreeMap<String, DocRecord> =
        encoded.into_iter().filter_map(|row| Some((row.id, row.record?))).collect();
    let rows = questions(args, tasks, &records)?;
    let kinds: Vec<(&Sampled, System)> =
        tasks.sampled.iter().flat_map(|task| args.systems.iter().map(move |system| (task, *system))).collect();
    // Another bundle is another evaluation, also behind a server, whose bundle only its records name.
    let bundle = records.values().next().map_or(String::new(), |record| record.fingerprint.clone());
    let answers = carry_out(app, services, JobKind::Ask, rows, &bundle).await?;
    let outcome = |((task, system), row): ((&Sampled, System), RowResult)| {
        Outcome::new(&task.line, system.name(), row.text, &row.usage.unwrap_or_default())
    };
    Ok(kinds.into_iter().zip(answers).map(outcome).collect())
}

/// The tasks' documents, each once.
fn documents(tasks: &Tasks) -> Vec<Part> {
    let mut parts = Vec::new();
    for (id, text) in &tasks.documents {
        parts.extend(text.as_bytes().chunks(MAX_PIECE_BYTES).map(|piece| Part::Piece(piece.to_vec())));
        parts.push(Part::Document { id: id.clone(), bytes: text.len() as u64, metadata: String::new() });
    }
    parts
}

/// Every task for every system, in that order.
fn questions(args: &EvalArgs, tasks: &Tasks, records: &BTreeMap<String, DocRecord>) -> Result<Vec<Part>> {
    let generate = GenerateOptions { max_tokens: args.max_tokens, ..GenerateOptions::default() };
    let mut parts = Vec::new();
    for task in &tasks.sampled {
        let Some(record) = records.get(&task.doc_id) else {
            bail!("the document of task {:?} was not encoded", task.line.id)
        };
        let positions = Positions {
            most: args.max_positions,
            expand_chunks: args.expand,
            expand: args.expand_positions,
            soft: record.soft_tokens,
        };
        for system in &args.systems {
            parts.push(Part::Question(Box::new(Row {
                id: format!("{}/{system}", task.line.id),
                doc_ids: vec![task.doc_id.clone()],
                question: question(&task.line),
                instruction: task.line.prompt.clone(),
                context: Some(system.context(positions, &task.other)),
                generate: Some(generate.clone()),
                ..Row::default()
            })));
        }
    }
    Ok(parts)
}

/// What chunks are chosen by: the question without the words around it; nothing where the whole text is wanted.
fn question(task: &e2llm_data::TaskLine) -> String {
    if task.asks_for_text() {
        return String::new();
    }
    task.prompt.strip_prefix(&prompt::question("")).unwrap_or(&task.prompt).to_owned()
}

/// Runs one job to its end; a row that failed ends the evaluation. Answers are asked for once; documents are looked at every
/// time, since they may have been deleted.
async fn carry_out(
    app: &App,
    services: &Services,
    kind: JobKind,
    parts: Vec<Part>,
    bundle: &str,
) -> Result<Vec<RowResult>> {
    let spec = JobSpec { kind: kind.into(), ..JobSpec::default() };
    let spec = JobSpec { collection: COLLECTION.to_owned(), ..common_spec(app, services, spec).await? };
    let rows = Rows::made(parts);
    let digest = blake3::hash(format!("{bundle} {} {}", spec.fingerprint, rows.beginning()).as_bytes()).to_hex();
    let (label, name) = match kind {
        JobKind::Encode => ("encode", JobName::Repeatable(format!("eval-encode-{}-", &digest[..16]))),
        _ => ("ask", JobName::Given(format!("eval-ask-{}", &digest[..16]))),
    };
    let chosen = app.interruptible(name.choose(services)).await??;
    let is_done = chosen.has_finished() && kind != JobKind::Encode;
    let rows = if is_done { Rows::none() } else { rows };
    let mut finished = Finished { rows: Vec::new(), progress: Progress::start(label, app.settings.quiet) };
    job::run(services, spec, rows, &chosen, &mut finished, &app.shutdown).await?;
    if kind == JobKind::Encode {
        JobName::acknowledge(services, &chosen.job_id).await;
    }
    let failed = finished.rows.iter().filter_map(|row| Some((row, row.error.as_ref()?)));
    let count = failed.inspect(|(row, error)| warn_line(&format!("{}: {}", row.id, error.message))).count();
    if count > 0 {
        let (rows, job) = (finished.rows.len(), &chosen.job_id);
        bail!(
            "{count} of {rows} rows failed, see above; to try them again: e2llm jobs delete {job}, then this command"
        );
    }
    Ok(finished.rows)
}

/// Keeps the rows of a job.
struct Finished {
    rows: Vec<RowResult>,
    progress: Progress,
}

impl Audience for Finished {
    fn row(&mut self, row: &RowResult) -> Result<()> {
        self.rows.push(row.clone());
        Ok(())
    }

    fn rows(&self) -> u64 {
        self.rows.len() as u64
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }
}
