//! Metadata and summaries: kept with their documents, whatever becomes of the view.

use e2llm_api::ErrorCode;
use e2llm_api::v1::index_server::Index;
use e2llm_api::v1::{self, DocRecord, DocSummary, Summary};
use e2llm_index::IndexService;
use tonic::{Request, Status};

use super::support::{COLLECTION, Site, commit, get, record};

fn summary(doc_id: &str, text: &str) -> DocSummary {
    let DocRecord { doc_id, fingerprint, text_hash, .. } = record(doc_id);
    let summary = Some(Summary { text: text.into(), job_id: "j1".into(), ..Summary::default() });
    DocSummary { doc_id, fingerprint, text_hash, summary }
}

async fn put(index: &IndexService, summaries: Vec<DocSummary>) -> Result<(u32, u32), Status> {
    let request = v1::PutSummariesRequest { collection: COLLECTION.into(), summaries };
    let response = index.put_summaries(Request::new(request)).await?.into_inner();
    Ok((response.kept, response.dropped))
}

/// Pages that a list of everything with these conditions took, and its records.
async fn list(index: &IndexService, conditions: &[&str], summaries: bool) -> (usize, Vec<DocRecord>) {
    let r#where = conditions.iter().map(|text| (*text).to_owned()).collect();
    let collection = COLLECTION.to_owned();
    let mut request = v1::ListRequest { collection, r#where, summaries, page_size: 1000, ..Default::default() };
    let (mut pages, mut records) = (0, Vec::new());
    loop {
        let page = index.list(Request::new(request.clone())).await.unwrap().into_inner();
        pages += 1;
        records.extend(page.records);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return (pages, records);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_and_summaries_survive_the_loss_of_the_view() {
    for snapshot_every in [1, 1000] {
        let site = Site::with_snapshots_every(snapshot_every);
        let index = site.open().await;
        let tagged = DocRecord { metadata: r#"{"year":2024}"#.into(), ..record("a") };
        commit(&index, vec![tagged, record("b")]).await.unwrap();
        assert_eq!(put(&index, vec![summary("a", "short"), summary("nobody", "lost")]).await.unwrap(), (1, 1));
        let before = list(&index, &[], true).await;
        assert_eq!(before.1[0].summary.as_ref().unwrap().text, "short");
        index.close().await.unwrap();
        std::fs::remove_dir_all(site.index_dir()).unwrap();
        let index = site.open().await;
        assert_eq!(list(&index, &[], true).await, before, "snapshots every {snapshot_every}");
        assert_eq!(index.verify().await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn get_shows_the_summary_and_a_list_only_when_asked() {
    let site = Site::new();
    let index = site.open().await;
    commit(&index, vec![record("a")]).await.unwrap();
    put(&index, vec![summary("a", "short")]).await.unwrap();
    assert_eq!(get(&index, "a").await.unwrap().summary.unwrap().job_id, "j1");
    assert_eq!(list(&index, &[], false).await.1[0].summary, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_cannot_bring_a_summary() {
    let site = Site::new();
    let index = site.open().await;
    let foreign = Some(Summary { text: "mine".into(), ..Summary::default() });
    commit(&index, vec![DocRecord { summary: foreign, ..record("a") }]).await.unwrap();
    assert_eq!(get(&index, "a").await.unwrap().summary, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn summaries_that_could_not_be_served_are_refused_together() {
    let site = Site::new();
    let index = site.open().await;
    commit(&index, vec![record("a")]).await.unwrap();
    let long = "x".repeat((64 << 10) + 1);
    let cases = [
        (DocSummary { doc_id: "a/b".into(), ..summary("a", "s") }, ErrorCode::InvalidId),
        (DocSummary { fingerprint: String::new(), ..summary("a", "s") }, ErrorCode::InvalidArgument),
        (DocSummary { text_hash: "12".into(), ..summary("a", "s") }, ErrorCode::InvalidArgument),
        (DocSummary { summary: None, ..summary("a", "s") }, ErrorCode::InvalidArgument),
        (summary("a", &long), ErrorCode::TooLarge),
    ];
    for (bad, code) in cases {
        let status = put(&index, vec![summary("a", "fine"), bad]).await.unwrap_err();
        assert_eq!(ErrorCode::of(&status), code, "{status}");
    }
    let many = put(&index, vec![summary("a", "s"); 1001]).await.unwrap_err();
    assert!(many.message().contains("1001 summaries"), "{many}");
    assert_eq!((get(&index, "a").await.unwrap().summary, site.manifests()), (None, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_by_metadata_and_a_wrong_condition_is_refused() {
    let site = Site::new();
    let index = site.open().await;
    let of = |n: u32| DocRecord { metadata: format!("{{\"n\":{n}}}"), ..record(&format!("d{n:02}")) };
    commit(&index, (0..20).map(of).collect()).await.unwrap();
    let (_, found) = list(&index, &["n>=5", "n<7"], false).await;
    assert_eq!(found.iter().map(|record| record.doc_id.as_str()).collect::<Vec<_>>(), ["d05", "d06"]);
    let request = v1::ListRequest { collection: COLLECTION.into(), r#where: vec!["=x".into()], ..Default::default() };
    let status = index.list(Request::new(request)).await.unwrap_err();
    assert_eq!(ErrorCode::of(&status), ErrorCode::InvalidArgument);
    assert!(status.message().contains("\"=x\""), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_finds_nothing_answers_in_bounded_steps() {
    let site = Site::new();
    let index = site.open().await;
    for batch in 0..21 {
        let records = (0..1000).map(|n| record(&format!("d{batch:02}-{n:03}"))).collect();
        commit(&index, records).await.unwrap();
    }
    assert_eq!(list(&index, &["year=1999"], false).await, (2, Vec::new()), "20,000 records a call");
}
