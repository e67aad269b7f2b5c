//! The RPC `Index.CollectGarbage`.

use std::time::Duration;

use e2llm_api::v1::collect_garbage_request::Part as Asked;
use e2llm_api::v1::collect_garbage_response::Part as Told;
use e2llm_api::v1::{self, GarbageReady};
use e2llm_store::garbage::ObjectName;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::{GarbageOptions, HeldTexts};
use crate::{IndexError, IndexService};

type Requests = Streaming<v1::CollectGarbageRequest>;
pub(crate) type Responses = mpsc::Sender<Result<v1::CollectGarbageResponse, Status>>;

/// Answers one call. On a task of its own, so that a caller that goes away cannot leave a run unended.
pub(crate) async fn serve(index: IndexService, requests: Requests, responses: Responses) {
    let last = collect(&index, requests, &responses).await.map(|report| tell(Told::Report(report)));
    // who went away needs no report
    let _ = responses.send(last).await;
}

async fn collect(
    index: &IndexService,
    mut requests: Requests,
    responses: &Responses,
) -> Result<v1::GarbageReport, Status> {
    let Some(Asked::Options(options)) = next(&mut requests).await? else {
        return Err(out_of_order("its first message must be the options").into());
    };
    let told = responses.clone();
    // what is told while nobody reads is told again later
    let progress = Box::new(move |progress| drop(told.try_send(Ok(tell(Told::Progress(progress))))));
    let run = index.find_garbage_with(options_of(options)?, progress).await?;
    if responses.send(Ok(tell(Told::Ready(GarbageReady {})))).await.is_err() {
        run.abandon().await;
        return Err(Status::cancelled("the caller went away"));
    }
    match held(&mut requests).await {
        Ok(held) => Ok(run.sweep(held).await?),
        Err(status) => {
            run.abandon().await;
            Err(status)
        }
    }
}

async fn held(requests: &mut Requests) -> Result<HeldTexts, Status> {
    let mut held = HeldTexts::default();
    loop {
        let part = match next(requests).await? {
            Some(Asked::Held(part)) => part,
            Some(Asked::Options(_)) => return Err(out_of_order("options came twice").into()),
            None => return Err(out_of_order("the texts that jobs hold are not complete; nothing was deleted").into()),
        };
        for hash in &part.text_hashes {
            held.texts.insert(ObjectName::parse(hash).map_err(IndexError::from)?.key());
        }
        held.submitting |= part.submitting;
        if part.last {
            return Ok(held);
        }
    }
}

async fn next(requests: &mut Requests) -> Result<Option<Asked>, Status> {
    Ok(requests.message().await?.and_then(|request| request.part))
}

fn options_of(options: v1::GarbageOptions) -> Result<GarbageOptions, IndexError> {
    let v1::GarbageOptions { dry_run, grace_s, only } = options;
    let only = only.iter().map(|name| Ok(ObjectName::parse(name)?)).collect::<Result<_, IndexError>>()?;
    Ok(GarbageOptions { dry_run, grace: Duration::from_secs(grace_s), only })
}

fn tell(part: Told) -> v1::CollectGarbageResponse {
    v1::CollectGarbageResponse { part: Some(part) }
}

fn out_of_order(what: &str) -> IndexError {
    IndexError::invalid(format!("the call to collect garbage is out of order: {what}"))
}
