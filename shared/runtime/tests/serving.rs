//! Boot, transport, health, reflection and shutdown of a server, with the coordinator service as the one served.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::Jobs;
use e2llm_api::ErrorCode;
use e2llm_api::v1::*;
use e2llm_runtime::{
    Check, ClientOptions, Endpoint, Health, Listener, RetryPolicy, ServerBuilder, ServerOptions, ServiceName, Shutdown,
    code_of, in_process, retry, with_deadline,
};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

struct Running {
    endpoint: Endpoint,
    health: Health,
    shutdown: Shutdown,
    served: tokio::task::JoinHandle<Result<(), e2llm_runtime::RuntimeError>>,
}

async fn over_tcp(options: ServerOptions) -> Running {
    let listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint::connect(&listener.address().to_string(), &ClientOptions::default()).unwrap();
    let server = ServerBuilder::new(options).coordinator(Jobs::default());
    let (health, shutdown) = (server.health(), Shutdown::new());
    let served = tokio::spawn(server.serve(listener, shutdown.clone()));
    Running { endpoint, health, shutdown, served }
}

fn in_memory() -> Running {
    let (dialer, listener) = in_process();
    let server = ServerBuilder::new(ServerOptions::default()).coordinator(Jobs::default());
    let (health, shutdown) = (server.health(), Shutdown::new());
    let served = tokio::spawn(server.serve_in_process(listener, shutdown.clone()));
    Running { endpoint: dialer.endpoint(), health, shutdown, served }
}

fn job(id: &str) -> GetJobRequest {
    GetJobRequest { job_id: id.to_owned() }
}

async fn serves_calls(running: Running) {
    let mut client = running.endpoint.coordinator();
    assert_eq!(client.get_job(job("known")).await.unwrap().into_inner().job_id, "known");
    let missing = client.get_job(job("nope")).await.unwrap_err();
    assert_eq!((code_of(&missing), missing.message()), (ErrorCode::NotFound, "no job \"nope\""));
    let large = client.list_jobs(ListJobsRequest::default()).await.unwrap().into_inner();
    assert_eq!(large.jobs[0].job_id.len(), 12 << 20, "messages above tonic's default of 4 MiB pass");
    running.shutdown.request();
    running.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn tcp_serves_calls_errors_and_large_messages() {
    serves_calls(over_tcp(ServerOptions::default()).await).await;
}

#[tokio::test]
async fn memory_serves_the_same() {
    serves_calls(in_memory()).await;
}

#[tokio::test]
async fn a_client_made_before_its_server_waits_for_it() {
    let (dialer, listener) = in_process();
    let mut client = dialer.endpoint().coordinator();
    let early = tokio::spawn(async move { client.get_job(job("known")).await });
    tokio::task::yield_now().await;
    let server = ServerBuilder::new(ServerOptions::default()).coordinator(Jobs::default());
    tokio::spawn(server.serve_in_process(listener, Shutdown::new()));
    assert!(early.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_port_in_use_is_one_line_with_address_and_remedy() {
    let first = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = first.address().to_string();
    let message = Listener::bind(&address).await.unwrap_err().to_string();
    assert!(
        message.contains(&address) && message.contains("already in use") && message.contains("--listen"),
        "{message}"
    );
    assert!(!message.contains('\n'));
    let unknown = Listener::bind("no.such.host.invalid:1").await.unwrap_err().to_string();
    assert!(unknown.contains("no.such.host.invalid:1"), "{unknown}");
}

#[tokio::test]
async fn liveness_and_readiness_are_different_answers() {
    let running = over_tcp(ServerOptions::default()).await;
    let mut client = HealthClient::new(running.endpoint.channel());
    let mut ask = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        client.check(request).await.map(|answer| answer.into_inner().status().as_str_name())
    };
    assert_eq!(ask("e2llm.v1.Coordinator").await.unwrap(), "SERVING");
    running.health.set_ready(ServiceName::Coordinator, false).await;
    assert_eq!(ask("").await.unwrap(), "SERVING");
    assert_eq!(ask("readiness").await.unwrap(), "NOT_SERVING");
    assert_eq!(ask("e2llm.v1.Coordinator").await.unwrap(), "NOT_SERVING");
    assert!(ask("e2llm.v1.Index").await.is_err(), "a service that is not here has no status");
}

#[tokio::test]
async fn a_failing_check_takes_its_service_out_of_rotation_and_back() {
    let (works, shutdown) = (Arc::new(AtomicBool::new(true)), Shutdown::new());
    let running = over_tcp(ServerOptions::default()).await;
    let probed = works.clone();
    let probe = move || {
        let works = probed.load(Ordering::SeqCst);
        async move { if works { Ok(()) } else { Err("no space".to_owned()) } }
    };
    let often = Duration::from_millis(5);
    let watching =
        running.health.clone().watch(ServiceName::Coordinator, Check::Storage, often, probe, shutdown.clone());
    assert!(!running.health.is_ready(), "ready before the first answer");
    let watching = tokio::spawn(watching);
    let mut client = HealthClient::new(running.endpoint.channel());
    let mut until = async |service: &str, wanted: &str| {
        let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let request = HealthCheckRequest { service: service.to_owned() };
            let found = client.check(request).await.unwrap().into_inner().status().as_str_name();
            assert!(found == wanted || tokio::time::Instant::now() < give_up, "{service} stays {found}");
            if found == wanted {
                return;
            }
        }
    };
    until("readiness", "SERVING").await;
    works.store(false, Ordering::SeqCst);
    for service in ["readiness", "e2llm.v1.Coordinator", "e2llm.v1.Coordinator/storage"] {
        until(service, "NOT_SERVING").await;
    }
    until("", "SERVING").await;
    works.store(true, Ordering::SeqCst);
    until("readiness", "SERVING").await;
    shutdown.request();
    watching.await.unwrap();
}

#[tokio::test]
async fn reflection_lists_exactly_what_is_served() {
    let running = over_tcp(ServerOptions::default()).await;
    let mut client = ServerReflectionClient::new(running.endpoint.channel());
    let ask = |message| ServerReflectionRequest { host: String::new(), message_request: Some(message) };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("e2llm.v1.Coordinator".into())),
    ];
    let mut answers = client.server_reflection_info(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let MessageResponse::ListServicesResponse(list) =
        answers.message().await.unwrap().unwrap().message_response.unwrap()
    else {
        panic!("not a list")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"e2llm.v1.Coordinator") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    assert!(!names.contains(&"e2llm.v1.Index"), "{names:?}");
    let file = answers.message().await.unwrap().unwrap().message_response.unwrap();
    assert!(matches!(file, MessageResponse::FileDescriptorResponse(_)), "{file:?}");
}

#[tokio::test]
async fn shutdown_lets_calls_in_flight_end_and_takes_no_new_ones() {
    let running = over_tcp(ServerOptions::default()).await;
    let mut client = running.endpoint.coordinator();
    client.get_job(job("known")).await.unwrap();
    let mut slow_client = client.clone();
    let slow = tokio::spawn(async move { slow_client.get_job(job("slow")).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    running.shutdown.request();
    assert!(slow.await.unwrap().is_ok());
    running.served.await.unwrap().unwrap();
    assert!(!running.health.is_ready());
    let refused = client.get_job(job("known")).await.unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::Unavailable);
}

#[tokio::test]
async fn a_stream_without_end_cannot_hold_up_shutdown() {
    let running = over_tcp(ServerOptions { drain: Duration::from_millis(50), ..Default::default() }).await;
    let mut client = running.endpoint.coordinator();
    let _watching = client.watch_job(WatchJobRequest::default()).await.unwrap();
    running.shutdown.request();
    tokio::time::timeout(Duration::from_secs(5), running.served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn too_many_calls_on_one_connection_are_told_to_come_later() {
    let running = over_tcp(ServerOptions { calls_per_connection: 2, ..Default::default() }).await;
    let calls = (0..8).map(|_| {
        let mut client = running.endpoint.coordinator();
        async move { client.get_job(job("slow")).await }
    });
    let answers = futures::future::join_all(calls).await;
    let refused: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|status| code_of(status) == ErrorCode::ResourceExhausted), "{refused:?}");
}

#[tokio::test]
async fn nobody_listening_is_unavailable_and_says_tries_and_address() {
    let address = Listener::bind("127.0.0.1:0").await.unwrap().address().to_string();
    let endpoint = Endpoint::connect(&address, &ClientOptions::default()).unwrap();
    let policy = RetryPolicy { tries: 3, first_delay: Duration::from_millis(1), ..Default::default() };
    let outcome = retry(&policy, "GetJob", endpoint.address(), || {
        let mut client = endpoint.coordinator();
        async move { client.get_job(with_deadline(job("known"), Duration::from_secs(1))).await }
    });
    let error = outcome.await.unwrap_err();
    assert_eq!((error.code(), error.tries), (ErrorCode::Unavailable, 3));
    let message = error.to_string();
    assert!(message.contains(&address) && message.contains("3 tries"), "{message}");
}

#[tokio::test]
async fn a_deadline_is_retriable_not_cancelled() {
    let running = in_memory();
    let late = running.endpoint.coordinator().get_job(with_deadline(job("slow"), Duration::from_millis(20))).await;
    assert_eq!(code_of(&late.unwrap_err()), ErrorCode::Unavailable);
}

#[tokio::test]
async fn a_stream_that_its_client_broke_off_does_not_pass_for_a_complete_one() {
    let (dialer, listener) = in_process();
    let jobs = Jobs::default();
    let server = ServerBuilder::new(ServerOptions::default()).coordinator(jobs.clone());
    tokio::spawn(server.serve_in_process(listener, Shutdown::new()));
    let endpoint = dialer.endpoint();
    let complete = tokio_stream::iter([SubmitJobRequest::default(), SubmitJobRequest::default()]);
    endpoint.coordinator().submit_job(complete).await.unwrap();
    let endless = futures::StreamExt::chain(
        tokio_stream::iter([SubmitJobRequest::default()]),
        futures::stream::pending::<SubmitJobRequest>(),
    );
    let mut client = endpoint.coordinator();
    let broken = tokio::spawn(async move { client.submit_job(endless).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    broken.abort();
    while jobs.submissions.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(*jobs.submissions.lock().unwrap(), [Ok(2), Err(ErrorCode::Unavailable)]);
}
