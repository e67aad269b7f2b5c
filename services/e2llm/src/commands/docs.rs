//! `e2llm docs`: what is stored of documents.

use std::process::ExitCode;

use anyhow::{Context, Result};
use e2llm_api::v1::{
    DeleteRequest, DocKey, DocRecord, EmbedRequest, GetRequest, ListRequest, SearchHit, SearchRequest,
};
use e2llm_api::{DocId, ErrorCode};
use e2llm_runtime::{RetryPolicy, retry};
use serde_json::json;

use crate::app::App;
use crate::cli::DocsCommand;
use crate::failure::{of_call, warn_line};
use crate::local::{Needs, Services};
use crate::output::print_line;
use crate::render::{self, bytes, clean, count};

/// Records asked for at once.
const PAGE: u32 = 500;
/// Documents deleted at once.
const BATCH: usize = 500;

pub(crate) async fn run(app: &App, command: DocsCommand) -> Result<ExitCode> {
    let services = app.services(needs(&command)).await?;
    let docs = Docs { app, services: &services, policy: RetryPolicy::default() };
    let failures = match command {
        DocsCommand::List { prefix, limit } => docs.list(prefix, limit.unwrap_or(u64::MAX)).await,
        DocsCommand::Show { ids } => docs.show(&ids).await,
        DocsCommand::Delete { ids } => docs.delete(&ids).await,
        DocsCommand::Search { text, limit } => docs.search(text, limit).await,
    };
    services.stop().await;
    Ok(if failures? == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    async fn list(&self, id_prefix: String, limit: u64) -> Result<usize> {
        let mut left = limit;
        let mut page_token = String::new();
        let is_everything = id_prefix.is_empty();
        while left > 0 {
            let page_size = u32::try_from(left).unwrap_or(PAGE).min(PAGE);
            let id_prefix = id_prefix.clone();
            let request =
                ListRequest { collection: self.collection(), page_size, page_token, id_prefix, ..Default::default() };
            let call = async || self.services.index().list(request.clone()).await;
            let page =
                retry(&self.policy, "Index.List", self.services.address(), call).await.map_err(of_call)?.into_inner();
            left = left.saturating_sub(page.records.len() as u64);
            page.records.iter().try_for_each(|record| self.print_record(record))?;
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        if left == limit && limit > 0 {
            let which = if is_everything { "" } else { " with such ids" };
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

    async fn delete(&self, ids: &[DocId]) -> Result<usize> {
        let mut unknown = 0;
        for batch in ids.chunks(BATCH) {
            let doc_ids = batch.iter().map(DocId::to_string).collect();
            let request = DeleteRequest { collection: self.collection(), doc_ids };
            let call = async || self.services.index().delete(request.clone()).await;
            let done =
                retry(&self.policy, "Index.Delete", self.services.address(), call).await.map_err(of_call)?.into_inner();
            for id in &done.deleted {
                let json = self.app.settings.json;
                print_line(&if json {
                    json!({"id": id, "deleted": true}).to_string()
                } else {
                    format!("deleted {id}")
                })?;
            }
            done.unknown.iter().try_for_each(|id| self.fail(id))?;
            unknown += done.unknown.len();
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
        print_line(&format!("{}: {what}", clean(&record.doc_id)))
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
        "{}\n  {}\n  text {}, {stored}; soft prompt {} in {} segments, ratio {}×\n  version {}, bundle {}",
        clean(&record.doc_id),
        render::record_text(record),
        bytes(record.text_bytes),
        bytes(blob_bytes),
        count(record.segments.len() as u64),
        record.ratio,
        record.version,
        clean(&record.fingerprint),
    )
}
