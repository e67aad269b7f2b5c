//! Encodes documents again whose soft prompts are lost, from their stored texts.

use std::collections::BTreeSet;

use anyhow::Result;
use e2llm_api::v1::{DocRecord, JobKind, JobSpec, ListRequest};
use e2llm_runtime::{RetryPolicy, retry};
use e2llm_store::BlobName;
use tokio::sync::mpsc;

use crate::app::App;
use crate::failure::{of_call, warn_line};
use crate::input::Part;
use crate::job::{self, Chosen, Rows};
use crate::local::{Needs, Services};
use crate::output::Output;
use crate::view::View;

/// Records asked for at once.
const PAGE: u32 = 500;

/// Encodes again the documents of this collection that need any of `damaged`; returns those of the blobs
/// that are whole again.
pub(super) async fn documents_with(app: &App, damaged: &BTreeSet<BlobName>) -> Result<BTreeSet<BlobName>> {
    let services = app.services(Needs::Models).await?;
    let result = run(app, &services, damaged).await;
    services.stop().await;
    result
}

async fn run(app: &App, services: &Services, damaged: &BTreeSet<BlobName>) -> Result<BTreeSet<BlobName>> {
    let records = affected(app, services, damaged).await?;
    let covered: BTreeSet<BlobName> = records.iter().flat_map(blobs).filter(|blob| damaged.contains(blob)).collect();
    if covered.len() < damaged.len() {
        let others = damaged.len() - covered.len();
        warn_line(&format!("{others} damaged soft prompts belong to other collections; run doctor with --collection"));
    }
    if records.is_empty() {
        return Ok(covered);
    }
    let (sender, rest) = mpsc::channel(records.len());
    for record in &records {
        let part = Part::Stored { id: record.doc_id.clone(), text_hash: record.text_hash.clone() };
        // There is room for all.
        let _ = sender.try_send(part);
    }
    drop(sender);
    let mut view = View::new(JobKind::Encode, Output::Silent, app.settings.quiet);
    let spec =
        JobSpec { kind: JobKind::Encode.into(), collection: app.settings.collection.to_string(), ..Default::default() };
    job::run(services, spec, Rows::look_ahead(rest).await, &Chosen::fresh(), &mut view, &app.shutdown).await?;
    let succeeded = view.tally().failed == 0;
    Ok(if succeeded { covered } else { BTreeSet::new() })
}

async fn affected(app: &App, services: &Services, damaged: &BTreeSet<BlobName>) -> Result<Vec<DocRecord>> {
    let mut records = Vec::new();
    let mut page_token = String::new();
    loop {
        let collection = app.settings.collection.to_string();
        let request = ListRequest { collection, page_size: PAGE, page_token, ..Default::default() };
        let call = async || services.index().list(request.clone()).await;
        let page =
            retry(&RetryPolicy::default(), "Index.List", services.address(), call).await.map_err(of_call)?.into_inner();
        records.extend(page.records.into_iter().filter(|record| blobs(record).any(|blob| damaged.contains(&blob))));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(records);
        }
    }
}

fn blobs(record: &DocRecord) -> impl Iterator<Item = BlobName> {
    record.segments.iter().filter_map(|segment| BlobName::new(&segment.input_key, &segment.content_hash).ok())
}
