//! Documents of the index as rows of a job, page by page.

use anyhow::Result;
use e2llm_api::v1::{DocRecord, ListRequest};
use e2llm_api::{ErrorCode, row_error};
use e2llm_runtime::{RetryPolicy, retry};
use tokio::sync::mpsc;

use crate::failure::of_call;
use crate::input::Part;
use crate::local::Services;

/// Records asked for at once.
const PAGE: u32 = 500;

/// Sends the documents whose metadata meets all conditions. An index that fails meanwhile is a row that failed.
pub(super) fn documents(services: &Services, collection: &str, conditions: Vec<String>) -> mpsc::Receiver<Part> {
    let (sender, receiver) = mpsc::channel(PAGE as usize);
    let mut pages = Pages::new(services, collection, conditions);
    tokio::spawn(async move {
        // A receiver that went away wants no more.
        if let Err(error) = send(&mut pages, &sender).await {
            let error = row_error(ErrorCode::Unavailable, format!("listing the index failed: {error:#}"));
            let _ = sender.send(Part::Failed { id: "index".to_owned(), error }).await;
        }
    });
    receiver
}

async fn send(pages: &mut Pages, sender: &mpsc::Sender<Part>) -> Result<()> {
    let mut last = String::new();
    while let Some(records) = pages.next().await? {
        for record in records {
            // A document has one record for each bundle that encoded it; they follow each other.
            if record.doc_id == last {
                continue;
            }
            last.clone_from(&record.doc_id);
            let part = Part::Document { id: record.doc_id, bytes: 0, metadata: String::new() };
            if sender.send(part).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The records of a collection.
pub(super) struct Pages {
    services: Services,
    request: ListRequest,
    is_over: bool,
}

impl Pages {
    pub(super) fn new(services: &Services, collection: &str, conditions: Vec<String>) -> Self {
        let request = ListRequest {
            collection: collection.to_owned(),
            page_size: PAGE,
            r#where: conditions,
            ..Default::default()
        };
        Self { services: services.clone(), request, is_over: false }
    }

    /// Of ids that begin with `prefix` only.
    pub(super) fn with_prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.request.id_prefix);
        self
    }

    /// The next page; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<DocRecord>>> {
        if self.is_over {
            return Ok(None);
        }
        let (policy, address) = (RetryPolicy::default(), self.services.address());
        let call = async || self.services.index().list(self.request.clone()).await;
        let page = retry(&policy, "Index.List", address, call).await.map_err(of_call)?.into_inner();
        self.is_over = page.next_page_token.is_empty();
        self.request.page_token = page.next_page_token;
        Ok(Some(page.records))
    }
}
