//! What the coordinator does for the deletion of garbage and of documents.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::*;
use e2llm_api::ErrorCode;
use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

async fn delete(cluster: &Cluster, job: &str) -> Result<DeleteJobResponse, Status> {
    let request = DeleteJobRequest { job_id: job.into() };
    cluster.client().delete_job(request).await.map(tonic::Response::into_inner)
}

async fn run_to_its_end(cluster: &Cluster, job: &str, ids: &[&str]) {
    cluster.submit(spec(JobKind::Encode, job), documents(ids)).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Encode);
    for task in worker.take(8).await {
        worker.succeed(&task, vec![encoded(&task.rows[0], "t")]).await;
    }
    assert_eq!(cluster.status(job).await.state, "succeeded");
}

async fn is_submitting(cluster: &Cluster) -> bool {
    let mut held = cluster.client().held_texts(HeldTextsRequest {}).await.unwrap().into_inner();
    held.message().await.unwrap().unwrap().submitting
}

async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("waited in vain for: {what}");
}

#[tokio::test]
async fn a_job_that_has_ended_can_be_deleted_and_only_then() {
    let cluster = Cluster::start(small()).await;
    run_to_its_end(&cluster, "done", &["a"]).await;
    cluster.submit(spec(JobKind::Encode, "open"), documents(&["b"])).await.unwrap();
    let refused = delete(&cluster, "open").await.unwrap_err();
    assert_eq!(ErrorCode::of(&refused), ErrorCode::InvalidArgument);
    assert!(refused.message().contains("`e2llm jobs cancel open`"), "{refused}");
    assert_eq!(cluster.status("open").await.state, "running");
    cluster.client().cancel_job(CancelJobRequest { job_id: "open".into() }).await.unwrap();
    for job in ["done", "open"] {
        let stored = cluster.store.list(&format!("jobs/{job}")).await.unwrap().len() as u64;
        assert_eq!(delete(&cluster, job).await.unwrap().objects, stored);
        assert!(cluster.store.list(&format!("jobs/{job}")).await.unwrap().is_empty());
        assert_eq!(ErrorCode::of(&delete(&cluster, job).await.unwrap_err()), ErrorCode::NotFound);
    }
}

#[tokio::test]
async fn a_damaged_job_can_be_deleted() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a"])).await.unwrap();
    let store = cluster.store.clone();
    store.delete("jobs/job/plan/000000").await.unwrap();
    let _ = store.create("jobs/job/plan/000000", "damage").await.unwrap();
    let cluster = cluster.restart().await;
    let held = cluster.client().held_texts(HeldTextsRequest {}).await.unwrap().into_inner();
    let told: Vec<_> = tokio_stream::StreamExt::collect(held).await;
    let error = told.into_iter().find_map(Result::err).expect("what a damaged job holds is not known");
    assert_eq!(ErrorCode::of(&error), ErrorCode::Corrupt);
    delete(&cluster, "job").await.unwrap();
    assert!(store.list("jobs").await.unwrap().is_empty());
}

#[tokio::test]
async fn while_rows_are_submitted_whoever_asks_is_told() {
    let cluster = Cluster::start(small()).await;
    assert!(!is_submitting(&cluster).await);
    let (sender, requests) = mpsc::channel(8);
    for request in requests_of("job", &["a"]) {
        sender.send(request).await.unwrap();
    }
    let mut client = cluster.client();
    let submission = tokio::spawn(async move { client.submit_job(ReceiverStream::new(requests)).await });
    eventually("the submission", async || is_submitting(&cluster).await).await;
    drop(sender);
    submission.await.unwrap().unwrap();
    assert!(!is_submitting(&cluster).await);
}

fn requests_of(job: &str, ids: &[&str]) -> Vec<SubmitJobRequest> {
    requests(spec(JobKind::Encode, job), documents(ids))
}

#[tokio::test]
async fn a_submission_looks_for_texts_only_when_none_are_being_deleted() {
    let cluster = Cluster::start(small()).await;
    cluster.store.begin_text_sweep(1).await.unwrap();
    let mut client = cluster.client();
    let waiting = requests_of("job", &["a", "b"]);
    let submission = tokio::spawn(async move { client.submit_job(tokio_stream::iter(waiting)).await });
    eventually("the submission to register", async || is_submitting(&cluster).await).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(cluster.store.list("texts").await.unwrap().is_empty());
    assert!(!submission.is_finished());
    cluster.store.end_text_sweep().await.unwrap();
    assert_eq!(submission.await.unwrap().unwrap().into_inner().rows, 2);
    assert_eq!(cluster.store.list("texts").await.unwrap().len(), 2);
}

#[tokio::test]
async fn jobs_are_found_by_the_documents_they_were_given() {
    let cluster = Cluster::start(small()).await;
    run_to_its_end(&cluster, "encoded", &["a", "b"]).await;
    let question = Part::Row(Row {
        id: "b".into(),
        doc_ids: vec!["a".into(), "x".into()],
        question: "Why?".into(),
        ..Default::default()
    });
    cluster.submit(spec(JobKind::Ask, "asked"), vec![question]).await.unwrap();
    let elsewhere = JobSpec { collection: "other".into(), ..spec(JobKind::Encode, "elsewhere") };
    cluster.submit(elsewhere, documents(&["a"])).await.unwrap();
    let of = async |ids: &[&str]| {
        let doc_ids = ids.iter().map(|id| (*id).to_owned()).collect();
        let request = JobsOfRequest { collection: "c".into(), doc_ids };
        let jobs = cluster.client().jobs_of(request).await.unwrap().into_inner().jobs;
        jobs.into_iter().map(|job| (job.status.unwrap().job_id, job.doc_ids)).collect::<Vec<_>>()
    };
    let found = |job: &str, ids: &[&str]| (job.to_owned(), ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
    assert_eq!(of(&["a", "b"]).await, [found("asked", &["a"]), found("encoded", &["a", "b"])]);
    assert_eq!(of(&["b"]).await, [found("encoded", &["b"])], "the id of a question is not that of a document");
    assert_eq!(of(&["nobody"]).await, []);
    let request = JobsOfRequest { collection: "c".into(), doc_ids: vec!["a".into(); 1001] };
    assert!(cluster.client().jobs_of(request).await.unwrap_err().message().contains("1001"));
}
