//! What becomes of the rows of a job.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::*;
use e2llm_api::{ErrorCode, row_error};
use e2llm_coordinator::CoordinatorOptions;
use e2llm_runtime::code_of;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

#[tokio::test]
async fn a_job_of_too_many_rows_is_refused_with_the_limit() {
    let cluster = Cluster::start(CoordinatorOptions { max_rows: 2, ..small() }).await;
    let refused = cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b", "c"])).await.unwrap_err();
    assert_eq!(code_of(&refused), ErrorCode::InvalidArgument);
    assert!(refused.message().contains("more than 2 rows"), "{refused}");
    cluster.submit(spec(JobKind::Encode, "small"), documents(&["a", "b"])).await.unwrap();
}

#[tokio::test]
async fn an_encode_job_gives_one_record_per_document_in_input_order() {
    let cluster = Cluster::start(CoordinatorOptions { encode_rows: 3, ..small() }).await;
    cluster.run_workers();
    let ids: Vec<String> = (0..40).map(|number| format!("doc{number}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let submitted = cluster.submit(spec(JobKind::Encode, "job"), documents(&ids)).await.unwrap();
    assert_eq!((submitted.job_id.as_str(), submitted.rows), ("job", 40));
    let (rows, status) = cluster.watch("job").await.finish().await;
    for (number, row) in rows.iter().enumerate() {
        let hash = cluster.store.put_text(&format!("text of doc{number}")).await.unwrap().hash;
        assert_eq!((row.number, row.id.as_str()), (number as u64, ids[number]));
        assert_eq!(row.record.as_ref().unwrap().text_hash, hash, "the text arrived in the store as it was");
    }
    assert_eq!(status.state, "succeeded");
    assert_eq!((status.rows, status.rows_encoded, status.rows_done, status.rows_failed), (40, 40, 40, 0));
    assert_eq!(status.source_tokens, 40 * 3);
}

#[tokio::test]
async fn a_text_may_come_in_pieces_that_cut_code_points() {
    let cluster = Cluster::start(small()).await;
    cluster.run_workers();
    let text = "größer als 文書";
    let mut parts: Vec<Part> =
        text.as_bytes().chunks(1).map(|byte| Part::Piece(TextPiece { text: byte.to_vec() })).collect();
    parts.push(bare("a"));
    cluster.submit(spec(JobKind::Encode, "job"), parts).await.unwrap();
    let (rows, _) = cluster.watch("job").await.finish().await;
    assert_eq!(cluster.store.get_text(&rows[0].record.as_ref().unwrap().text_hash).await.unwrap(), text);
}

#[tokio::test]
async fn a_bad_row_is_an_error_line_and_the_rest_proceeds() {
    let cluster = Cluster::start(small()).await;
    cluster.run_workers();
    let not_utf8 = Part::Piece(TextPiece { text: vec![b'a', 0xff] });
    let refused =
        Row { id: "e.pdf".into(), error: Some(row_error(ErrorCode::UnsupportedFormat, "a PDF")), ..Default::default() };
    let mut parts = documents(&["a", "b", "a", "../c"]);
    parts.extend([not_utf8, bare("d"), Part::Row(refused), bare("f")]);
    parts.extend(document("g", ""));
    parts.extend(documents(&["h"]));
    cluster.submit(spec(JobKind::Encode, "job"), parts).await.unwrap();
    let (rows, status) = cluster.watch("job").await.finish().await;
    let expected = [
        "OK",
        "OK",
        "DUPLICATE_ID",
        "INVALID_ID",
        "NOT_UTF8",
        "UNSUPPORTED_FORMAT",
        "EMPTY_DOCUMENT",
        "EMPTY_DOCUMENT",
        "OK",
    ];
    assert_eq!(codes(&rows), expected);
    let duplicate = &rows[2].error.as_ref().unwrap().message;
    assert!(duplicate.contains("\"a\"") && duplicate.contains("row 2") && duplicate.contains("row 0"), "{duplicate}");
    assert_eq!((status.rows_done, status.rows_failed), (9, 6));
}

#[tokio::test]
async fn a_summary_starts_before_the_last_row_was_submitted() {
    let cluster = Cluster::start(small()).await;
    cluster.run_workers();
    let (sender, receiver) = mpsc::channel(16);
    let mut client = cluster.client();
    let submission = tokio::spawn(async move { client.submit_job(ReceiverStream::new(receiver)).await });
    for request in requests(spec(JobKind::Summarize, "job"), documents(&["first"])) {
        sender.send(request).await.unwrap();
    }
    while cluster.client().get_job(GetJobRequest { job_id: "job".into() }).await.is_err() {
        tokio::task::yield_now().await;
    }
    let mut watcher = cluster.watch("job").await;
    let summary = watcher.next_row().await;
    assert_eq!(summary.text, "about first");
    assert_eq!(cluster.status("job").await.state, "planning");
    for part in documents(&["second"]) {
        sender.send(SubmitJobRequest { part: Some(part) }).await.unwrap();
    }
    drop(sender);
    assert_eq!(submission.await.unwrap().unwrap().into_inner().rows, 2);
    let (rows, status) = watcher.finish().await;
    assert_eq!((rows.len(), rows[0].text.as_str()), (1, "about second"));
    assert_eq!((status.rows_encoded, status.generated_tokens), (2, 6));
}

#[tokio::test]
async fn rows_of_a_finished_encode_task_are_decoded_while_others_are_still_encoded() {
    let cluster = Cluster::start(CoordinatorOptions { encode_rows: 2, ..small() }).await;
    let mut encoder = cluster.worker("e", Stage::Encode);
    let mut decoder = cluster.worker("d", Stage::Decode);
    cluster.submit(spec(JobKind::Summarize, "job"), documents(&["a", "b", "c"])).await.unwrap();
    let first = encoder.take_one().await;
    encoder.succeed(&first, vec![encoded(&first.rows[0], "x"), failed(&first.rows[1], ErrorCode::TooLarge)]).await;
    let ready = decoder.take(8).await;
    let rows: Vec<&str> = ready.iter().flat_map(|task| &task.rows).map(|row| row.id.as_str()).collect();
    assert_eq!(rows, ["a"], "b failed in encoding and c is not encoded");
    let status = cluster.status("job").await;
    assert_eq!((status.rows_encoded, status.rows_done, status.rows_failed), (1, 1, 1));
}

#[tokio::test]
async fn a_document_that_is_encoded_already_goes_straight_to_its_summary() {
    let cluster = Cluster::start(small()).await;
    let mut decoder = cluster.worker("d", Stage::Decode);
    cluster.submit(spec(JobKind::Summarize, "job"), vec![bare("stored")]).await.unwrap();
    let task = decoder.take_one().await;
    assert_eq!((task.rows[0].id.as_str(), task.spec.as_ref().unwrap().collection.as_str()), ("stored", "c"));
}

#[tokio::test]
async fn questions_go_to_decoders_and_share_ids_freely() {
    let cluster = Cluster::start(small()).await;
    cluster.run_workers();
    let question = |doc: &str, text: &str| {
        let doc_ids = if doc.is_empty() { vec![] } else { vec![doc.to_owned()] };
        Part::Row(Row { id: "q".into(), doc_ids, question: text.into(), ..Default::default() })
    };
    let parts = vec![
        question("a", "who?"),
        question("a", "when?"),
        question("a", " "),
        question("", "what?"),
        question("a/b", "?"),
    ];
    cluster.submit(spec(JobKind::Ask, "job"), parts).await.unwrap();
    let (rows, _) = cluster.watch("job").await.finish().await;
    assert_eq!(codes(&rows), ["OK", "OK", "INVALID_ARGUMENT", "INVALID_ARGUMENT", "INVALID_ID"]);
    assert_eq!(rows[1].text, "about qwhen?");
}

#[tokio::test]
async fn results_wait_for_the_rows_before_them() {
    let cluster = Cluster::start(small()).await;
    let mut worker = cluster.worker("w", Stage::Encode);
    cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b", "c"])).await.unwrap();
    let tasks = worker.take(3).await;
    for task in [&tasks[2], &tasks[0]] {
        worker.succeed(task, vec![encoded(&task.rows[0], "x")]).await;
    }
    let mut watcher = cluster.watch("job").await;
    assert_eq!(watcher.next_row().await.id, "a");
    worker.succeed(&tasks[1], vec![encoded(&tasks[1].rows[0], "x")]).await;
    let (rows, status) = watcher.finish().await;
    assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["b", "c"]);
    assert_eq!(status.state, "succeeded");
}

#[tokio::test]
async fn a_job_without_rows_succeeds() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(JobKind::Encode, "job"), vec![]).await.unwrap();
    let (rows, status) = cluster.watch("job").await.finish().await;
    assert_eq!((rows.len(), status.state.as_str()), (0, "succeeded"));
}

#[tokio::test]
async fn the_same_key_is_the_same_job() {
    let cluster = Cluster::start(small()).await;
    cluster.run_workers();
    let first = cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b"])).await.unwrap();
    let again = cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b"])).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(cluster.watch("job").await.finish().await.0.len(), 2);
    let other = cluster.submit(spec(JobKind::Summarize, "job"), vec![]).await.unwrap_err();
    assert!(other.message().contains("another kind"), "{other}");
    let jobs = cluster.client().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    assert_eq!(jobs.len(), 1);
}

#[tokio::test]
async fn a_submission_that_broke_off_goes_on_when_it_is_repeated() {
    let cluster = Cluster::start(small()).await;
    let (sender, receiver) = mpsc::channel(16);
    let mut client = cluster.client();
    let submission = tokio::spawn(async move { client.submit_job(ReceiverStream::new(receiver)).await });
    for request in requests(spec(JobKind::Encode, "job"), documents(&["a"])) {
        sender.send(request).await.unwrap();
    }
    let mut worker = cluster.worker("w", Stage::Encode);
    let mut tasks = vec![];
    while tasks.is_empty() {
        tasks = worker.take(1).await;
    }
    let busy = cluster.submit(spec(JobKind::Encode, "job"), documents(&["a"])).await.unwrap_err();
    assert_eq!(code_of(&busy), ErrorCode::Busy, "{busy}");
    submission.abort();
    let _ = submission.await;
    let cluster = cluster.restart().await;
    let other = cluster.submit(spec(JobKind::Encode, "job"), documents(&["x", "b"])).await.unwrap_err();
    assert!(other.message().contains("row 0 (\"x\")"), "{other}");
    let resumed = cluster.submit(spec(JobKind::Encode, "job"), documents(&["a", "b", "a"])).await.unwrap();
    assert_eq!(resumed.rows, 3);
    cluster.run_workers();
    let (rows, _) = cluster.watch("job").await.finish().await;
    assert_eq!(codes(&rows), ["OK", "OK", "DUPLICATE_ID"]);
}

#[tokio::test]
async fn a_job_can_go_without_a_key_but_then_a_broken_submission_is_cancelled() {
    let cluster = Cluster::start(small()).await;
    let named = cluster.submit(spec(JobKind::Encode, ""), vec![]).await.unwrap();
    assert!(!named.job_id.is_empty());
    let broken = vec![bare("a"), Part::Spec(spec(JobKind::Encode, ""))];
    assert!(cluster.submit(spec(JobKind::Encode, ""), broken).await.is_err());
    let jobs = cluster.client().list_jobs(ListJobsRequest::default()).await.unwrap().into_inner().jobs;
    let states: Vec<_> = jobs.iter().map(|job| job.state.as_str()).collect();
    assert_eq!(states, ["succeeded", "cancelled"]);
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused_by_name() {
    let cluster = Cluster::start(small()).await;
    let mut client = cluster.client();
    let missing = client.get_job(GetJobRequest { job_id: "nope".into() }).await.unwrap_err();
    assert_eq!((code_of(&missing), missing.message().contains("\"nope\"")), (ErrorCode::NotFound, true));
    let watch = client.watch_job(WatchJobRequest { job_id: "a/b".into(), results: true }).await.unwrap_err();
    assert_eq!(code_of(&watch), ErrorCode::InvalidId);
    let no_spec = client.submit_job(tokio_stream::iter([SubmitJobRequest { part: Some(bare("a")) }])).await;
    assert_eq!(code_of(&no_spec.unwrap_err()), ErrorCode::InvalidArgument);
    let no_kind = cluster.submit(JobSpec::default(), vec![]).await.unwrap_err();
    assert_eq!(code_of(&no_kind), ErrorCode::InvalidArgument);
    let nameless = client.report_status(ReportStatusRequest::default()).await.unwrap_err();
    assert_eq!(code_of(&nameless), ErrorCode::InvalidArgument);
}
