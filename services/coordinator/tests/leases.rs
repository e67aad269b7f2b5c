//! Who works on what: leases, attempts, cancellation, restarts. Time is a clock that the test moves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::*;
use e2llm_api::ErrorCode;
use e2llm_api::v1::*;
use e2llm_coordinator::CoordinatorOptions;
use e2llm_runtime::{Clock, ManualClock};

const JOB: &str = "job";

async fn with_documents(options: CoordinatorOptions, ids: &[&str]) -> (Cluster, HandWorker, HandWorker) {
    let cluster = Cluster::start(options).await;
    cluster.submit(spec(JobKind::Encode, JOB), documents(ids)).await.unwrap();
    let (a, b) = (cluster.worker("a", Stage::Encode), cluster.worker("b", Stage::Encode));
    (cluster, a, b)
}

#[tokio::test]
async fn a_silent_workers_task_goes_to_another_and_its_late_result_is_dropped() {
    let (cluster, mut a, mut b) = with_documents(small(), &["x"]).await;
    let first = a.take_one().await;
    assert_eq!((first.task_id.as_str(), first.attempt), ("encode-00000000", 1));
    assert!(b.take(1).await.is_empty());
    cluster.clock.advance(Duration::from_secs(16));
    assert!(b.take(1).await.is_empty(), "it waits a moment after a failure");
    cluster.clock.advance(Duration::from_secs(1));
    let second = b.take_one().await;
    assert_eq!((second.task_id.as_str(), second.attempt), ("encode-00000000", 2));
    let mut zombie = encoded(&first.rows[0], "x");
    zombie.id = "zombie".into();
    assert_eq!(a.succeed(&first, vec![zombie]).await.acknowledged, [reference(&first)], "it may forget it");
    assert_eq!(cluster.status(JOB).await.rows_done, 0);
    b.succeed(&second, vec![encoded(&second.rows[0], "x")]).await;
    let (rows, _) = cluster.watch(JOB).await.finish().await;
    assert_eq!((rows.len(), rows[0].id.as_str()), (1, "x"));
}

#[tokio::test]
async fn a_task_whose_worker_was_lost_runs_alone_so_that_others_are_not_blamed_again() {
    let (cluster, mut a, mut b) = with_documents(small(), &["poison", "x", "y"]).await;
    assert_eq!(a.take(2).await.len(), 2, "nothing is suspected yet");
    cluster.clock.advance(Duration::from_secs(16));
    b.take(0).await;
    cluster.clock.advance(Duration::from_secs(1));
    let names = |tasks: &[Task]| tasks.iter().map(|task| task.rows[0].id.clone()).collect::<Vec<_>>();
    let alone = b.take(2).await;
    assert_eq!(names(&alone), ["poison"]);
    let held = vec![reference(&alone[0])];
    let more = b.report(ReportStatusRequest { slots: 1, in_progress: held, ..Default::default() }).await.tasks;
    assert!(more.is_empty(), "not even a task that nothing speaks against");
    let other = cluster.worker("c", Stage::Encode).take(2).await;
    assert_eq!(names(&other), ["x"], "the other suspect runs alone too");
    let third = cluster.worker("d", Stage::Encode).take(2).await;
    assert_eq!(names(&third), ["y"]);
}

#[tokio::test]
async fn a_worker_gets_nothing_more_until_its_hands_are_free_for_a_suspect() {
    let (cluster, mut a, mut b) = with_documents(small(), &["x", "y", "z"]).await;
    a.take_one().await;
    let second = b.take_one().await;
    cluster.clock.advance(Duration::from_secs(14));
    b.holds(&second).await;
    cluster.clock.advance(Duration::from_secs(2));
    b.holds(&second).await;
    cluster.clock.advance(Duration::from_secs(1));
    let held = vec![reference(&second)];
    let more = b.report(ReportStatusRequest { slots: 1, in_progress: held, ..Default::default() }).await.tasks;
    assert!(more.is_empty(), "x waits for it");
    b.succeed(&second, vec![encoded(&second.rows[0], "y")]).await;
    let alone = b.take(2).await;
    assert_eq!(alone.iter().map(|task| task.rows[0].id.as_str()).collect::<Vec<_>>(), ["x"]);
}

#[tokio::test]
async fn heartbeats_renew_a_lease() {
    let (cluster, mut a, mut b) = with_documents(small(), &["x"]).await;
    let task = a.take_one().await;
    for _ in 0..10 {
        cluster.clock.advance(Duration::from_secs(14));
        assert!(a.holds(&task).await.revoked.is_empty());
    }
    assert!(b.take(1).await.is_empty());
    cluster.clock.advance(Duration::from_secs(15));
    assert_eq!(a.holds(&task).await.revoked, [reference(&task)], "a lease that ran out is not renewed");
}

#[tokio::test]
async fn results_sent_twice_count_once() {
    let (cluster, mut a, _) = with_documents(small(), &["x", "y"]).await;
    let task = a.take_one().await;
    for _ in 0..2 {
        let answer = a.succeed(&task, vec![encoded(&task.rows[0], "one two")]).await;
        assert_eq!(answer.acknowledged, [reference(&task)]);
    }
    let status = cluster.status(JOB).await;
    assert_eq!((status.rows_done, status.source_tokens), (1, 2));
}

#[tokio::test]
async fn a_restarted_coordinator_adopts_what_workers_hold_and_repeats_nothing() {
    let (cluster, mut a, _) = with_documents(small(), &["x", "y", "z"]).await;
    let tasks = a.take(2).await;
    a.succeed(&tasks[0], vec![encoded(&tasks[0].rows[0], "t")]).await;

    let cluster = cluster.restart().await;
    let (mut a, mut b) = (cluster.worker("a", Stage::Encode), cluster.worker("b", Stage::Encode));
    assert_eq!(cluster.status(JOB).await.rows_done, 1, "counts come from the commits");
    assert!(a.holds(&tasks[1]).await.revoked.is_empty());
    let rest = b.take(8).await;
    assert_eq!(rest.iter().map(|task| task.rows[0].id.as_str()).collect::<Vec<_>>(), ["z"]);
    a.succeed(&tasks[1], vec![encoded(&tasks[1].rows[0], "t")]).await;
    b.succeed(&rest[0], vec![encoded(&rest[0].rows[0], "t")]).await;
    let (rows, status) = cluster.watch(JOB).await.finish().await;
    assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["x", "y", "z"]);
    assert_eq!((status.state.as_str(), status.rows_done), ("succeeded", 3));
}

#[tokio::test]
async fn a_restarted_coordinator_takes_results_of_attempts_it_never_saw() {
    let (cluster, mut a, _) = with_documents(small(), &["x"]).await;
    let task = a.take_one().await;
    let cluster = cluster.restart().await;
    let answer = cluster.worker("a", Stage::Encode).succeed(&task, vec![encoded(&task.rows[0], "t")]).await;
    assert_eq!(answer.acknowledged, [reference(&task)]);
    assert_eq!(cluster.status(JOB).await.state, "succeeded");
}

/// A clock by which the first look takes ten seconds.
#[derive(Default)]
struct SlowStart {
    rest: ManualClock,
    has_begun: AtomicBool,
}

impl Clock for SlowStart {
    fn now(&self) -> Instant {
        let now = self.rest.now();
        if !self.has_begun.swap(true, Ordering::SeqCst) {
            self.rest.advance(Duration::from_secs(10));
        }
        now
    }
}

#[tokio::test]
async fn workers_are_waited_for_from_the_end_of_loading_on() {
    let (cluster, mut a, _) = with_documents(small(), &["x"]).await;
    a.take_one().await;
    let options = CoordinatorOptions { adopt_grace: Duration::from_secs(4), ..small() };
    let clock = Arc::new(SlowStart::default());
    let cluster = cluster.restart_with(options, clock.clone()).await;
    let mut b = cluster.worker("b", Stage::Encode);
    assert!(b.take(1).await.is_empty(), "loading took longer than the wait");
    clock.rest.advance(Duration::from_secs(4));
    assert_eq!(b.take(1).await.len(), 1);
}

#[tokio::test]
async fn after_a_restart_tasks_wait_for_workers_that_may_still_hold_them() {
    let options = CoordinatorOptions { adopt_grace: Duration::from_secs(4), ..small() };
    let (cluster, mut a, _) = with_documents(options, &["x"]).await;
    let task = a.take_one().await;
    let cluster = cluster.restart().await;
    let (mut a, mut b) = (cluster.worker("a", Stage::Encode), cluster.worker("b", Stage::Encode));
    assert!(b.take(1).await.is_empty());
    assert!(a.holds(&task).await.revoked.is_empty());
    cluster.clock.advance(Duration::from_secs(4));
    assert!(b.take(1).await.is_empty(), "it was adopted");
    cluster.clock.advance(Duration::from_secs(12));
    b.take(0).await;
    cluster.clock.advance(Duration::from_secs(1));
    assert_eq!(b.take_one().await.attempt, 2, "and expired like any other");
}

#[tokio::test]
async fn a_summary_job_goes_on_after_a_restart_between_its_stages() {
    let cluster = Cluster::start(CoordinatorOptions { encode_rows: 2, ..small() }).await;
    cluster.submit(spec(JobKind::Summarize, JOB), documents(&["x", "y"])).await.unwrap();
    let mut encoder = cluster.worker("e", Stage::Encode);
    let task = encoder.take_one().await;
    encoder.succeed(&task, task.rows.iter().map(|row| encoded(row, "a b")).collect()).await;
    let mut decoder = cluster.worker("d", Stage::Decode);
    let first = decoder.take_one().await;
    decoder.succeed(&first, vec![decoded(&first.rows[0])]).await;

    let cluster = cluster.restart().await;
    let status = cluster.status(JOB).await;
    assert_eq!((status.rows_encoded, status.rows_done, status.source_tokens), (2, 1, 4));
    let mut decoder = cluster.worker("d2", Stage::Decode);
    let second = decoder.take_one().await;
    assert_eq!(second.rows[0].id, "y");
    decoder.succeed(&second, vec![decoded(&second.rows[0])]).await;
    assert!(cluster.worker("e2", Stage::Encode).take(1).await.is_empty());

    let cluster = cluster.restart().await;
    let (rows, status) = cluster.watch(JOB).await.finish().await;
    assert_eq!(rows.iter().map(|row| row.text.as_str()).collect::<Vec<_>>(), ["about x", "about y"]);
    assert_eq!((status.state.as_str(), status.generated_tokens), ("succeeded", 6));
}

#[tokio::test]
async fn a_task_that_keeps_failing_is_split_and_only_the_row_at_fault_becomes_an_error() {
    let options = CoordinatorOptions { encode_rows: 3, max_attempts: 2, ..small() };
    let (mut cluster, mut a, _) = with_documents(options, &["x", "poison", "z"]).await;
    for attempt in 1..=2 {
        let task = a.take_one().await;
        assert_eq!((task.rows.len(), task.attempt), (3, attempt));
        a.fail(&task, ErrorCode::Unavailable).await;
        cluster.clock.advance(Duration::from_secs(5));
    }
    cluster = cluster.restart().await;
    let mut a = cluster.worker("a", Stage::Encode);
    let mut tried = Vec::new();
    while let [task] = a.take(8).await.as_slice() {
        assert_eq!(task.rows.len(), 1, "alone: a restart has forgotten whether a worker was lost");
        tried.push(task.rows[0].id.clone());
        match task.rows[0].id.as_str() {
            "poison" => a.fail(task, ErrorCode::Unavailable).await,
            _ => a.succeed(task, vec![encoded(&task.rows[0], "t")]).await,
        };
        cluster.clock.advance(Duration::from_secs(5));
    }
    assert_eq!(tried, ["x", "poison", "poison", "z"]);
    let (rows, _) = cluster.watch(JOB).await.finish().await;
    assert_eq!(codes(&rows), ["OK", "UNAVAILABLE", "OK"]);
    let message = &rows[1].error.as_ref().unwrap().message;
    assert!(message.contains("tried 2 times"), "{message}");
    assert!(a.take(1).await.is_empty());
}

#[tokio::test]
async fn a_failure_that_would_repeat_itself_is_not_tried_again() {
    let (cluster, mut a, _) = with_documents(small(), &["x"]).await;
    let task = a.take_one().await;
    a.fail(&task, ErrorCode::Corrupt).await;
    let (rows, _) = cluster.watch(JOB).await.finish().await;
    assert_eq!(codes(&rows), ["CORRUPT"]);
    assert_eq!(rows[0].error.as_ref().unwrap().message, "it broke");
}

#[tokio::test]
async fn a_task_handed_back_is_free_at_once_and_no_failure() {
    let options = CoordinatorOptions { max_attempts: 2, ..small() };
    let (_cluster, mut a, mut b) = with_documents(options, &["x"]).await;
    for attempt in 1..=4 {
        let task = a.take_one().await;
        assert_eq!(task.attempt, attempt);
        a.fail(&task, ErrorCode::Cancelled).await;
    }
    assert_eq!(b.take_one().await.attempt, 5);
}

#[tokio::test]
async fn results_that_do_not_fit_the_task_do_not_count() {
    let (cluster, mut a, _) = with_documents(CoordinatorOptions { encode_rows: 2, ..small() }, &["x", "y"]).await;
    let task = a.take_one().await;
    a.succeed(&task, vec![encoded(&task.rows[0], "t")]).await;
    assert_eq!(cluster.status(JOB).await.rows_done, 0);
    assert_eq!(a.take(8).await.len(), 2, "its rows are tried one by one");
}

#[tokio::test]
async fn a_cancelled_job_is_taken_from_its_workers_and_stays_cancelled() {
    let (cluster, mut a, mut b) = with_documents(small(), &["x", "y"]).await;
    let tasks = a.take(1).await;
    let watcher = cluster.watch(JOB).await;
    let status = cluster.client().cancel_job(CancelJobRequest { job_id: JOB.into() }).await.unwrap().into_inner();
    assert_eq!(status.state, "cancelled");
    assert_eq!(watcher.finish().await.1.state, "cancelled");
    assert_eq!(a.holds(&tasks[0]).await.revoked, [reference(&tasks[0])]);
    assert!(b.take(1).await.is_empty());
    let cluster = cluster.restart().await;
    assert!(cluster.worker("c", Stage::Encode).take(1).await.is_empty());
    assert_eq!(cluster.status(JOB).await.state, "cancelled");
}

#[tokio::test]
async fn jobs_take_turns() {
    let cluster = Cluster::start(small()).await;
    for job in ["one", "two"] {
        cluster.submit(spec(JobKind::Encode, job), documents(&["a", "b", "c"])).await.unwrap();
    }
    let tasks = cluster.worker("w", Stage::Encode).take(4).await;
    let jobs: Vec<&str> = tasks.iter().map(|task| task.job_id.as_str()).collect();
    assert_eq!(jobs, ["one", "two", "one", "two"]);
}

#[tokio::test]
async fn a_waiting_report_gets_its_task_the_moment_it_is_ready() {
    let cluster = Cluster::start(CoordinatorOptions { long_poll: Duration::from_secs(60), ..small() }).await;
    let mut worker = cluster.worker("w", Stage::Encode);
    let waiting = tokio::spawn(async move { worker.take_one().await });
    tokio::task::yield_now().await;
    cluster.submit(spec(JobKind::Encode, JOB), documents(&["x"])).await.unwrap();
    let task = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
    assert_eq!(task.rows[0].id, "x");
}

#[tokio::test]
async fn a_damaged_record_is_named_and_its_job_left_out() {
    let (cluster, mut a, _) = with_documents(small(), &["x"]).await;
    cluster.submit(spec(JobKind::Encode, "sound"), documents(&["y"])).await.unwrap();
    let task = a.take_one().await;
    a.succeed(&task, vec![encoded(&task.rows[0], "t")]).await;
    for name in ["plan/000000", "result"] {
        let path = format!("jobs/{JOB}/{name}");
        let mut bytes = cluster.store.get(&path).await.unwrap().unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        cluster.store.delete(&path).await.unwrap();
        assert_eq!(cluster.store.create(&path, bytes).await.unwrap(), e2llm_store::Created::New);
    }
    let cluster = cluster.restart().await;
    let error = cluster.client().get_job(GetJobRequest { job_id: JOB.into() }).await.unwrap_err();
    assert_eq!(e2llm_runtime::code_of(&error), ErrorCode::Corrupt);
    assert!(error.message().contains("jobs/job/"), "{error}");
    assert_eq!(cluster.status("sound").await.state, "running");
}
