use e2llm_api::v1::{GetJobRequest, JobKind};
use e2llm_api::{ErrorCode, row_error};
use e2llm_coordinator::{CoordinatorOptions, CoordinatorService};
use e2llm_runtime::{ClientOptions, ServerBuilder, ServerOptions, in_process};
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
    let services = Services::connect("http://127.0.0.1:9", &ClientOptions::default()).unwrap();
    let rows = look_ahead(vec![Part::Document { id: "a".into(), bytes: 0, metadata: String::new() }]).await;
    let mut view = View::new(JobKind::Encode, Output::Silent, true);
    let error =
        run(&services, spec(), rows, &Chosen::fresh(), &mut view, &Shutdown::new()).await.unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:9") && error.contains("--server"), "{error}");
}

fn silent() -> View {
    View::new(JobKind::Encode, Output::Silent, true)
}

fn document(id: &str, text: &str) -> Vec<Part> {
    let document = Part::Document { id: id.into(), bytes: text.len() as u64, metadata: String::new() };
    vec![Part::Piece(text.into()), document]
}

async fn state(services: &Services, job_id: &str) -> String {
    let request = GetJobRequest { job_id: job_id.to_owned() };
    services.coordinator().get_job(request).await.unwrap().into_inner().state
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_found_again_until_its_results_have_arrived() {
    let (services, _server) = coordinator().await;
    let name = JobName::Repeatable("run-0-".into());
    let first = name.choose(&services).await.unwrap();
    assert!(first.earlier.is_none());
    run(&services, spec(), look_ahead(vec![failed("a")]).await, &first, &mut silent(), &Shutdown::new()).await.unwrap();
    let again = name.choose(&services).await.unwrap();
    assert!(again.job_id == first.job_id && again.has_finished(), "{again:?}");
    let mut view = silent();
    run(&services, spec(), look_ahead(vec![failed("a")]).await, &again, &mut view, &Shutdown::new()).await.unwrap();
    assert_eq!(view.tally().rows, 1);
    JobName::acknowledge(&services, &first.job_id).await;
    let fresh = name.choose(&services).await.unwrap();
    assert!(fresh.earlier.is_none() && fresh.job_id != first.job_id);
    let submitted = JobName::Submitted("run-0-".into()).choose(&services).await.unwrap();
    assert!(submitted.earlier.is_none(), "a finished job is not submitted again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_job_goes_on_and_its_rows_are_told_once() {
    let (services, _server) = coordinator().await;
    let (interrupt, name) = (Shutdown::new(), JobName::Repeatable("run-0-".into()));
    let parts = || [vec![failed("a")], document("b", "text")].concat();
    let chosen = name.choose(&services).await.unwrap();
    let after = interrupt.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        after.request();
    });
    let left = run(&services, spec(), look_ahead(parts()).await, &chosen, &mut silent(), &interrupt).await;
    assert!(left.unwrap_err().is::<Interrupted>());
    let again = name.choose(&services).await.unwrap();
    assert!(again.job_id == chosen.job_id && again.was_cancelled(), "{again:?}");
    assert_eq!(state(&services, &again.job_id).await, "running");
    let other = [vec![failed("a")], document("b", "other")].concat();
    let taken = run(&services, spec(), look_ahead(other).await, &again, &mut silent(), &Shutdown::new()).await;
    assert!(matches!(taken.unwrap_err().downcast_ref(), Some(Taken::OtherJob(_))));
    assert_eq!(state(&services, &again.job_id).await, "cancelled", "as it was before");
    JobName::give_up(&services, &again).await;
    assert!(name.choose(&services).await.unwrap().earlier.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_somebody_else_is_not_cancelled() {
    let (services, _server) = coordinator().await;
    let name = JobName::Given("night".into());
    let chosen = name.choose(&services).await.unwrap();
    let rows = look_ahead(document("a", "text")).await;
    submit(&services, spec(), rows, &chosen, &mut silent(), &Shutdown::new()).await.unwrap();
    let other = JobSpec { priority: 1, ..spec() };
    let rows = look_ahead(document("a", "text")).await;
    let taken = run(&services, other, rows, &chosen, &mut silent(), &Shutdown::new()).await.unwrap_err();
    assert!(matches!(taken.downcast_ref(), Some(Taken::OtherJob(_))), "{taken}");
    assert_eq!(state(&services, "night").await, "running");
}
