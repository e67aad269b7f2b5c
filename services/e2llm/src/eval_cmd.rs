//! `e2llm eval`: several systems answer tasks with known answers, as jobs of the services.
//!
//! The documents of the tasks are encoded into a collection of their own, where those that are there already are skipped; then
//! every task is asked of every system. The asking is named by what it asks of which bundle: the same command goes on where it
//! was interrupted, and once it is done prints the same answers.

mod output;
mod suites;
mod tasks;

use std::collections::BTreeMap;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use e2llm_api::MAX_PIECE_BYTES;
use e2llm_api::v1::{DocRecord, GenerateOptions, JobKind, JobSpec, Row, RowResult};
use e2llm_eval::{Answer, Asked, Documents, Outcome, Positions, System, letters};
use e2llm_model::{Defaults, prompt};
use prost::Message;

use crate::app::App;
use crate::commands::bulk::common_spec;
use crate::failure::warn_line;
use crate::input::Part;
use crate::job::{self, Audience, JobName, Rows};
use crate::local::{Needs, Services};
use crate::progress::Progress;
use output::OutputArgs;
use suites::{Suite, SuiteArgs};
use tasks::{Sampled, Tasks};

/// Where the documents of evaluations are kept.
const COLLECTION: &str = "eval";
/// Most tokens of an answer where neither the command nor the task says.
const ANSWER_TOKENS: u32 = 64;
/// The same for a text about the document as a whole.
const TEXT_TOKENS: u32 = 256;

/// Flags of `e2llm eval`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// ruler; abstracts, longbench-v2, quality, qmsum, govreport, triviaqa, narrativeqa, squad, hotpotqa (with --input); or
    /// files of tasks: JSON Lines of {"id", "task", "context", "prompt", "answer" or "answers"}, as `data synthesize` and
    /// `data prepare` make them
    #[arg(required = true, value_name = "SUITE|FILE")]
    suites: Vec<Suite>,
    #[command(flatten)]
    from: SuiteArgs,
    /// Who answers: soft tokens alone (soft), with raw text of the nearest chunks (expand), with raw text of the chunks that
    /// hold the evidence (evidence), of the nearest chunks beside another document's soft tokens (other), raw text of the
    /// nearest chunks alone (rag), the same until as many positions are used up (rag-filled), the opening (opening), the text
    /// cut to the window (full), without a document (none)
    #[arg(
        long,
        value_name = "SYSTEM",
        value_delimiter = ',',
        default_value = "soft,expand,other,rag,opening,full,none"
    )]
    systems: Vec<System>,
    /// At most so many tasks of each kind and length, drawn at random of files; of RULER 5 where nothing is said
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    samples: Option<usize>,
    /// Most tokens of an answer [default: what the benchmark says, else 64, and 256 for summaries]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: Option<u32>,
    /// Most decoder positions of a document, the full text apart
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    max_positions: u32,
    /// Chunks that expansion reads as raw text [default: 12, and 24 for summaries]
    #[arg(long, value_name = "M")]
    expand: Option<u32>,
    /// Most decoder positions for those [default: 768, and 1536 for summaries]
    #[arg(long, value_name = "N")]
    expand_positions: Option<u32>,
    /// Most prompt windows of a summary from soft tokens, what does not fit them being left out; 0: all that are needed [default: the bundle's]
    #[arg(long, value_name = "N")]
    max_windows: Option<u32>,
    #[command(flatten)]
    to: OutputArgs,
}

/// What an evaluation gave.
struct Evaluated {
    bundle: String,
    outcomes: Vec<Outcome>,
    documents: Documents,
}

/// Runs the command to its table.
pub(crate) async fn run(app: &App, args: &EvalArgs) -> Result<()> {
    let earlier = args.to.earlier()?;
    let tasks = tokio::task::block_in_place(|| args.from.tasks(&args.suites, args.samples, &app.settings))?;
    let services = app.services(Needs::Models).await?;
    let evaluated = evaluate(app, args, &services, &tasks).await;
    services.stop().await;
    args.to.write(evaluated?, earlier, app.settings.json)
}

async fn evaluate(app: &App, args: &EvalArgs, services: &Services, tasks: &Tasks) -> Result<Evaluated> {
    let begun = Instant::now();
    let Done { rows: encoded, went_on } = carry_out(app, services, JobKind::Encode, documents(tasks), "").await?;
    // What an earlier run has encoded was not timed.
    let seconds = (!went_on).then(|| begun.elapsed().as_secs_f64());
    let documents = cost(tasks, &encoded, seconds);
    let records: BTreeMap<String, DocRecord> =
        encoded.into_iter().filter_map(|row| Some((row.id, row.record?))).collect();
    let rows = questions(args, tasks, &records)?;
    let prompts: Vec<String> = rows.iter().map(|row| hash(&Row { id: String::new(), ..row.clone() })).collect();
    // Another bundle is another evaluation, also behind a server, whose bundle only its records name.
    let bundle = records.values().next().map_or(String::new(), |record| record.fingerprint.clone());
    let parts = rows.into_iter().map(|row| Part::Question(Box::new(row))).collect();
    let answers = carry_out(app, services, JobKind::Ask, parts, &bundle).await?.rows;
    let asked = tasks.sampled.iter().flat_map(|task| args.systems.iter().map(move |system| (task, *system)));
    let outcome = |(((task, system), row), prompt): (((&Sampled, System), RowResult), String)| {
        let choices = row.scores.iter().map(|score| score.log_likelihood).collect();
        let answer = Answer { prediction: row.text, choices, usage: row.usage.unwrap_or_default(), prompt };
        let bytes = tasks.documents[&task.doc_id].len();
        let Sampled { suite, line, doc_id, length, .. } = task;
        let asked = Asked { suite, task: line, doc_id, bytes, length: *length };
        Outcome::new(asked, system.name(), answer)
    };
    Ok(Evaluated { outcomes: asked.zip(answers).zip(prompts).map(outcome).collect(), bundle, documents })
}

fn hash(row: &Row) -> String {
    blake3::hash(&row.encode_to_vec()).to_hex()[..16].to_owned()
}

/// What the documents took; `seconds` to encode those that were not there already.
fn cost(tasks: &Tasks, encoded: &[RowResult], seconds: Option<f64>) -> Documents {
    let mean = |sum: u64| sum as f64 / encoded.len().max(1) as f64;
    let segments = encoded.iter().filter_map(|row| row.record.as_ref()).flat_map(|record| &record.segments);
    let new = encoded.iter().filter(|row| !row.unchanged).count();
    Documents {
        documents: encoded.len(),
        text_bytes: mean(tasks.documents.values().map(|text| text.len() as u64).sum()),
        stored_bytes: mean(segments.map(|segment| segment.bytes).sum()),
        encode_seconds: seconds.filter(|_| new > 0).map(|seconds| seconds / new as f64),
    }
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
fn questions(args: &EvalArgs, tasks: &Tasks, records: &BTreeMap<String, DocRecord>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for task in &tasks.sampled {
        let Some(record) = records.get(&task.doc_id) else {
            bail!("the document of task {:?} was not encoded", task.line.id)
        };
        let (chunks, text) = expansion(&task.line);
        let positions = Positions {
            most: args.max_positions,
            expand_chunks: args.expand.unwrap_or(chunks),
            expand: args.expand_positions.unwrap_or(text),
            soft: record.soft_tokens,
            windows: args.max_windows,
        };
        let by_kind = if task.line.asks_for_text() { TEXT_TOKENS } else { ANSWER_TOKENS };
        let max_tokens = args.max_tokens.or(task.line.max_tokens).unwrap_or(by_kind);
        for system in &args.systems {
            rows.push(Row {
                id: format!("{}{}/{system}", task.suite, task.line.id),
                doc_ids: vec![task.doc_id.clone()],
                question: question(&task.line),
                instruction: task.line.prompt.clone(),
                context: Some(system.context(positions, &task.other, &task.line.evidence)),
                generate: Some(GenerateOptions { max_tokens, ..GenerateOptions::default() }),
                choices: letters(task.line.choices.len()).collect(),
                ..Row::default()
            });
        }
    }
    Ok(rows)
}

/// Chunks read as raw text, and their positions, as bundles have them that say nothing else.
fn expansion(task: &e2llm_data::TaskLine) -> (u32, u32) {
    let Defaults { expand_chunks, expand_positions, summary, .. } = Defaults::default();
    let (chunks, text) = match task.asks_for_text() {
        true => (summary.expand_chunks, summary.expand_positions),
        false => (expand_chunks, expand_positions),
    };
    (chunks as u32, text as u32)
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
async fn carry_out(app: &App, services: &Services, kind: JobKind, parts: Vec<Part>, bundle: &str) -> Result<Done> {
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
    Ok(Done { rows: finished.rows, went_on: chosen.earlier.is_some() })
}

/// What a job has done.
struct Done {
    rows: Vec<RowResult>,
    /// An earlier run had begun it.
    went_on: bool,
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
