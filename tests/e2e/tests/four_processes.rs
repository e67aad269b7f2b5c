//! The four services as processes of their own on object storage, and all four in one process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::decoder_client::DecoderClient;
use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::index_client::IndexClient;
use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::*;
use e2llm_e2e::{HARBOUR, S3, Service, TEXTS, Workplace, answer, eventually};
use serde_json::Value;
use std::process::Command;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

/// Index, coordinator, encoder and decoder, each a process, with their store in S3.
struct Fleet {
    storage: S3,
    view: TempDir,
    index: Option<Service>,
    coordinator: Service,
    encoder: Service,
    decoder: Service,
}

impl Fleet {
    fn start() -> Self {
        let (storage, view) = (S3::start(), TempDir::new().unwrap());
        let (store, vars) = (storage.store(), storage.vars());
        let index = start_index(&storage, &view, None);
        let coordinator = Service::start(None, &["coordinator", "--store", &store], &vars);
        let (index_url, coordinator_url) = (index.url(), coordinator.url());
        let flags = ["--store", &store, "--index-url", &index_url, "--coordinator-url", &coordinator_url];
        let encoder = Service::start(None, &[&["encoder"], &flags[..]].concat(), &vars);
        let encoder_url = encoder.url();
        let decoder = Service::start(None, &[&["decoder", "--encoder-url", &encoder_url], &flags[..]].concat(), &vars);
        Self { storage, view, index: Some(index), coordinator, encoder, decoder }
    }

    /// Kills the index and starts another at the same address.
    fn replace_index(&mut self) {
        let index = self.index.take().unwrap();
        let address = index.address().to_owned();
        index.kill();
        self.index = Some(start_index(&self.storage, &self.view, Some(&address)));
    }

    fn index(&self) -> Channel {
        channel(self.index.as_ref().unwrap())
    }

    async fn encode(&self, id: &str, text: &str) -> DocRecord {
        // Two pieces: documents arrive as streams.
        let (first, second) = text.split_at(text.len() / 2);
        let piece = |text: &str, last| EncodeRequest {
            collection: "default".into(),
            doc_id: id.into(),
            text: text.as_bytes().to_vec(),
            last,
            ..Default::default()
        };
        let pieces = tokio_stream::iter([piece(first, false), piece(second, true)]);
        let mut answers = EncoderClient::new(channel(&self.encoder)).encode(pieces).await.unwrap().into_inner();
        let answer = answers.message().await.unwrap().unwrap();
        assert!(answers.message().await.unwrap().is_none());
        match answer.outcome.unwrap() {
            encode_response::Outcome::Record(record) => record,
            encode_response::Outcome::Error(error) => panic!("{error:?}"),
        }
    }

    async fn get(&self, id: &str) -> Result<DocRecord, Status> {
        let key = DocKey { collection: "default".into(), doc_id: id.into(), ..Default::default() };
        let found = IndexClient::new(self.index()).get(GetRequest { key: Some(key) }).await?;
        Ok(found.into_inner().record.unwrap())
    }

    async fn ask(&self, id: &str) -> Result<(String, Usage), Status> {
        let request = AskRequest {
            collection: "default".into(),
            doc_ids: vec![id.into()],
            question: "Who opened the harbour?".into(),
            generate: Some(short()),
            ..Default::default()
        };
        let mut events = DecoderClient::new(channel(&self.decoder)).ask(request).await?.into_inner();
        let mut text = String::new();
        loop {
            match events.message().await?.and_then(|event| event.event).expect("ends with its usage") {
                generate_event::Event::Text(piece) => text.push_str(&piece),
                generate_event::Event::Finished(usage) => return Ok((text, usage)),
            }
        }
    }

    /// Submits a summary job and watches it to its end: its last status and its rows.
    async fn summarize(&self, parts: Vec<Part>) -> (JobStatus, Vec<RowResult>) {
        let mut coordinator = CoordinatorClient::new(channel(&self.coordinator));
        let spec = JobSpec {
            kind: JobKind::Summarize.into(),
            collection: "default".into(),
            generate: Some(short()),
            ..Default::default()
        };
        let parts = std::iter::once(Part::Spec(spec)).chain(parts);
        let messages: Vec<_> = parts.map(|part| SubmitJobRequest { part: Some(part) }).collect();
        let job = coordinator.submit_job(tokio_stream::iter(messages)).await.unwrap().into_inner();
        let request = WatchJobRequest { job_id: job.job_id, results: true };
        let mut events = coordinator.watch_job(request).await.unwrap().into_inner();
        let (mut last, mut rows) = (JobStatus::default(), Vec::new());
        while let Some(event) = events.message().await.unwrap() {
            match event.event.unwrap() {
                job_event::Event::Status(status) => last = status,
                job_event::Event::Row(row) => rows.push(row),
            }
        }
        (last, rows)
    }
}

fn start_index(storage: &S3, view: &TempDir, listen: Option<&str>) -> Service {
    let directory = view.path().display().to_string();
    Service::start(listen, &["index", "--store", &storage.store(), "--index-dir", &directory], &storage.vars())
}

fn channel(service: &Service) -> Channel {
    Endpoint::from_shared(service.url()).unwrap().connect_lazy()
}

fn short() -> GenerateOptions {
    GenerateOptions { max_tokens: 6, ..Default::default() }
}

async fn listed_services(service: &Service) -> Vec<String> {
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let request = ServerReflectionRequest { host: String::new(), message_request };
    let mut client = ServerReflectionClient::new(channel(service));
    let mut answers = client.server_reflection_info(tokio_stream::iter([request])).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().message_response.unwrap() {
        MessageResponse::ListServicesResponse(list) => list.service.into_iter().map(|service| service.name).collect(),
        other => panic!("{other:?}"),
    }
}

async fn health(service: &Service, name: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: name.to_owned() };
    HealthClient::new(channel(service)).check(request).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_processes_share_a_store_in_s3_and_survive_the_index() {
    let mut fleet = Fleet::start();
    let (id, text) = TEXTS[1];
    let record = fleet.encode(id, text).await;
    assert_eq!(record.text_bytes, text.len() as u64);
    assert_eq!(fleet.get(id).await.unwrap(), record);
    let (first, usage) = fleet.ask(id).await.unwrap();
    assert!(!first.trim().is_empty());
    assert_eq!((usage.chunks_total, usage.chunks_soft, usage.chunks_left_out), (record.chunks, record.chunks, 0));
    assert!(usage.chunks_expanded > 0);
    assert_eq!(usage.reused_positions, 0);
    let (again, usage) = fleet.ask(id).await.unwrap();
    assert!(again == first && usage.reused_positions > 0, "{again:?} after {first:?}, {usage:?}");

    fleet.replace_index();
    assert_eq!(eventually(async || fleet.get(id).await).await, record);
    assert_eq!(eventually(async || fleet.ask(id).await).await.0, first);

    let row = |id: &str| Part::Row(Row { id: id.into(), ..Default::default() });
    let piece = Part::Piece(TextPiece { text: TEXTS[0].1.into() });
    let (status, rows) = fleet.summarize(vec![row(id), piece, row(TEXTS[0].0), row("nowhere")]).await;
    assert_eq!((status.state.as_str(), status.rows_done, status.rows_failed), ("succeeded", 3, 1), "{status:?}");
    let codes: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.error.as_ref().map(|e| e.code.as_str()))).collect();
    assert_eq!(codes, [(id, None), (TEXTS[0].0, None), ("nowhere", Some("NOT_FOUND"))], "{rows:?}");
    assert!(rows[..2].iter().all(|row| !row.text.trim().is_empty()), "{rows:?}");
    assert_eq!(fleet.get(TEXTS[0].0).await.unwrap().text_bytes, TEXTS[0].1.len() as u64);

    let services = [
        (fleet.index.as_ref().unwrap(), "e2llm.v1.Index"),
        (&fleet.coordinator, "e2llm.v1.Coordinator"),
        (&fleet.encoder, "e2llm.v1.Encoder"),
        (&fleet.decoder, "e2llm.v1.Decoder"),
    ];
    for (service, name) in services {
        let own: Vec<_> = listed_services(service).await.into_iter().filter(|s| s.starts_with("e2llm.")).collect();
        assert_eq!(own, [name]);
        for check in ["", "/storage", "/forward"].iter().filter(|check| has_check(name, check)) {
            assert_eq!(health(service, &format!("{name}{check}")).await, ServingStatus::Serving, "{name}{check}");
        }
    }
    a_foreign_client_asks(&fleet, &first);
}

/// All write to the store but the decoder; encoder and decoder compute.
fn has_check(service: &str, check: &str) -> bool {
    match check {
        "/storage" => service != "e2llm.v1.Decoder",
        "/forward" => ["e2llm.v1.Encoder", "e2llm.v1.Decoder"].contains(&service),
        _ => true,
    }
}

/// Python's gRPC learns the messages by reflection and gets the same answer, piece by piece.
fn a_foreign_client_asks(fleet: &Fleet, expected: &str) {
    let python = std::env::var_os("E2LLM_PYTHON").expect("E2LLM_PYTHON; run `cargo xtask test`");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/foreign_client.py");
    let request = serde_json::json!({
        "collection": "default",
        "doc_ids": [TEXTS[1].0],
        "question": "Who opened the harbour?",
        "generate": {"max_tokens": 6},
    });
    let output = Command::new(python)
        .args([script, fleet.decoder.address(), "e2llm.v1.Decoder/Ask", &request.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.lines().any(|line| line == "e2llm.v1.Decoder"), "{printed}");
    let events: Vec<Value> = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let text: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(text, expected, "{printed}");
    assert!(events.last().unwrap()["finished"].is_object(), "{printed}");
}

#[test]
fn one_process_serves_the_command_line() {
    let home = TempDir::new().unwrap();
    let store = home.path().join("store").display().to_string();
    let service = Service::start(None, &["all", "--store", &store], &[]);
    let client = Workplace::on_server(&service.url());
    let encoded = client.json(&["encode", "texts"]).succeeded();
    assert_eq!(encoded.rows().len(), TEXTS.len());
    let first = answer(client.ask(HARBOUR, &[]));
    assert!(!first.trim().is_empty());
    assert_eq!(answer(client.ask(HARBOUR, &[])), first);
    // The soft tokens stand first, whatever raw text a question brings along.
    let asked = ["ask", "How deep is the water?", "--max-tokens", "4", "--id", HARBOUR];
    let usage = client.json(&asked).succeeded().rows().remove(0)["usage"].clone();
    let positions = |kind: &str| usage[kind].as_u64().unwrap();
    assert!(
        positions("chunks_expanded") > 0 && positions("reused_positions") >= positions("soft_positions"),
        "{usage}"
    );
    client.ask("nowhere", &[]).refused(&["nowhere", "encode it first"]);

    let second = Workplace::new().json(&["serve", "index", "--listen", service.address()]);
    second.refused(&[service.address(), "in use", "--listen"]);
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let client = Workplace::on_server("http://127.0.0.1:1");
    client.ask(HARBOUR, &[]).refused(&["127.0.0.1:1", "--server"]);
}
