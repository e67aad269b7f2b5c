//! What a job may ask for: priority, parallelism, attempts, a bundle, one question for all, retention, to be resumed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::*;
use e2llm_api::ErrorCode;
use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::*;
use e2llm_coordinator::CoordinatorOptions;
use e2llm_runtime::code_of;

async fn cancel(cluster: &Cluster, job: &str) {
    cluster.client().cancel_job(CancelJobRequest { job_id: job.into() }).await.unwrap();
}

async fn resume(cluster: &Cluster, job: &str) -> JobStatus {
    cluster.client().resume_job(ResumeJobRequest { job_id: job.into() }).await.unwrap().into_inner()
}

async fn expire(cluster: &Cluster, dry_run: bool) -> ExpireJobsResponse {
    cluster.client().expire_jobs(ExpireJobsRequest { dry_run }).await.unwrap().into_inner()
}

#[tokio::test]
async fn jobs_of_a_higher_priority_go_first_and_equal_ones_take_turns() {
    let cluster = Cluster::start(small()).await;
    for (job, priority) in [("bulk", -1), ("one", 5), ("two", 5)] {
        let spec = JobSpec { priority, ..spec(JobKind::Encode, job) };
        cluster.submit(spec, documents(&["a", "b"])).await.unwrap();
    }
    let tasks = cluster.worker("w", Stage::Encode).take(6).await;
    let jobs: Vec<&str> = tasks.iter().map(|task| task.job_id.as_str()).collect();
    assert_eq!(jobs, ["one", "two", "one", "two", "bulk", "bulk"]);
    assert_eq!(cluster.status("one").await.priority, 5);
}

#[tokio::test]
async fn a_job_runs_no_more_tasks_at_a_time_than_it_asked_for() {
    let cluster = Cluster::start(small()).await;
    let wish = JobSpec { parallelism: 2, ..spec(JobKind::Encode, "job") };
    cluster.submit(wish, documents(&["a", "b", "c"])).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Encode);
    let tasks = worker.take(8).await;
    assert_eq!(tasks.len(), 2);
    assert_eq!(cluster.status("job").await.tasks_running, 2);
    assert!(worker.take(8).await.is_empty());
    worker.succeed(&tasks[0], vec![encoded(&tasks[0].rows[0], "t")]).await;
    assert_eq!(worker.take_one().await.rows[0].id, "c");
}

#[tokio::test]
async fn only_workers_with_the_bundle_a_job_names_get_its_tasks() {
    let cluster = Cluster::start(small()).await;
    let wish = JobSpec { fingerprint: "abcd".into(), ..spec(JobKind::Encode, "job") };
    cluster.submit(wish, documents(&["a"])).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Encode);
    let ask =
        |fingerprint: &str| ReportStatusRequest { slots: 1, fingerprint: fingerprint.into(), ..Default::default() };
    assert!(worker.report(ask("ef012345")).await.tasks.is_empty());
    assert_eq!(worker.report(ask("abcd0123")).await.tasks.len(), 1);
}

#[tokio::test]
async fn a_job_says_how_often_its_rows_are_tried_and_each_error_says_how_often_it_was() {
    let cluster = Cluster::start(small()).await;
    let wish = JobSpec { max_attempts: 2, ..spec(JobKind::Encode, "job") };
    cluster.submit(wish, documents(&["a"])).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Encode);
    for _ in 0..2 {
        let task = worker.take_one().await;
        worker.fail(&task, ErrorCode::Unavailable).await;
        cluster.clock.advance(Duration::from_secs(5));
    }
    let (rows, status) = cluster.watch("job").await.finish().await;
    assert_eq!((codes(&rows), rows[0].attempts), (vec!["UNAVAILABLE"], 2));
    assert_eq!((status.rows_failed, status.retries), (1, 1));
    let greedy = JobSpec { max_attempts: 1000, ..spec(JobKind::Encode, "greedy") };
    let refused = cluster.submit(greedy, vec![]).await.unwrap_err();
    assert!(refused.message().contains("1000"), "{refused}");
}

#[tokio::test]
async fn failed_attempts_are_remembered_across_restarts() {
    let options = CoordinatorOptions { max_attempts: 3, ..small() };
    let mut cluster = Cluster::start(options).await;
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["poison"])).await.unwrap();
    for _ in 0..3 {
        cluster.worker("w", Stage::Encode).take_one().await;
        cluster.clock.advance(Duration::from_secs(60));
        // The lease is seen to have run out, and the loss is written down.
        cluster.worker("other", Stage::Decode).take(1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        cluster.clock.advance(Duration::from_secs(60));
        cluster = cluster.restart().await;
    }
    let (rows, _) = cluster.watch("job").await.finish().await;
    assert_eq!((codes(&rows), rows[0].attempts), (vec!["UNAVAILABLE"], 3));
}

#[tokio::test]
async fn when_the_store_is_full_rows_split_off_get_one_more_chance_each() {
    let options = CoordinatorOptions { encode_rows: 2, split_after: 1, max_attempts: 5, ..small() };
    let cluster = Cluster::start(options).await;
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b"])).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Encode);
    let task = worker.take_one().await;
    worker.fail(&task, ErrorCode::ResourceExhausted).await;
    for single in worker.take(2).await {
        worker.fail(&single, ErrorCode::ResourceExhausted).await;
    }
    let (rows, _) = cluster.watch("job").await.finish().await;
    assert_eq!(codes(&rows), ["RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]);
}

#[tokio::test]
async fn one_question_is_asked_of_every_document_new_or_encoded_already() {
    let cluster = Cluster::start(small()).await;
    cluster.run_workers();
    let wish = JobSpec { question: "why?".into(), ..spec(JobKind::Ask, "job") };
    let rows = [documents(&["new"]), vec![bare("known"), bare("new")]].concat();
    cluster.submit(wish, rows).await.unwrap();
    let (rows, status) = cluster.watch("job").await.finish().await;
    assert_eq!(codes(&rows), ["OK", "OK", "DUPLICATE_ID"]);
    assert_eq!((rows[0].text.as_str(), rows[1].text.as_str()), ("about new", "about known"));
    assert_eq!(status.rows_encoded, 1);
    let wrong = JobSpec { question: "why?".into(), ..spec(JobKind::Encode, "wrong") };
    assert_eq!(code_of(&cluster.submit(wrong, vec![]).await.unwrap_err()), ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn a_cancelled_job_can_be_resumed_and_does_only_what_was_not_done() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b", "c"])).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Encode);
    let task = worker.take_one().await;
    worker.succeed(&task, vec![encoded(&task.rows[0], "t")]).await;
    for _ in 0..2 {
        cancel(&cluster, "job").await;
        assert!(worker.take(8).await.is_empty());
        let status = resume(&cluster, "job").await;
        assert_eq!((status.state.as_str(), status.rows_done, status.ended_unix_ms), ("running", 1, 0));
        assert_eq!(resume(&cluster, "job").await.state, "running", "once is enough");
    }
    let cluster = cluster.restart().await;
    cluster.run_workers();
    let (rows, status) = cluster.watch("job").await.finish().await;
    assert_eq!((codes(&rows), status.state.as_str()), (vec!["OK", "OK", "OK"], "succeeded"));
    assert_eq!(status.rows_encoded, 3);
}

#[tokio::test]
async fn a_submission_that_was_cancelled_half_way_goes_on_after_it_is_resumed() {
    let cluster = Cluster::start(small()).await;
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    let mut client = cluster.client();
    let submission =
        tokio::spawn(async move { client.submit_job(tokio_stream::wrappers::ReceiverStream::new(receiver)).await });
    for request in requests(spec(JobKind::Encode, "job"), documents(&["a"])) {
        sender.send(request).await.unwrap();
    }
    let mut worker = cluster.worker("w", Stage::Encode);
    while worker.take(1).await.is_empty() {}
    cancel(&cluster, "job").await;
    drop(sender);
    assert!(submission.await.unwrap().is_err());
    let ignored = cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b"])).await.unwrap();
    assert_eq!(ignored.rows, 1, "a cancelled job takes no rows");
    resume(&cluster, "job").await;
    let planned = cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b"])).await.unwrap();
    assert_eq!(planned.rows, 2);
    cluster.run_workers();
    assert_eq!(cluster.watch("job").await.finish().await.0.len(), 2);
}

#[tokio::test]
async fn a_job_is_deleted_with_its_results_when_its_retention_is_over() {
    let cluster = Cluster::start(small()).await;
    for (job, retention_s) in [("short", 1), ("long", 1000), ("gone", 1), ("open", 1)] {
        let wish = JobSpec { retention_s, ..spec(JobKind::Encode, job) };
        let rows = if job == "open" { documents(&["x"]) } else { vec![] };
        cluster.submit(wish, rows).await.unwrap();
    }
    let status = cluster.status("short").await;
    assert_eq!(status.expires_unix_ms, status.ended_unix_ms + 1000);
    assert!(expire(&cluster, false).await.job_ids.is_empty());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let dry = expire(&cluster, true).await;
    assert_eq!(dry.job_ids, ["gone", "short"]);
    assert_eq!(expire(&cluster, false).await, dry, "a dry run tells what the real one does");
    let left = cluster.client().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    assert_eq!(left.iter().map(|job| job.job_id.as_str()).collect::<Vec<_>>(), ["long", "open"]);
    assert!(cluster.store.list("jobs/short").await.unwrap().is_empty());
    let missing = cluster.client().get_job(GetJobRequest { job_id: "short".into() }).await.unwrap_err();
    assert_eq!(code_of(&missing), ErrorCode::NotFound);
}

#[tokio::test]
async fn what_is_left_of_a_half_deleted_job_goes_with_the_next_sweep() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(JobKind::Encode, "job"), vec![]).await.unwrap();
    cluster.store.delete("jobs/job/spec").await.unwrap();
    let cluster = cluster.restart().await;
    assert!(expire(&cluster, false).await.job_ids.len() <= 1);
    assert!(cluster.store.list("jobs/job").await.unwrap().is_empty());
}

#[tokio::test]
async fn texts_of_jobs_that_have_no_result_are_held() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(JobKind::Encode, "open"), documents(&["a", "b"])).await.unwrap();
    cluster.submit(spec(JobKind::Encode, "cancelled"), documents(&["c"])).await.unwrap();
    cancel(&cluster, "cancelled").await;
    let held = || async {
        let mut hashes = Vec::new();
        let mut batches = cluster.client().held_texts(HeldTextsRequest {}).await.unwrap().into_inner();
        while let Some(batch) = batches.message().await.unwrap() {
            hashes.extend(batch.text_hashes);
        }
        hashes
    };
    assert_eq!(held().await.len(), 3);
    let mut worker = cluster.worker("w", Stage::Encode);
    for task in worker.take(8).await {
        worker.succeed(&task, vec![encoded(&task.rows[0], "t")]).await;
    }
    assert_eq!(cluster.status("open").await.state, "succeeded");
    assert_eq!(held().await.len(), 1, "only the cancelled job's");
}

#[tokio::test]
async fn a_status_tells_where_the_workers_time_went() {
    let cluster = Cluster::start(small()).await;
    let rows: Vec<Part> = documents(&["a", "b"]);
    cluster.submit(spec(JobKind::Summarize, "job"), rows).await.unwrap();
    for (stage, tasks_open) in [(Stage::Encode, 2), (Stage::Decode, 2)] {
        assert_eq!(cluster.status("job").await.tasks_open, tasks_open);
        let mut worker = cluster.worker("w", stage);
        for task in worker.take(8).await {
            let row = &task.rows[0];
            let result = if stage == Stage::Encode { encoded(row, "t") } else { decoded(row) };
            worker.succeed(&task, vec![result]).await;
        }
    }
    let status = cluster.status("job").await;
    assert_eq!((status.encode_busy_us, status.decode_busy_us, status.tasks_open), (2000, 2000, 0));
    assert!(status.ended_unix_ms >= status.created_unix_ms && status.created_unix_ms > 0);
}
