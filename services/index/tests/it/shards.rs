//! Several indexes behind a router answer as one.

use e2llm_api::v1::index_client::IndexClient;
use e2llm_api::v1::{
    BatchGetRequest, CommitRequest, DeleteRequest, DocKey, DocRecord, GetRequest, ListRequest, SearchRequest,
};
use e2llm_index::{GarbageOptions, IndexOptions, IndexService, Router, Shard};
use e2llm_runtime::{Channel, ServerBuilder, ServerOptions, Shutdown, in_process};
use tonic::Code;

use super::support::{COLLECTION, FINGERPRINT, Site, record};

type Client = IndexClient<Channel>;

const SHARDS: u32 = 3;

fn served(server: ServerBuilder) -> Client {
    let (dialer, listener) = in_process();
    tokio::spawn(server.serve_in_process(listener, Shutdown::new()));
    dialer.endpoint().index()
}

fn server() -> ServerBuilder {
    ServerBuilder::new(ServerOptions::default())
}

async fn shard(site: &Site, number: u32) -> IndexService {
    let shard = Shard::new(number, SHARDS).unwrap();
    let options = IndexOptions { shard, ..IndexOptions::default() };
    let directory = site.root().join(shard.log());
    IndexService::open_with(site.store().await, &directory, &shard.log(), options).await.unwrap()
}

/// One index, and the same as shards behind a router, each with the same records.
async fn both(site: &Site, other: &Site, ids: &[String]) -> (Client, Client, Vec<Client>) {
    let whole = served(server().index(site.open().await));
    let mut shards = Vec::new();
    for number in 0..SHARDS {
        shards.push(served(server().index(shard(other, number).await)));
    }
    let routed = served(server().index(Router::new(shards.clone())));
    for mut client in [whole.clone(), routed.clone()] {
        for batch in ids.chunks(50) {
            let records = batch.iter().map(|id| record(id)).collect();
            client.commit(CommitRequest { records }).await.unwrap();
        }
    }
    (whole, routed, shards)
}

/// All pages, with where each ended.
async fn pages(mut client: Client, request: ListRequest) -> Vec<Vec<String>> {
    let (mut pages, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = client.list(ListRequest { page_token, ..request.clone() }).await.unwrap().into_inner();
        pages.push(page.records.into_iter().map(|record: DocRecord| record.doc_id).collect());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return pages;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_answers_as_one_index_does() {
    let (site, other) = (Site::new(), Site::new());
    let ids: Vec<String> = (0..200).map(|number| format!("d{number:03}")).collect();
    let (mut whole, mut routed, _shards) = both(&site, &other, &ids).await;
    for page_size in [1, 7, 100, 1000] {
        let list =
            ListRequest { collection: COLLECTION.into(), page_size, id_prefix: "d0".into(), ..Default::default() };
        let listed = pages(routed.clone(), list.clone()).await;
        assert!(listed.iter().all(|page| page.len() <= page_size as usize));
        assert_eq!(listed.concat(), pages(whole.clone(), list).await.concat(), "page size {page_size}");
    }
    let key = |id: &str| DocKey { collection: COLLECTION.into(), doc_id: id.into(), fingerprint: FINGERPRINT.into() };
    let keys = BatchGetRequest { keys: ["d007", "nowhere", "d150", "d001"].map(key).to_vec() };
    let found = routed.batch_get(keys.clone()).await.unwrap().into_inner().results;
    let names = |results: &[e2llm_api::v1::LookedUp]| -> Vec<(String, bool)> {
        results.iter().map(|found| (found.key.clone().unwrap().doc_id, found.record.is_some())).collect()
    };
    assert_eq!(names(&found), names(&whole.batch_get(keys).await.unwrap().into_inner().results));
    let vector = SearchRequest {
        collection: COLLECTION.into(),
        fingerprint: FINGERPRINT.into(),
        vector: record("d042").mean_vector.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
        limit: 5,
    };
    let scores = |hits: Vec<e2llm_api::v1::SearchHit>| hits.iter().map(|hit| hit.score).collect::<Vec<_>>();
    let best = scores(whole.search(vector.clone()).await.unwrap().into_inner().hits);
    assert_eq!(scores(routed.search(vector).await.unwrap().into_inner().hits), best);
    let doc_ids = ["d150", "nowhere", "d003", "d004"].map(str::to_owned).to_vec();
    let deleted = routed.delete(DeleteRequest { collection: COLLECTION.into(), doc_ids }).await.unwrap().into_inner();
    assert_eq!((deleted.deleted.join(" "), deleted.unknown.join(" ")), ("d150 d003 d004".into(), "nowhere".into()));
    let gone = routed.get(GetRequest { key: Some(key("d003")) }).await.unwrap_err();
    assert_eq!(gone.code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_refuses_what_belongs_to_another() {
    let (site, other) = (Site::new(), Site::new());
    let ids: Vec<String> = (0..20).map(|number| format!("d{number}")).collect();
    let (_, _, mut shards) = both(&site, &other, &ids).await;
    let mut owners = 0;
    for client in &mut shards {
        let key = DocKey { collection: COLLECTION.into(), doc_id: "d0".into(), ..Default::default() };
        match client.get(GetRequest { key: Some(key) }).await {
            Ok(_) => owners += 1,
            Err(refused) => assert!(refused.message().contains("belongs to shard"), "{refused:?}"),
        }
    }
    assert_eq!(owners, 1);
    let alone = shard(&Site::new(), 0).await;
    let refused = alone.find_garbage(GarbageOptions::default()).await.err().unwrap();
    assert!(refused.to_string().contains("cannot collect garbage"), "{refused}");
}
