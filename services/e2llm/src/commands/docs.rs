//! `e2llm docs`: what is stored of documents.

mod delete;

use std::process::ExitCode;

use anyhow::{Context, Result};
use e2llm_api::v1::{DocKey, DocRecord, EmbedRequest, GetRequest, ListRequest, SearchHit, SearchRequest};
use e2llm_api::{DocId, ErrorCode};
use e2llm_runtime::{RetryPolicy, retry};
use serde_json::json;

use crate::app::App;
use crate::cli::DocsCommand;
use crate::failure::{SOME_FAILED, of_call, warn_line};
use crate::local::{Needs, Services};
use crate::output::print_line;
use crate::render::{self, bytes, clean, count};

/// Records asked for at once.
const PAGE: u32 = 500;
/// Columns of a printed summary.
const WIDTH: usize = 100;

pub(crate) async fn run(app: &App, command: DocsCommand) -> Result<ExitCode> {
    let services = app.services(needs(&command)).await?;
    let docs = Docs { app, services: &services, policy: RetryPolicy::default() };
    let failures = match command {
        DocsCommand::List { prefix, conditions, summaries, limit } => {
            let collection = docs.collection();
            let first =
                ListRequest { collection, id_prefix: prefix, r#where: conditions, summaries, ..Default::default() };
            docs.list(first, limit.unwrap_or(u64::MAX)).await
        }
        DocsCommand::Show { ids } => docs.show(&ids).await,
        DocsCommand::Delete(args) => delete::run(&docs, &args).await,
        DocsCommand::Search { text, limit } => docs.search(text, limit).await,
    };
    services.stop().await;
    Ok(if failures? == 0 { ExitCode::SUCCESS } else { SOME_FAILED.into() })
}

/// Only a search has to embed a text.
fn needs(command: &DocsCommand) -> Needs {
    if matches!(command, DocsCommand::Search { .. }) { Needs::Models } else { Needs::Records }
}

/// The commands; each returns how many documents it failed for.
struct Docs<'a> {
    app: &'a App,
    services: &'a Services,
    policy: RetryPolicy,
}

impl Docs<'_> {
    /// Prints up to `limit` records that `request` asks for, page by page; a page may be empty and have a next one.
    async fn list(&self, mut request: ListRequest, limit: u64) -> Result<usize> {
        let mut left = limit;
        while left > 0 {
            request.page_size = u32::try_from(left).unwrap_or(PAGE).min(PAGE);
            let call = async || self.services.index().list(request.clone()).await;
            let page =
                retry(&self.policy, "Index.List", self.services.address(), call).await.map_err(of_call)?.into_inner();
            left = left.saturating_sub(page.records.len() as u64);
            page.records.iter().try_for_each(|record| self.print_record(record))?;
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        if left == limit && limit > 0 {
            let which = match (request.id_prefix.is_empty(), request.r#where.is_empty()) {
                (true, true) => "",
                (false, true) => " with such ids",
                (_, false) => " like that",
            };
            self.note(&format!("no documents{which} in collection {}", self.app.settings.collection));
        }
        Ok(0)
    }

    async fn show(&self, ids: &[DocId]) -> Result<usize> {
        let mut unknown = 0;
        for id in ids {
            let key = DocKey { collection: self.collection(), doc_id: id.to_string(), ..Default::default() };
            let request = GetRequest { key: Some(key) };
            let call = async || self.services.index().get(request.clone()).await;
            match retry(&self.policy, "Index.Get", self.services.address(), call).await {
                Ok(response) => {
                    let record = response.into_inner().record.context("the index sent an empty record")?;
                    let json = self.app.settings.json;
                    print_line(&if json { render::full_record_json(&record).to_string() } else { block(&record) })?;
                }
                Err(error) if error.code() == ErrorCode::NotFound => {
                    self.fail(id.as_str())?;
                    unknown += 1;
                }
                Err(error) => return Err(of_call(error)),
            }
        }
        Ok(unknown)
    }

    async fn search(&self, text: String, limit: u32) -> Result<usize> {
        let address = self.services.address();
        let embed = EmbedRequest { texts: vec![text] };
        let call = async || self.services.encoder().embed(embed.clone()).await;
        let embedded = retry(&self.policy, "Encoder.Embed", address, call).await.map_err(of_call)?.into_inner();
        let vector = embedded.vectors.into_iter().next().context("the encoder sent no vector")?.values;
        let fingerprint = embedded.fingerprint;
        let request = SearchRequest { collection: self.collection(), fingerprint, vector, limit };
        let call = async || self.services.index().search(request.clone()).await;
        let found = retry(&self.policy, "Index.Search", address, call).await.map_err(of_call)?.into_inner();
        found.hits.iter().try_for_each(|hit| self.print_hit(hit))?;
        if found.hits.is_empty() {
            self.note(&format!("no documents of this bundle in collection {}", self.app.settings.collection));
        }
        Ok(0)
    }

    /// Says why there is no output.
    fn note(&self, line: &str) {
        if !self.app.settings.quiet {
            warn_line(line);
        }
    }

    fn collection(&self) -> String {
        self.app.settings.collection.to_string()
    }

    fn print_record(&self, record: &DocRecord) -> Result<()> {
        if self.app.settings.json {
            return print_line(&serde_json::Value::Object(render::record_json(record)).to_string());
        }
        let what = render::record_text(record);
        print_line(&format!("{}: {what}{}", clean(&record.doc_id), facts(record)))
    }

    fn print_hit(&self, hit: &SearchHit) -> Result<()> {
        let id = hit.record.as_ref().map_or("", |record| record.doc_id.as_str());
        let json = self.app.settings.json;
        print_line(&if json {
            json!({"id": id, "score": hit.score}).to_string()
        } else {
            format!("{:.3}  {}", hit.score, clean(id))
        })
    }

    /// Reports an id that nothing is stored for.
    fn fail(&self, id: &str) -> Result<()> {
        let collection = &self.app.settings.collection;
        let message = format!("no document {id:?} in collection {collection}; `e2llm docs list` shows what there is");
        if self.app.settings.json {
            let code = ErrorCode::NotFound.as_str();
            return print_line(&json!({"id": id, "error": {"code": code, "message": message}}).to_string());
        }
        warn_line(&format!("error: {message}"));
        Ok(())
    }
}

fn block(record: &DocRecord) -> String {
    let stored = if record.text_stored { "kept" } else { "not kept" };
    let blob_bytes: u64 = record.segments.iter().map(|segment| segment.bytes).sum();
    format!(
        "{}\n  {}\n  text {}, {stored}; soft prompt {} in {} segments, ratio {}×\n  version {}, bundle {}{}",
        clean(&record.doc_id),
        render::record_text(record),
        bytes(record.text_bytes),
        bytes(blob_bytes),
        count(record.segments.len() as u64),
        record.ratio,
        record.version,
        clean(&record.fingerprint),
        facts(record),
    )
}

/// Metadata and summary, each on lines of its own below the document.
fn facts(record: &DocRecord) -> String {
    let mut text = String::new();
    if !record.metadata.is_empty() {
        text.push_str(&format!("\n  metadata {}", clean(&record.metadata)));
    }
    if let Some(summary) = &record.summary {
        let words = render::wrap(&clean(&summary.text), WIDTH, "    ");
        text.push_str(&format!("\n  summary\n{}", words.trim_end()));
    }
    text
}

#[cfg(test)]
mod tests {
    use e2llm_api::v1::Summary;

    use super::*;

    #[test]
    fn metadata_and_summary_stand_below_their_document() {
        let summary = Some(Summary { text: "It has\u{1b} three piers.".into(), ..Default::default() });
        let record = DocRecord { metadata: "{\"year\":1874}".into(), summary, ..Default::default() };
        assert_eq!(facts(&record), "\n  metadata {\"year\":1874}\n  summary\n    It has three piers.");
        assert_eq!(facts(&DocRecord::default()), "");
        assert!(block(&record).ends_with("three piers."));
    }
}
