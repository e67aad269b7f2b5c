//! `--dry-run` of bulk commands: the inputs are read and checked as they would be, and what there is to do is counted.
//! Nothing is written.

mod count;
mod rates;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use e2llm_api::v1::{EmbedRequest, JobKind, JobStatus, ListJobsRequest, RowResult};
use e2llm_model::TextTokenizer;
use e2llm_model::chunk::Chunker;
use e2llm_runtime::{RetryPolicy, retry};
use serde_json::{Value, json};

use super::bulk::Work;
use super::source::Source;
use crate::app::App;
use crate::bundle::{self, LocalBundle};
use crate::failure::{SOME_FAILED, of_call, warn_line};
use crate::local::{self, Needs, Services};
use crate::output;
use crate::render::{bytes, count as number, duration, row_error_text};
pub(super) use count::{Count, Counter, Measure, Verdict};
use rates::{Estimate, Rates};

/// Error lines on standard error; the counts tell of all.
const ERRORS_SHOWN: u64 = 20;

/// Prints what `work` would do.
pub(super) async fn run(app: &App, work: &Work) -> Result<ExitCode> {
    let prepared = Prepared::start(app).await?;
    let result = app.interruptible(prepared.report(app, work)).await;
    prepared.stop().await;
    result?
}

/// What counting needs: the bundle, and what is stored so far.
pub(super) struct Prepared {
    bundle: Arc<LocalBundle>,
    /// `None` where there is no store yet.
    services: Option<Services>,
}

impl Prepared {
    pub(super) async fn start(app: &App) -> Result<Self> {
        let bundle = app.interruptible(local::prepare(&app.settings)).await??;
        // Opening a store makes one.
        let is_there = app.settings.server.is_some() || may_exist(&app.settings.store);
        let services = if is_there { Some(app.services(Needs::Records).await?) } else { None };
        let prepared = Self { bundle, services };
        match app.interruptible(prepared.check_server()).await {
            Ok(Ok(())) => Ok(prepared),
            Ok(Err(error)) | Err(error) => {
                prepared.stop().await;
                Err(error)
            }
        }
    }

    pub(super) fn services(&self) -> Option<&Services> {
        self.services.as_ref()
    }

    pub(super) async fn stop(self) {
        if let Some(services) = self.services {
            services.stop().await;
        }
    }

    /// The server's encoder must cut texts as this process does.
    async fn check_server(&self) -> Result<()> {
        let Some(services) = self.services.as_ref().filter(|services| !services.are_own()) else { return Ok(()) };
        let embed = async || services.encoder().embed(EmbedRequest::default()).await;
        let answer = retry(&RetryPolicy::default(), "Encoder.Embed", services.address(), embed).await;
        let theirs = answer.map_err(of_call)?.into_inner().fingerprint;
        if theirs != self.bundle.fingerprint {
            let ours = &self.bundle.fingerprint;
            bail!("the server works with bundle {theirs}, this command with {ours}; give the server's with --bundle");
        }
        Ok(())
    }

    pub(super) fn counter(&self, app: &App) -> Result<Counter<'_>> {
        let config = &self.bundle.bundle.config;
        let (_, _, tokenizer) = bundle::encoder_files(&self.bundle.encoder)?;
        let chunker = Chunker::new(Arc::new(TextTokenizer::from_file(tokenizer)?), config.chunk_tokens)?;
        Ok(Counter {
            services: self.services.as_ref(),
            collection: app.settings.collection.to_string(),
            fingerprint: self.bundle.fingerprint.clone(),
            measure: Arc::new(Measure { chunker, adapter: config.adapter.clone() }),
        })
    }

    async fn report(&self, app: &App, work: &Work) -> Result<ExitCode> {
        let parts = match (&self.services, work.source.read()) {
            (_, Some(parts)) => parts,
            (Some(services), None) => work.source.read_with(app, services),
            (None, None) => bail!("there is no store at {} yet, so no stored document", app.settings.store),
        };
        let mut errors = Errors { json: app.settings.json, shown: 0 };
        let count = self.counter(app)?.count(parts, |id, verdict| errors.tell(id, verdict)).await?;
        if count.rows == 0 && matches!(work.source, Source::Where(_)) {
            bail!("no stored document meets the conditions; `e2llm docs list` shows what there is");
        }
        if count.rows == 0 {
            bail!("the input holds no documents; give a directory with .txt or .md files, a text, or a .jsonl");
        }
        let estimate = self.estimate(work, &count).await?;
        output::print_line(&if app.settings.json {
            to_json(work.kind, &count, estimate).to_string()
        } else {
            to_text(work.kind, &count, estimate)
        })?;
        Ok(if count.failed() == 0 { ExitCode::SUCCESS } else { SOME_FAILED.into() })
    }

    /// Time by the rates of finished jobs, and how many those are.
    async fn estimate(&self, work: &Work, count: &Count) -> Result<Option<(Estimate, u64)>> {
        let Some(services) = &self.services else { return Ok(None) };
        let jobs = jobs(services).await?;
        let rates = Rates::of(&jobs, work.kind, &self.bundle.fingerprint, !services.are_own());
        let rows = if work.kind == JobKind::Encode { 0 } else { count.rows - count.failed() };
        let max_tokens = work.spec.generate.as_ref().map_or(0, |generate| generate.max_tokens);
        let estimate = rates.estimate(count.size.tokens, rows, max_tokens);
        Ok(estimate.map(|estimate| (estimate, rates.jobs)))
    }
}

async fn jobs(services: &Services) -> Result<Vec<JobStatus>> {
    let list = async || services.coordinator().list_jobs(ListJobsRequest::default()).await;
    let listed = retry(&RetryPolicy::default(), "Coordinator.ListJobs", services.address(), list).await;
    Ok(listed.map_err(of_call)?.into_inner().jobs)
}

/// Whether there may be a store: of remote ones nothing is known before they are opened.
fn may_exist(store: &str) -> bool {
    let path = store.strip_prefix("file://").unwrap_or(store);
    path.contains("://") || Path::new(path).join("store.json").exists()
}

/// Tells of rows that fail.
struct Errors {
    json: bool,
    shown: u64,
}

impl Errors {
    fn tell(&mut self, id: &str, verdict: &Verdict) -> Result<()> {
        let Verdict::Failed(error) = verdict else { return Ok(()) };
        self.shown += 1;
        if self.json {
            let error = json!({"code": error.code, "message": error.message});
            return output::print_line(&json!({"id": id, "error": error}).to_string());
        }
        match self.shown {
            1..=ERRORS_SHOWN => {
                let row = RowResult { id: id.to_owned(), error: Some(error.clone()), ..Default::default() };
                warn_line(&row_error_text(&row));
            }
            shown if shown == ERRORS_SHOWN + 1 => warn_line("further errors are only counted"),
            _ => {}
        }
        Ok(())
    }
}

fn to_json(kind: JobKind, count: &Count, estimate: Option<(Estimate, u64)>) -> Value {
    let size = &count.size;
    let estimate = estimate.map(|(Estimate { encode_s, decode_s }, jobs)| {
        json!({"encode_s": encode_s, "decode_s": decode_s, "measured_jobs": jobs})
    });
    json!({
        "dry_run": true, "kind": super::jobs::kind_name(kind), "rows": count.rows,
        "new": count.new, "changed": count.changed, "metadata_changed": count.annotated, "unchanged": count.unchanged,
        "stored": count.stored, "failed": count.failed(), "duplicates": duplicates(count), "errors": count.errors,
        "text_bytes": size.text_bytes, "source_tokens": size.tokens, "chunks": size.chunks,
        "soft_tokens": size.soft_tokens, "soft_prompt_bytes": size.prompt_bytes,
        "stored_text_bytes_estimate": size.compressed_bytes, "estimate": estimate,
    })
}

fn duplicates(count: &Count) -> u64 {
    count.errors.get(e2llm_api::ErrorCode::DuplicateId.as_str()).copied().unwrap_or(0)
}

fn to_text(kind: JobKind, count: &Count, estimate: Option<(Estimate, u64)>) -> String {
    let size = &count.size;
    let mut text = format!(
        "{} rows: {} new, {} changed, {} unchanged",
        number(count.rows),
        number(count.new),
        number(count.changed),
        number(count.unchanged)
    );
    for (rows, name) in [(count.annotated, "with other metadata"), (count.stored, "of stored documents")] {
        if rows > 0 {
            text += &format!(", {} {name}", number(rows));
        }
    }
    text += &format!(", {} failed ({} duplicates)\n", number(count.failed()), number(duplicates(count)));
    text += &format!(
        "to encode: {} of text, {} tokens in {} chunks\n",
        bytes(size.text_bytes),
        number(size.tokens),
        number(size.chunks)
    );
    text += &format!(
        "to store: {} of soft prompts, and of texts an estimated {}\n",
        bytes(size.prompt_bytes),
        bytes(size.compressed_bytes)
    );
    text + &time(kind, estimate)
}

fn time(kind: JobKind, estimate: Option<(Estimate, u64)>) -> String {
    let Some((Estimate { encode_s, decode_s }, jobs)) = estimate else {
        return "time: not measured yet; a job of this kind and bundle that has finished in this store gives a rate"
            .into();
    };
    let seconds = |seconds: f64| duration(seconds.ceil() as u64);
    let decode = match kind {
        JobKind::Encode | JobKind::Train | JobKind::Unspecified => String::new(),
        JobKind::Summarize | JobKind::Ask => format!(" and {} of decoding", seconds(decode_s)),
    };
    let plural = if jobs == 1 { "" } else { "s" };
    let encode = seconds(encode_s);
    format!("time: about {encode} of encoding{decode}, at the pace of {jobs} finished job{plural}")
}

#[cfg(test)]
mod tests;
