//! Attempts to get in or to break out, and the answer that each gets: the table of deploy/SECURITY.md.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::index_client::IndexClient;
use e2llm_api::v1::*;
use e2llm_e2e::{Service, Workplace};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// An index and a coordinator that ask for tokens, with a token of each kind.
struct Guarded {
    place: Workplace,
    index: Service,
    coordinator: Service,
    reader: String,
    /// May write the collection `theirs`.
    writer: String,
    worker: String,
    admin: String,
}

fn new_token(place: &Workplace, name: &str, role: &str, more: &[&str]) -> (String, Value) {
    let flags = ["tokens", "new", "--name", name, "--role", role];
    let made = place.json(&[&flags[..], more].concat()).succeeded().rows().remove(0);
    (made["secret"].as_str().unwrap().to_owned(), made["entry"].clone())
}

impl Guarded {
    fn start() -> Self {
        let place = Workplace::bare();
        let made = [("reader", "read"), ("worker", "worker"), ("admin", "admin")]
            .map(|(name, role)| new_token(&place, name, role, &[]));
        let writer = new_token(&place, "writer", "write", &["--only", "theirs"]);
        let entries: Vec<&Value> = made.iter().chain([&writer]).map(|(_, entry)| entry).collect();
        let text = serde_json::json!({ "tokens": entries }).to_string();
        assert!(made.iter().all(|(secret, _)| !text.contains(secret)), "the file holds no secret");
        place.write("tokens.yaml", text);
        let (tokens, store) =
            (place.path("tokens.yaml").display().to_string(), place.path("store").display().to_string());
        let flags = ["--store", &store, "--tokens", &tokens];
        let index = Service::start(None, &[&["index"], &flags[..]].concat(), &[]);
        let coordinator = Service::start(None, &[&["coordinator"], &flags[..]].concat(), &[]);
        let [(reader, _), (worker, _), (admin, _)] = made;
        Self { place, index, coordinator, reader, writer: writer.0, worker, admin }
    }

    fn index(&self) -> IndexClient<Channel> {
        IndexClient::new(channel(&self.index)).max_encoding_message_size(64 << 20)
    }

    fn coordinator(&self) -> CoordinatorClient<Channel> {
        CoordinatorClient::new(channel(&self.coordinator))
    }
}

fn channel(service: &Service) -> Channel {
    Endpoint::from_shared(service.url()).unwrap().connect_lazy()
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn delete(collection: &str, doc_id: &str) -> DeleteRequest {
    DeleteRequest { collection: collection.to_owned(), doc_ids: vec![doc_id.to_owned()] }
}

fn list(collection: &str) -> ListRequest {
    ListRequest { collection: collection.to_owned(), ..Default::default() }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, words: &str) {
    let status = answer.unwrap_err();
    assert!(status.code() == code && status.message().contains(words), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_not_known_or_may_not_is_refused() {
    let guarded = Guarded::start();
    let mut index = guarded.index();
    refused(index.list(list("theirs")).await, Code::Unauthenticated, "no token");
    refused(index.list(with("e2llm_made-up", list("theirs"))).await, Code::Unauthenticated, "not known");
    let mut odd = Request::new(list("theirs"));
    odd.metadata_mut().insert("authorization", format!("Basic {}", guarded.admin).parse().unwrap());
    refused(index.list(odd).await, Code::Unauthenticated, "not `Bearer TOKEN`");
    index.list(with(&guarded.reader, list("theirs"))).await.unwrap();
    refused(index.delete(with(&guarded.reader, delete("theirs", "a"))).await, Code::PermissionDenied, "needs write");
    index.delete(with(&guarded.writer, delete("theirs", "a"))).await.unwrap();
    for other in ["ours", ""] {
        let answer = index.delete(with(&guarded.writer, delete(other, "a"))).await;
        refused(answer, Code::PermissionDenied, "may not use collection");
    }
    refused(index.list(with(&guarded.writer, list("ours"))).await, Code::PermissionDenied, "may not use collection");
    let commit = CommitRequest::default();
    refused(index.commit(with(&guarded.writer, commit)).await, Code::PermissionDenied, "needs worker");
    let collect = tokio_stream::iter([CollectGarbageRequest::default()]);
    refused(index.collect_garbage(with(&guarded.worker, collect)).await, Code::PermissionDenied, "needs admin");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_other_collections_are_not_seen() {
    let guarded = Guarded::start();
    let submit = |collection: &str, job: &str| {
        let spec = JobSpec {
            kind: JobKind::Encode.into(),
            collection: collection.to_owned(),
            job_id: job.to_owned(),
            ..Default::default()
        };
        tokio_stream::iter([SubmitJobRequest { part: Some(submit_job_request::Part::Spec(spec)) }])
    };
    let mut coordinator = guarded.coordinator();
    refused(
        coordinator.submit_job(with(&guarded.writer, submit("ours", "stolen"))).await,
        Code::PermissionDenied,
        "may not use collection \"ours\"",
    );
    coordinator.submit_job(with(&guarded.admin, submit("ours", "secret"))).await.unwrap();
    coordinator.submit_job(with(&guarded.writer, submit("theirs", "open"))).await.unwrap();
    let seen = coordinator.list_jobs(with(&guarded.writer, ListJobsRequest::default())).await.unwrap().into_inner();
    assert_eq!(seen.jobs.iter().map(|job| job.job_id.as_str()).collect::<Vec<_>>(), ["open"]);
    let get = GetJobRequest { job_id: "secret".to_owned() };
    refused(coordinator.get_job(with(&guarded.writer, get.clone())).await, Code::NotFound, "there is no job");
    coordinator.get_job(with(&guarded.reader, get)).await.unwrap();
    let cancel = CancelJobRequest { job_id: "secret".to_owned() };
    refused(coordinator.cancel_job(with(&guarded.writer, cancel)).await, Code::NotFound, "there is no job");
    let report = ReportStatusRequest { worker_id: "spy".to_owned(), slots: 1, ..Default::default() };
    refused(coordinator.report_status(with(&guarded.writer, report)).await, Code::PermissionDenied, "needs worker");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_cannot_slip_into_another_collection_behind_one_that_is_allowed() {
    let guarded = Guarded::start();
    let tokens = guarded.place.path("tokens.yaml").display().to_string();
    let store = guarded.place.path("store").display().to_string();
    guarded.place.write("worker.token", &guarded.worker);
    let own = guarded.place.path("worker.token").display().to_string();
    let index = guarded.index.url();
    let flags = ["encoder", "--store", &store, "--tokens", &tokens, "--index-url", &index, "--token-file", &own];
    let encoder = Service::start(None, &flags, &[]);
    let mut client = EncoderClient::new(channel(&encoder));
    let piece = |collection: &str, last: bool| EncodeRequest {
        collection: collection.to_owned(),
        doc_id: "a".to_owned(),
        text: b"A text of its own.".to_vec(),
        last,
        ..Default::default()
    };
    let by_hash = EncodeRequest {
        collection: "ours".to_owned(),
        doc_id: "victim".to_owned(),
        text_hash: "0".repeat(64),
        ..Default::default()
    };
    let slipped = tokio_stream::iter([piece("theirs", false), by_hash]);
    let mut answers = client.encode(with(&guarded.writer, slipped)).await.unwrap().into_inner();
    refused(answers.message().await, Code::PermissionDenied, "may not use collection \"ours\"");
    let allowed = tokio_stream::iter([piece("theirs", true)]);
    let mut answers = client.encode(with(&guarded.writer, allowed)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(matches!(answer.outcome, Some(encode_response::Outcome::Record(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_paths_and_messages_that_are_too_large_are_refused() {
    let guarded = Guarded::start();
    let mut index = guarded.index();
    for id in ["../../etc/passwd", "a/../b", "/etc/passwd", "a\0b", "..", "a\nb", ""] {
        refused(index.delete(with(&guarded.writer, delete("theirs", id))).await, Code::InvalidArgument, "");
    }
    for collection in ["../ours", "a/b", "ours\0"] {
        refused(index.list(with(&guarded.admin, list(collection))).await, Code::InvalidArgument, "");
    }
    let segment = |input_key: &str, content_hash: &str| Segment {
        input_key: input_key.to_owned(),
        content_hash: content_hash.to_owned(),
        ..Default::default()
    };
    for (key, hash) in [("../../../etc", "passwd"), ("..", ".."), ("a/b", "c")] {
        let record = DocRecord {
            collection: "theirs".to_owned(),
            doc_id: "a".to_owned(),
            segments: vec![segment(key, hash)],
            ..Default::default()
        };
        let commit = CommitRequest { records: vec![record] };
        refused(index.commit(with(&guarded.worker, commit)).await, Code::InvalidArgument, "");
    }
    let mut coordinator = guarded.coordinator();
    for job in ["../spec", "a/b", "..", ""] {
        let get = GetJobRequest { job_id: job.to_owned() };
        refused(coordinator.get_job(with(&guarded.admin, get)).await, Code::InvalidArgument, "");
    }
    let large = delete("theirs", &"x".repeat(17 << 20));
    refused(index.delete(with(&guarded.writer, large)).await, Code::OutOfRange, "");
    assert!(!guarded.place.path("etc").exists() && guarded.place.path("store/store.json").exists());
    index.list(with(&guarded.reader, list("theirs"))).await.expect("and it still serves");
}

#[test]
fn a_server_is_not_opened_to_everyone_by_accident() {
    let place = Workplace::bare();
    let store = place.path("store").display().to_string();
    let serve = |flags: &[&str]| {
        let command = ["serve", "index", "--store", &store, "--listen"];
        place.json(&[&command[..], flags].concat())
    };
    serve(&["0.0.0.0:0"]).refused(&["0.0.0.0:0", "--tokens", "--allow-unauthenticated"]);
    serve(&["[::]:0"]).refused(&["--tokens"]);
    serve(&["127.0.0.1:0", "--tls-client-ca", "ca.pem"]).refused(&["--tls-cert"]);
    serve(&["127.0.0.1:0", "--tokens", "nowhere.yaml"]).refused(&["nowhere.yaml"]);
    assert!(!place.path("store").exists(), "nothing was made of it");
}
