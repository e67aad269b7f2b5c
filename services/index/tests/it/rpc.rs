//! Each RPC: what it answers and what it refuses.

use e2llm_api::ErrorCode;
use e2llm_api::v1::index_server::Index;
use e2llm_api::v1::{self, DocRecord};
use tonic::{Request, Status};

use super::support::{COLLECTION, FINGERPRINT, Site, all, commit, commit_each, get, record, search};

fn refused(status: &Status, code: ErrorCode, naming: &str) {
    assert_eq!(ErrorCode::of(status), code, "{status}");
    let message = status.message();
    assert!(message.contains(naming) && !message.contains('\n'), "{message:?} does not name {naming:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commit_refuses_what_could_not_be_served_and_writes_nothing() {
    let site = Site::new();
    let index = site.open().await;
    commit_each(&index, ["a".to_owned()]).await;
    type Spoil = fn(&mut DocRecord);
    let cases: [(Spoil, ErrorCode, &str); 17] = [
        (|r| r.doc_id = "a/b".into(), ErrorCode::InvalidId, "a/b"),
        (|r| r.doc_id = "x".repeat(300), ErrorCode::InvalidId, "300 bytes"),
        (|r| r.doc_id = String::new(), ErrorCode::InvalidId, "empty"),
        (|r| r.collection = "..".into(), ErrorCode::InvalidId, ".."),
        (|r| r.fingerprint = String::new(), ErrorCode::InvalidArgument, "fingerprint"),
        (|r| r.fingerprint = "a b\0".into(), ErrorCode::InvalidArgument, "fingerprint"),
        (|r| r.text_hash = "12".into(), ErrorCode::InvalidArgument, "text_hash"),
        (|r| r.segments.clear(), ErrorCode::InvalidArgument, "segments"),
        (|r| r.segments[0].input_key = "../x".into(), ErrorCode::InvalidArgument, "../x"),
        (|r| r.segments[0].text_end = 1001, ErrorCode::InvalidArgument, "0..1001"),
        (|r| r.mean_vector.clear(), ErrorCode::InvalidArgument, "0 bytes"),
        (|r| r.mean_vector.push(0), ErrorCode::InvalidArgument, "65 bytes"),
        (|r| r.mean_vector[0..4].copy_from_slice(&f32::NAN.to_le_bytes()), ErrorCode::InvalidArgument, "not finite"),
        (|r| r.mean_vector.truncate(12), ErrorCode::InvalidArgument, "has 3 values"),
        (|r| r.metadata = "[1]".into(), ErrorCode::InvalidArgument, "not a JSON object"),
        (|r| r.metadata = format!("{{\"a\":\"{}\"}}", "x".repeat(16 << 10)), ErrorCode::InvalidArgument, "16392 bytes"),
        (|r| r.segments = vec![r.segments[0].clone(); 3000], ErrorCode::TooLarge, "fit the index"),
    ];
    for (spoil, code, naming) in cases {
        let mut bad = record("b");
        spoil(&mut bad);
        refused(&commit(&index, vec![record("fine"), bad]).await.unwrap_err(), code, naming);
    }
    let mut short = record("b");
    short.mean_vector.truncate(8);
    short.fingerprint = "fresh".into();
    let long = DocRecord { fingerprint: "fresh".into(), ..record("c") };
    refused(&commit(&index, vec![short, long]).await.unwrap_err(), ErrorCode::InvalidArgument, "16 values");
    assert_eq!((all(&index).await.len(), site.manifests()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_commit_writes_no_manifest() {
    let site = Site::new();
    let index = site.open().await;
    commit_each(&index, ["a".to_owned()]).await;
    assert_eq!(commit(&index, vec![]).await.unwrap(), 1);
    assert_eq!(site.manifests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn get_without_fingerprint_returns_the_newest_record() {
    let site = Site::new();
    let index = site.open().await;
    for fingerprint in ["new", "old", "mid"] {
        let newer = DocRecord { fingerprint: fingerprint.into(), ..record("a") };
        commit(&index, vec![newer]).await.unwrap();
    }
    assert_eq!(get(&index, "a").await.unwrap().fingerprint, "mid");
    let key = v1::DocKey { collection: COLLECTION.into(), doc_id: "a".into(), fingerprint: "old".into() };
    let answer = index.get(Request::new(v1::GetRequest { key: Some(key) })).await.unwrap();
    assert_eq!(answer.into_inner().record.unwrap().version, 2);
    refused(&get(&index, "zzz").await.unwrap_err(), ErrorCode::NotFound, "zzz");
    refused(&get(&index, "z/z").await.unwrap_err(), ErrorCode::InvalidId, "z/z");
    let none = index.get(Request::new(v1::GetRequest { key: None })).await.unwrap_err();
    refused(&none, ErrorCode::InvalidArgument, "key");
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_get_answers_in_the_order_of_the_keys() {
    let site = Site::new();
    let index = site.open().await;
    commit_each(&index, ["a", "b"].map(str::to_owned)).await;
    let key = |id: &str| v1::DocKey { collection: COLLECTION.into(), doc_id: id.into(), ..Default::default() };
    let keys = ["b", "none", "a", "b"].map(key).to_vec();
    let request = v1::BatchGetRequest { keys: keys.clone() };
    let results = index.batch_get(Request::new(request)).await.unwrap().into_inner().results;
    assert_eq!(results.iter().map(|r| r.key.clone().unwrap()).collect::<Vec<_>>(), keys);
    let found: Vec<Option<String>> = results.into_iter().map(|r| r.record.map(|r| r.doc_id)).collect();
    assert_eq!(found, [Some("b".into()), None, Some("a".into()), Some("b".into())]);
    let many = v1::BatchGetRequest { keys: vec![key("a"); 1001] };
    refused(&index.batch_get(Request::new(many)).await.unwrap_err(), ErrorCode::InvalidArgument, "1001");
}

#[tokio::test(flavor = "multi_thread")]
async fn list_refuses_tokens_and_sizes_it_did_not_offer() {
    let site = Site::new();
    let index = site.open().await;
    let ask = |change: fn(&mut v1::ListRequest)| {
        let mut request = v1::ListRequest { collection: COLLECTION.into(), ..Default::default() };
        change(&mut request);
        index.list(Request::new(request))
    };
    refused(&ask(|r| r.page_token = "what".into()).await.unwrap_err(), ErrorCode::InvalidArgument, "what");
    refused(&ask(|r| r.page_size = 1001).await.unwrap_err(), ErrorCode::InvalidArgument, "1001");
    refused(&ask(|r| r.id_prefix = "a\0".into()).await.unwrap_err(), ErrorCode::InvalidArgument, "id_prefix");
    refused(&ask(|r| r.collection = String::new()).await.unwrap_err(), ErrorCode::InvalidId, "collection");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_never_outgrows_a_message() {
    let site = Site::new();
    let index = site.open().await;
    let big = |n: usize| {
        let mut big = record(&format!("d{n:03}"));
        big.segments = vec![big.segments[0].clone(); 1500];
        big
    };
    for first in (0..100).step_by(20) {
        commit(&index, (first..first + 20).map(big).collect()).await.unwrap();
    }
    let request = v1::ListRequest { collection: COLLECTION.into(), page_size: 1000, ..Default::default() };
    let page = index.list(Request::new(request)).await.unwrap().into_inner();
    assert!(prost::Message::encoded_len(&page) < e2llm_api::MAX_MESSAGE_BYTES);
    assert!(!page.next_page_token.is_empty());
    assert_eq!(all(&index).await.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn search_finds_the_nearest_of_one_fingerprint_and_forgets_the_deleted() {
    let site = Site::new();
    let index = site.open().await;
    commit(&index, (0..50).map(|n| record(&format!("d{n}"))).collect()).await.unwrap();
    let elsewhere = DocRecord { fingerprint: "other".into(), ..record("stranger") };
    commit(&index, vec![elsewhere]).await.unwrap();
    let hits = search(&index, "d7", 5).await;
    assert_eq!(hits.len(), 5);
    assert_eq!(hits[0].0, "d7");
    assert!((hits[0].1 - 1.0).abs() < 1e-5);
    assert!(hits.is_sorted_by(|a, b| a.1 >= b.1));
    super::support::delete(&index, &["d7"]).await;
    assert!(search(&index, "d7", 50).await.iter().all(|(id, _)| id != "d7" && id != "stranger"));
    assert_eq!(search(&index, "d7", 0).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn search_refuses_vectors_it_cannot_compare() {
    let site = Site::new();
    let index = site.open().await;
    commit_each(&index, ["a".to_owned()]).await;
    let ask = |vector: Vec<f32>, fingerprint: &str| {
        let (collection, fingerprint) = (COLLECTION.to_owned(), fingerprint.to_owned());
        index.search(Request::new(v1::SearchRequest { collection, fingerprint, vector, limit: 1 }))
    };
    for (vector, naming) in
        [(vec![1.0; 3], "has 3 values"), (vec![0.0; 16], "zeros"), (vec![f32::NAN; 16], "finite"), (vec![], "zeros")]
    {
        refused(&ask(vector, FINGERPRINT).await.unwrap_err(), ErrorCode::InvalidArgument, naming);
    }
    refused(&ask(vec![1.0; 16], "").await.unwrap_err(), ErrorCode::InvalidArgument, "fingerprint");
    let nothing = ask(vec![1.0; 16], "unheard-of").await.unwrap().into_inner();
    assert_eq!(nothing.hits, []);
}
