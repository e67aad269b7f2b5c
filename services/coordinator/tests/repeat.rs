//! What becomes of a job that is submitted again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::*;
use e2llm_api::{ErrorCode, row_error};
use e2llm_runtime::code_of;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A document of which only the hash of its text is sent.
fn by_hash(id: &str, text: &str) -> Part {
    let (text_hash, text_bytes) = (blake3::hash(text.as_bytes()).to_hex().to_string(), text.len() as u64);
    Part::Row(Row { id: id.into(), text_hash, text_bytes, ..Default::default() })
}

fn failing(id: &str, message: &str) -> Part {
    let error = Some(row_error(ErrorCode::Unreadable, message));
    Part::Row(Row { id: id.into(), error, ..Default::default() })
}

fn several(documents: &[(&str, &str)]) -> Vec<Part> {
    documents.iter().flat_map(|(id, text)| document(id, text)).collect()
}

/// A cluster with a job of which these rows are planned; its submission broke off before its end.
async fn broken_off(rows: Vec<Part>) -> Cluster {
    let cluster = Cluster::start(small()).await;
    let count = rows.iter().filter(|part| matches!(part, Part::Row(_))).count() as u64;
    let (sender, receiver) = mpsc::channel(64);
    for request in requests(spec(JobKind::Encode, "job"), rows) {
        sender.send(request).await.unwrap();
    }
    let mut client = cluster.client();
    let submission = tokio::spawn(async move { client.submit_job(ReceiverStream::new(receiver)).await });
    let mut client = cluster.client();
    let mut planned = async || match client.get_job(GetJobRequest { job_id: "job".into() }).await {
        Ok(status) => status.into_inner().rows,
        Err(_) => 0,
    };
    while planned().await < count {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    submission.abort();
    let _ = submission.await;
    drop(sender);
    cluster.restart().await
}

async fn refused(cluster: &Cluster, parts: Vec<Part>) -> String {
    let status = cluster.submit(spec(JobKind::Encode, "job"), parts).await.unwrap_err();
    assert_eq!(code_of(&status), ErrorCode::AlreadyExists, "{status}");
    status.message().to_owned()
}

#[tokio::test]
async fn a_changed_text_is_another_job() {
    let cluster = broken_off(several(&[("a", "one"), ("b", "two")])).await;
    let message = refused(&cluster, several(&[("a", "one"), ("b", "other"), ("c", "three")])).await;
    assert!(message.contains("row 1 (\"b\")"), "{message}");
    let metadata = Row { id: "a".into(), metadata: "{\"year\":1874}".into(), ..Default::default() };
    let changed = vec![Part::Piece(TextPiece { text: b"one".to_vec() }), Part::Row(metadata)];
    assert!(refused(&cluster, changed).await.contains("row 0"));
    let same = several(&[("a", "one"), ("b", "two"), ("c", "three")]);
    assert_eq!(cluster.submit(spec(JobKind::Encode, "job"), same).await.unwrap().rows, 3);
}

#[tokio::test]
async fn texts_of_planned_rows_need_not_be_sent_again() {
    let cluster = broken_off(several(&[("a", "one"), ("b", "two")])).await;
    let mut parts = vec![by_hash("a", "one"), by_hash("b", "two")];
    parts.extend(document("c", "three"));
    assert_eq!(cluster.submit(spec(JobKind::Encode, "job"), parts).await.unwrap().rows, 3);
    cluster.run_workers();
    let (rows, _) = cluster.watch("job").await.finish().await;
    assert_eq!(codes(&rows), ["OK", "OK", "OK"]);
}

#[tokio::test]
async fn a_job_that_is_all_planned_is_compared_row_by_row() {
    let cluster = Cluster::start(small()).await;
    let documents = [("a", "one"), ("b", "two")];
    cluster.submit(spec(JobKind::Encode, "job"), several(&documents)).await.unwrap();
    for is_finished in [false, true] {
        if is_finished {
            cluster.run_workers();
            cluster.watch("job").await.finish().await;
        }
        for same in [several(&documents), vec![by_hash("a", "one"), by_hash("b", "two")], vec![]] {
            assert_eq!(cluster.submit(spec(JobKind::Encode, "job"), same).await.unwrap().rows, 2, "{is_finished}");
        }
        refused(&cluster, several(&[("a", "one"), ("b", "other")])).await;
        assert!(refused(&cluster, several(&documents[..1])).await.contains("1 now, 2 before"));
        let more = [&documents[..], &[("c", "three")]].concat();
        assert!(refused(&cluster, several(&more)).await.contains("number of rows"));
    }
    assert_eq!(cluster.status("job").await.rows, 2);
}

#[tokio::test]
async fn a_row_that_failed_and_can_be_read_now_is_another_job() {
    let mut parts = vec![failing("a", "the disk stutters")];
    parts.extend(document("b", "two"));
    let cluster = broken_off(parts).await;
    assert!(refused(&cluster, several(&[("a", "one"), ("b", "two")])).await.contains("row 0"));
    assert!(refused(&cluster, vec![failing("a", "it stutters"), failing("b", "x")]).await.contains("row 1"));
    let same = vec![failing("a", "the disk stutters differently"), by_hash("b", "two")];
    assert_eq!(cluster.submit(spec(JobKind::Encode, "job"), same).await.unwrap().rows, 2);
}

#[tokio::test]
async fn an_input_that_was_refused_takes_no_ids() {
    let cluster = broken_off(several(&[("a", "one")])).await;
    refused(&cluster, several(&[("b", "two")])).await;
    let parts = several(&[("a", "one"), ("b", "two")]);
    cluster.submit(spec(JobKind::Encode, "job"), parts).await.unwrap();
    cluster.run_workers();
    let (rows, _) = cluster.watch("job").await.finish().await;
    assert_eq!(codes(&rows), ["OK", "OK"]);
}

#[tokio::test]
async fn a_job_whose_results_have_arrived_is_not_offered_again() {
    let cluster = Cluster::start(small()).await;
    for job in ["run-1", "run-2", "other"] {
        cluster.submit(spec(JobKind::Encode, job), vec![]).await.unwrap();
    }
    let mut client = cluster.client();
    client.acknowledge_job(AcknowledgeJobRequest { job_id: "run-1".into() }).await.unwrap();
    for (unacknowledged, expected) in [(true, vec!["run-2"]), (false, vec!["run-1", "run-2"])] {
        let request = ListJobsRequest { id_prefix: "run-".into(), unacknowledged };
        let jobs = client.list_jobs(request).await.unwrap().into_inner().jobs;
        assert_eq!(jobs.iter().map(|job| job.job_id.as_str()).collect::<Vec<_>>(), expected);
    }
    let unknown = client.acknowledge_job(AcknowledgeJobRequest { job_id: "nope".into() }).await.unwrap_err();
    assert_eq!(code_of(&unknown), ErrorCode::NotFound);
    assert_eq!(client.list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs.len(), 3);
}

#[tokio::test]
async fn tokens_of_unchanged_documents_were_not_read() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(JobKind::Encode, "job"), several(&[("a", "one two"), ("b", "three")])).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Encode);
    for task in worker.take(2).await {
        let row = RowResult { unchanged: task.rows[0].id == "a", ..encoded(&task.rows[0], "one two") };
        worker.succeed(&task, vec![row]).await;
    }
    assert_eq!(cluster.status("job").await.source_tokens, 2);
}
