//! What nothing refers to is deleted in time, and nothing else, whatever happens in between.

use std::collections::HashSet;
use std::fs::File;
use std::time::{Duration, SystemTime};

use e2llm_api::ErrorCode;
use e2llm_api::v1::collect_garbage_request::Part as Asked;
use e2llm_api::v1::collect_garbage_response::Part as Told;
use e2llm_api::v1::object_outcome::Outcome;
use e2llm_api::v1::{self, DocRecord, GarbageCounts, GarbageReport};
use e2llm_index::{GarbageOptions, HeldTexts, IndexError, IndexService};
use e2llm_runtime::{ServerBuilder, ServerOptions, Shutdown, in_process};
use e2llm_store::Store;
use e2llm_store::garbage::ObjectName;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::support::{COLLECTION, Site, commit, delete, get, soft_prompt, stored};

const DAY: u64 = 24;

fn daily() -> GarbageOptions {
    GarbageOptions { grace: Duration::from_secs(DAY * 3600), ..Default::default() }
}

fn at_once() -> GarbageOptions {
    GarbageOptions::default()
}

async fn collect(index: &IndexService, options: GarbageOptions) -> GarbageReport {
    index.find_garbage(options).await.unwrap().sweep(HeldTexts::default()).await.unwrap()
}

/// Objects in use, young, held, marked, waiting, swept.
fn counts(counts: Option<GarbageCounts>) -> [u64; 6] {
    let counts = counts.unwrap();
    let all = [counts.in_use, counts.young, counts.held, counts.marked, counts.waiting, counts.swept];
    all.map(|amount| amount.map_or(0, |amount| amount.objects))
}

fn names(record: &DocRecord) -> [ObjectName; 2] {
    let segment = &record.segments[0];
    let blob = ObjectName::parse(&format!("{}/{}", segment.input_key, segment.content_hash)).unwrap();
    [blob, ObjectName::parse(&record.text_hash).unwrap()]
}

async fn exist(store: &Store, record: &DocRecord) -> [bool; 2] {
    let [blob, text] = names(record);
    [store.exists(&blob.path()).await.unwrap(), store.exists(&text.path()).await.unwrap()]
}

/// A site with documents whose ids are their texts, and their records.
async fn site_with(ids: &[&str]) -> (Site, IndexService, Store, Vec<DocRecord>) {
    let site = Site::new();
    let (index, store) = (site.open().await, site.store().await);
    let mut records = Vec::new();
    for id in ids {
        records.push(stored(&store, id, id).await);
    }
    commit(&index, records.clone()).await.unwrap();
    (site, index, store, records)
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_objects_are_marked_and_deleted_a_grace_period_later() {
    let (site, index, store, records) = site_with(&["kept", "gone"]).await;
    commit(&index, vec![stored(&store, "twin", "kept").await]).await.unwrap();
    delete(&index, &["gone", "twin"]).await;
    let young = collect(&index, daily()).await;
    assert_eq!(counts(young.blobs), [1, 1, 0, 0, 0, 0], "in use, young: {young:?}");
    assert_eq!(young.next_sweep_unix_ms, 0);
    site.wait(DAY + 1);
    let dry = collect(&index, GarbageOptions { dry_run: true, ..daily() }).await;
    let marked = collect(&index, daily()).await;
    assert_eq!(counts(dry.texts), counts(marked.texts), "a dry run tells what the real one does");
    assert_eq!((counts(marked.blobs), counts(marked.texts)), ([1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 0, 0]));
    let again = collect(&index, daily()).await;
    assert_eq!(counts(again.blobs), [1, 0, 0, 0, 1, 0], "a mark waits and is not made twice");
    assert_eq!(again.next_sweep_unix_ms, marked.next_sweep_unix_ms);
    assert_eq!(store.marks().await.unwrap().len(), 1);
    site.wait(DAY + 1);
    let dry = collect(&index, GarbageOptions { dry_run: true, ..daily() }).await;
    assert_eq!((counts(dry.blobs)[5], exist(&store, &records[1]).await), (1, [true; 2]));
    let swept = collect(&index, daily()).await;
    assert_eq!((swept.blobs, swept.texts), (dry.blobs, dry.texts));
    assert_eq!(swept.blobs.unwrap().swept.unwrap().bytes, records[1].segments[0].bytes);
    assert_eq!((exist(&store, &records[0]).await, exist(&store, &records[1]).await), ([true; 2], [false; 2]));
    assert!(store.marks().await.unwrap().is_empty(), "a mark that is done with is removed");
    assert!(get(&index, "kept").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_grace_period_garbage_goes_at_once_on_any_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open("memory://").await.unwrap();
    let index = IndexService::open(store.clone(), dir.path(), "main").await.unwrap();
    let records = [stored(&store, "kept", "kept").await, stored(&store, "gone", "gone").await];
    commit(&index, records.to_vec()).await.unwrap();
    delete(&index, &["gone"]).await;
    let report = collect(&index, at_once()).await;
    assert_eq!((counts(report.blobs), counts(report.texts)), ([1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1]));
    assert_eq!((exist(&store, &records[0]).await, exist(&store, &records[1]).await), ([true; 2], [false; 2]));
    assert!(store.list("gc/marks").await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_during_a_run_keeps_what_it_refers_to() {
    let (_site, index, store, records) = site_with(&["a"]).await;
    delete(&index, &["a"]).await;
    let run = index.find_garbage(at_once()).await.unwrap();
    commit(&index, records.clone()).await.unwrap();
    let report = run.sweep(HeldTexts::default()).await.unwrap();
    assert_eq!((counts(report.blobs), counts(report.texts)), ([1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]));
    assert_eq!(exist(&store, &records[0]).await, [true; 2]);
    assert!(get(&index, "a").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoder_that_found_a_blob_before_its_deletion_has_to_store_it_again() {
    let (_site, index, store, records) = site_with(&["a"]).await;
    delete(&index, &["a"]).await;
    let run = index.find_garbage(at_once()).await.unwrap();
    let found = store.find_blob(&records[0].segments[0].input_key).await.unwrap();
    assert_eq!(found.as_ref(), Some(&records[0].segments[0]));
    run.sweep(HeldTexts::default()).await.unwrap();
    let refused = commit(&index, records.clone()).await.unwrap_err();
    assert_eq!(ErrorCode::of(&refused), ErrorCode::ObjectGone, "{refused}");
    assert!(get(&index, "a").await.is_err(), "a refused record must not be served");
    assert_eq!(store.find_blob(&records[0].segments[0].input_key).await.unwrap(), None);
    store.put_blob(&soft_prompt("a")).await.unwrap();
    let text_gone = commit(&index, records.clone()).await.unwrap_err();
    assert!(text_gone.message().contains("texts/"), "{text_gone}");
    store.put_text("a").await.unwrap();
    commit(&index, records).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_record_does_not_hold_up_others_of_its_group() {
    let (_site, index, store, records) = site_with(&["gone"]).await;
    delete(&index, &["gone"]).await;
    collect(&index, at_once()).await;
    let sound: Vec<DocRecord> = futures::future::join_all(["x", "y", "z"].map(|id| stored(&store, id, id))).await;
    let writes = sound.iter().cloned().chain(records).map(|record| {
        let index = index.clone();
        tokio::spawn(async move { commit(&index, vec![record]).await.is_ok() })
    });
    let accepted: Vec<bool> = futures::future::join_all(writes).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(accepted, [true, true, true, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_restarted_between_mark_and_sweep_reads_the_records_again() {
    let (site, index, store, records) = site_with(&["back", "gone"]).await;
    delete(&index, &["back", "gone"]).await;
    site.wait(DAY + 1);
    assert_eq!(counts(collect(&index, daily()).await.blobs)[3], 2);
    commit(&index, vec![records[0].clone()]).await.unwrap();
    index.close().await.unwrap();
    let index = site.open().await;
    site.wait(DAY + 1);
    let report = collect(&index, daily()).await;
    assert_eq!(counts(report.blobs), [1, 0, 0, 0, 0, 1], "{report:?}");
    assert_eq!((exist(&store, &records[0]).await, exist(&store, &records[1]).await), ([true; 2], [false; 2]));
    index.close().await.unwrap();
    let index = site.open().await;
    let refused = commit(&index, vec![records[1].clone()]).await.unwrap_err();
    assert_eq!(ErrorCode::of(&refused), ErrorCode::ObjectGone, "that something was deleted is not forgotten");
}

#[tokio::test(flavor = "multi_thread")]
async fn texts_that_jobs_hold_stay_and_are_deleted_once_they_do_not() {
    let (site, index, store, records) = site_with(&["a"]).await;
    delete(&index, &["a"]).await;
    site.wait(DAY + 1);
    let text = names(&records[0])[1].key();
    let held = HeldTexts { texts: HashSet::from([text]), submitting: false };
    let marked = index.find_garbage(daily()).await.unwrap().sweep(held.clone()).await.unwrap();
    assert_eq!((counts(marked.blobs), counts(marked.texts)), ([0, 0, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0]));
    collect(&index, daily()).await;
    site.wait(DAY + 1);
    let report = index.find_garbage(daily()).await.unwrap().sweep(held).await.unwrap();
    assert_eq!((counts(report.blobs), counts(report.texts)), ([0, 0, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]));
    assert_eq!(exist(&store, &records[0]).await, [false, true]);
    assert_eq!(counts(collect(&index, daily()).await.texts)[5], 1, "its mark stayed");
    assert_eq!(exist(&store, &records[0]).await, [false; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_rows_are_submitted_no_text_is_deleted() {
    let (_site, index, store, records) = site_with(&["a"]).await;
    delete(&index, &["a"]).await;
    let held = HeldTexts { submitting: true, ..Default::default() };
    let report = index.find_garbage(at_once()).await.unwrap().sweep(held).await.unwrap();
    assert!(report.submitting);
    assert_eq!(exist(&store, &records[0]).await, [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn submissions_wait_exactly_while_texts_may_be_deleted() {
    let (site, index, store, _) = site_with(&["a"]).await;
    let waits = async || tokio::time::timeout(Duration::from_millis(50), store.wait_for_text_sweep()).await.is_err();
    let run = index.find_garbage(at_once()).await.unwrap();
    assert!(!waits().await, "no text is due");
    run.abandon().await;
    delete(&index, &["a"]).await;
    let run = index.find_garbage(GarbageOptions { dry_run: true, ..at_once() }).await.unwrap();
    assert!(!waits().await, "a dry run deletes nothing");
    run.abandon().await;
    let run = index.find_garbage(at_once()).await.unwrap();
    assert!(waits().await);
    run.abandon().await;
    assert!(!waits().await);
    let run = index.find_garbage(at_once()).await.unwrap();
    index.close().await.unwrap();
    std::mem::forget(run);
    assert!(waits().await);
    let index = site.open().await;
    assert!(!waits().await, "an index that starts takes back what a dead one announced");
    collect(&index, at_once()).await;
    assert!(!waits().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_was_written_again_during_a_run_stays() {
    let (site, index, store, records) = site_with(&["a"]).await;
    delete(&index, &["a"]).await;
    site.wait(DAY + 1);
    collect(&index, daily()).await;
    site.wait(DAY + 1);
    let run = index.find_garbage(daily()).await.unwrap();
    let path = site.root().join("store").join(names(&records[0])[1].path());
    let now = SystemTime::now() + Duration::from_secs(2 * (DAY + 1) * 3600);
    File::options().write(true).open(path).unwrap().set_modified(now).unwrap();
    let report = run.sweep(HeldTexts::default()).await.unwrap();
    assert_eq!(counts(report.texts), [0, 1, 0, 0, 0, 0]);
    assert_eq!(exist(&store, &records[0]).await, [false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_named_objects_each_is_accounted_for_and_others_are_left_alone() {
    let (_site, index, store, records) = site_with(&["used", "gone", "bystander"]).await;
    delete(&index, &["gone", "bystander"]).await;
    let absent = ObjectName::parse(&"0".repeat(64)).unwrap();
    let ([used, _], [blob, text]) = (names(&records[0]), names(&records[1]));
    let only = vec![used, blob, text, absent, blob];
    let held = HeldTexts { texts: HashSet::from([text.key()]), submitting: false };
    let options = GarbageOptions { only: only.clone(), ..at_once() };
    let report = index.find_garbage(options).await.unwrap().sweep(held).await.unwrap();
    let outcomes: Vec<Outcome> = report.objects.iter().map(v1::ObjectOutcome::outcome).collect();
    assert_eq!(outcomes, [Outcome::InUse, Outcome::Swept, Outcome::Held, Outcome::Absent, Outcome::Absent]);
    let told: Vec<ObjectName> = report.objects.iter().map(|told| ObjectName::parse(&told.name).unwrap()).collect();
    assert_eq!(told, only);
    let user = report.objects[0].user.clone().unwrap();
    assert_eq!((user.collection.as_str(), user.doc_id.as_str()), (COLLECTION, "used"));
    assert_eq!(report.objects[1].bytes, records[1].segments[0].bytes);
    assert_eq!((exist(&store, &records[1]).await, exist(&store, &records[2]).await), ([false, true], [true; 2]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_lost_sight_of_commits_deletes_nothing() {
    let (_site, index, store, records) = site_with(&["a"]).await;
    delete(&index, &["a"]).await;
    let run = index.find_garbage(at_once()).await.unwrap();
    index.rebuild().await.unwrap();
    let error = run.sweep(HeldTexts::default()).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    assert_eq!(exist(&store, &records[0]).await, [true; 2]);
    assert_eq!(counts(collect(&index, at_once()).await.blobs)[5], 1, "and the next one does its work");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_run_at_a_time() {
    let (_site, index, ..) = site_with(&["a"]).await;
    let run = index.find_garbage(at_once()).await.unwrap();
    assert!(matches!(index.find_garbage(at_once()).await, Err(IndexError::Down(_))));
    run.abandon().await;
    collect(&index, at_once()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_damaged_mark_named_is_marked_anew() {
    let (site, index, store, records) = site_with(&["a"]).await;
    delete(&index, &["a"]).await;
    site.wait(DAY + 1);
    collect(&index, daily()).await;
    let mark = site.root().join("store/gc/marks/00000000000000000001");
    let mut bytes = std::fs::read(&mark).unwrap();
    bytes[9] ^= 1;
    std::fs::write(&mark, bytes).unwrap();
    site.wait(DAY + 1);
    let report = collect(&index, daily()).await;
    assert_eq!(counts(report.blobs), [0, 0, 0, 1, 0, 0]);
    site.wait(DAY + 1);
    collect(&index, daily()).await;
    assert_eq!(exist(&store, &records[0]).await, [false; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_copies_go_with_what_they_were_copies_of() {
    let (_site, index, store, records) = site_with(&["kept", "gone"]).await;
    let texts = [names(&records[0])[1], names(&records[1])[1]];
    for (text, content) in texts.iter().zip(["kept", "gone"]) {
        store.quarantine(&text.path()).await.unwrap();
        store.put_text(content).await.unwrap();
    }
    delete(&index, &["gone"]).await;
    let options = GarbageOptions { only: names(&records[1]).to_vec(), ..at_once() };
    let report = collect(&index, options).await;
    assert_eq!(counts(report.texts)[5], 2, "the text and its damaged copy");
    let left = store.list("quarantine").await.unwrap();
    assert_eq!(left.len(), 1);
    assert!(left[0].contains(&texts[0].path()), "{left:?}");
}

/// The call over gRPC, with its answers up to its end.
async fn call(index: &IndexService, parts: Vec<Asked>) -> Result<Vec<Told>, tonic::Status> {
    let (dialer, listener) = in_process();
    let shutdown = Shutdown::new();
    let server = ServerBuilder::new(ServerOptions { drain: Duration::ZERO, ..Default::default() });
    tokio::spawn(server.index(index.clone()).serve_in_process(listener, shutdown.clone()));
    let (sender, requests) = mpsc::channel(8);
    for part in parts {
        sender.send(v1::CollectGarbageRequest { part: Some(part) }).await.unwrap();
    }
    drop(sender);
    let mut answers = dialer.endpoint().index().collect_garbage(ReceiverStream::new(requests)).await?.into_inner();
    let mut told = Vec::new();
    while let Some(answer) = answers.message().await? {
        told.push(answer.part.unwrap());
    }
    shutdown.request();
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_say_what_is_held_deletes_nothing() {
    let (_site, index, store, records) = site_with(&["a"]).await;
    delete(&index, &["a"]).await;
    let options = || Asked::Options(v1::GarbageOptions::default());
    let part = |last| Asked::Held(v1::HeldTextsPart { last, ..Default::default() });
    for parts in [vec![options()], vec![options(), part(false)], vec![part(true)]] {
        let error = call(&index, parts).await.unwrap_err();
        assert_eq!(ErrorCode::of(&error), ErrorCode::InvalidArgument, "{error}");
        assert_eq!(exist(&store, &records[0]).await, [true; 2]);
    }
    let told = call(&index, vec![options(), part(true)]).await.unwrap();
    assert!(matches!(told.first(), Some(Told::Ready(_))), "{told:?}");
    let Some(Told::Report(report)) = told.last() else { panic!("{told:?}") };
    assert_eq!((counts(report.blobs)[5], counts(report.texts)[5]), (1, 1));
    assert_eq!(exist(&store, &records[0]).await, [false; 2]);
}
