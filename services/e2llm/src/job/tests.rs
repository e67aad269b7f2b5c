use e2llm_api::v1::{GetJobRequest, JobKind};
use e2llm_api::{ErrorCode, row_error};
use e2llm_coordinator::{CoordinatorOptions, CoordinatorService};
use e2llm_runtime::{ServerBuilder, ServerOptions, in_process};
use e2llm_store::Store;

use tokio::sync::mpsc;

use super::*;
use crate::cli::OutputArgs;
use crate::input::Part;
use crate::output::Output;
use crate::view::View;

fn failed(id: &str) -> Part {
    Part::Failed { id: id.into(), error: row_error(ErrorCode::EmptyDocument, "empty") }
}

async fn look_ahead(parts: Vec<Part>) -> Rows {
    let (sender, receiver) = mpsc::channel(parts.len() + 1);
    for part in parts {
        sender.send(part).await.unwrap();
    }
    drop(sender);
    Rows::look_ahead(receiver).await
}

#[test]
fn rows_that_never_came_back_are_an_error() {
    assert!(check_complete("j", &Expected::Rows(3), 3).is_ok());
    assert!(check_complete("j", &Expected::Unknown, 3).is_ok());
    let error = check_complete("j", &Expected::Rows(3), 2).unwrap_err().to_string();
    assert!(error.contains("2 of 3 rows"), "{error}");
}

/// A coordinator without workers, on a store in memory.
async fn coordinator() -> (Services, Shutdown) {
    let (dialer, listener) = in_process();
    let shutdown = Shutdown::new();
    let store = Store::open("memory://").await.unwrap();
    let service = CoordinatorService::open(store, CoordinatorOptions::default(), shutdown.clone()).await.unwrap();
    let server = ServerBuilder::new(ServerOptions::default()).coordinator(service);
    tokio::spawn(server.serve_in_process(listener, shutdown.clone()));
    (Services::behind(|| dialer.endpoint()), shutdown)
}

fn spec() -> JobSpec {
    JobSpec { kind: JobKind::Encode.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_back_from_the_coordinator_in_input_order() {
    let (services, _server) = coordinator().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.jsonl");
    let output = Output::open(&OutputArgs { output: Some(path.clone()), errors: None }, false).unwrap();
    let mut view = View::new(JobKind::Encode, output, true);
    let ids: Vec<String> = (0..600).map(|number| format!("row {number}")).collect();
    let rows = look_ahead(ids.iter().map(|id| failed(id)).collect()).await;
    run(&services, spec(), rows, &Chosen::fresh(), &mut view, &Shutdown::new()).await.unwrap();
    assert_eq!((view.tally().rows, view.tally().failed), (600, 600));
    view.finish(true).unwrap();
    let lines = std::fs::read_to_string(path).unwrap();
    let found = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].clone());
    assert!(found.eq(ids));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_job_is_cancelled() {
    let (services, _server) = coordinator().await;
    let (interrupt, chosen) = (Shutdown::new(), Chosen::fresh());
    let job_id = chosen.job_id.clone();
    let document = Part::Document { id: "a".into(), bytes: 4, metadata: String::new() };
    let rows = look_ahead(vec![Part::Piece(b"text".to_vec()), document]).await;
    let mut view = View::new(JobKind::Encode, Output::Silent, true);
    let after = interrupt.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        after.request();
    });
    let error = run(&services, spec(), rows, &chosen, &mut view, &interrupt).await.unwrap_err();
    assert!(error.is::<Interrupted>(), "{error}");
    let status = services.coordinator().get_job(GetJobRequest { job_id }).await.unwrap().into_inner();
    assert_eq!(status.state, "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_named() {
    let services = Services::connect("http://127.0.0.1:9").unwrap();
    let rows = look_ahead(vec![Part::Document { id: "a".into(), bytes: 0, metadata: String::new() }]).await;
    let mut view = View::new(JobKind::Encode, Output::Silent, true);
    let error =
        run(&services, spec(), rows, &Chosen::fresh(), &mut view, &Shutdown::new()).await.unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:9") && error.contains("--server"), "{error}");
}
