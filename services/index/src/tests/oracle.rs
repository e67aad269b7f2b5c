//! Random requests to the service over sled, beside the same done to a `BTreeMap`.

use e2llm_api::v1::index_server::Index;
use e2llm_api::v1::{self, DocRecord};
use e2llm_store::Store;
use e2llm_store::manifest::Change;
use proptest::prelude::*;
use tonic::Request;

use super::support::{Script, delete, record, summary};
use crate::doc_index::{DocIndex, ListQuery, RecordKey};
use crate::memory_index::MemoryIndex;
use crate::{IndexOptions, IndexService};

#[derive(Debug, Clone)]
enum Step {
    Put(Vec<(usize, usize, usize, u64)>),
    Summarize(usize, usize, usize, u64),
    Delete(usize, Vec<usize>),
    Get(usize, usize, Option<usize>),
    List { collection: usize, prefix: usize, page: u32 },
    Reopen,
    Rebuild,
}

const COLLECTIONS: [&str; 2] = ["c", "c-2"];
const DOCUMENTS: [&str; 6] = ["a", "ab", "a b", "b", "é", "aé"];
const FINGERPRINTS: [&str; 3] = ["f", "f-4x", "g"];
const PREFIXES: [&str; 4] = ["", "a", "ab", "zz"];

fn step() -> impl Strategy<Value = Step> {
    // few texts, so that summaries find theirs
    let put = (0..2usize, 0..6usize, 0..3usize, 1..4u64);
    prop_oneof![
        6 => prop::collection::vec(put.clone(), 1..4).prop_map(Step::Put),
        3 => put.prop_map(|(c, d, f, salt)| Step::Summarize(c, d, f, salt)),
        3 => (0..2usize, prop::collection::vec(0..6usize, 1..4)).prop_map(|(c, d)| Step::Delete(c, d)),
        4 => (0..2usize, 0..6usize, prop::option::of(0..3usize)).prop_map(|(c, d, f)| Step::Get(c, d, f)),
        4 => (0..2usize, 0..4usize, 1..5u32)
            .prop_map(|(collection, prefix, page)| Step::List { collection, prefix, page }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Rebuild),
    ]
}

struct Pair {
    service: IndexService,
    store: Store,
    dir: tempfile::TempDir,
    oracle: MemoryIndex,
    script: Script,
}

impl Pair {
    async fn new() -> Self {
        let store = Store::open("memory://").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let service = open(&store, &dir).await;
        Self { service, store, dir, oracle: MemoryIndex::default(), script: Script::new().await }
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Put(puts) => self.put(puts).await,
            Step::Summarize(c, d, f, salt) => self.summarize(COLLECTIONS[c], DOCUMENTS[d], FINGERPRINTS[f], salt).await,
            Step::Delete(collection, ids) => self.delete(COLLECTIONS[collection], ids).await,
            Step::Get(collection, doc, fingerprint) => self.get(collection, doc, fingerprint).await,
            Step::List { collection, prefix, page } => {
                self.list(COLLECTIONS[collection], PREFIXES[prefix], page).await;
            }
            Step::Reopen => {
                self.service.close().await.unwrap();
                self.service = open(&self.store, &self.dir).await;
            }
            Step::Rebuild => drop(self.service.rebuild().await.unwrap()),
        }
    }

    async fn put(&mut self, puts: Vec<(usize, usize, usize, u64)>) {
        let make =
            |(c, d, f, salt): (usize, usize, usize, u64)| record(COLLECTIONS[c], DOCUMENTS[d], FINGERPRINTS[f], salt);
        let records: Vec<DocRecord> = puts.into_iter().map(make).collect();
        let changes = records.iter().cloned().map(Change::Put).collect();
        let manifest = self.script.manifest(changes).await;
        self.oracle.apply(&manifest).unwrap();
        let response = self.service.commit(Request::new(v1::CommitRequest { records })).await.unwrap();
        assert_eq!(response.into_inner().manifest, manifest.position.number);
    }

    async fn summarize(&mut self, collection: &str, doc_id: &str, fingerprint: &str, salt: u64) {
        let of = summary(collection, doc_id, fingerprint, salt, "short");
        let effects = self.oracle.apply(&self.script.manifest(vec![Change::Summary(of.clone())]).await).unwrap();
        let v1::SummaryOf { collection, doc_id, fingerprint, text_hash, summary } = of;
        let summaries = vec![v1::DocSummary { doc_id, fingerprint, text_hash, summary }];
        let request = v1::PutSummariesRequest { collection, summaries };
        let response = self.service.put_summaries(Request::new(request)).await.unwrap().into_inner();
        assert_eq!(effects.kept, [response.kept == 1]);
        assert_eq!(response.kept + response.dropped, 1);
    }

    async fn delete(&mut self, collection: &str, mut ids: Vec<usize>) {
        ids.sort_unstable();
        ids.dedup();
        let doc_ids: Vec<String> = ids.into_iter().map(|id| DOCUMENTS[id].to_owned()).collect();
        let changes = doc_ids.iter().map(|id| delete(collection, id)).collect();
        let effects = self.oracle.apply(&self.script.manifest(changes).await).unwrap();
        let known = |(id, removed): (&String, &Vec<RecordKey>)| (!removed.is_empty()).then(|| id.clone());
        let expected: Vec<String> = doc_ids.iter().zip(&effects.removed).filter_map(known).collect();
        let collection = collection.to_owned();
        let request = v1::DeleteRequest { collection, doc_ids: doc_ids.clone() };
        let response = self.service.delete(Request::new(request)).await.unwrap().into_inner();
        assert_eq!(response.deleted, expected);
        assert_eq!(response.deleted.len() + response.unknown.len(), doc_ids.len());
    }

    async fn get(&self, collection: usize, doc: usize, fingerprint: Option<usize>) {
        let (collection, doc_id) = (COLLECTIONS[collection].to_owned(), DOCUMENTS[doc].to_owned());
        let fingerprint = fingerprint.map_or(String::new(), |f| FINGERPRINTS[f].to_owned());
        let key = RecordKey { collection, doc_id, fingerprint };
        let expected = match key.fingerprint.as_str() {
            "" => self.oracle.newest(&key.collection, &key.doc_id).unwrap(),
            _ => self.oracle.get(&key).unwrap(),
        };
        let RecordKey { collection, doc_id, fingerprint } = key;
        let key = Some(v1::DocKey { collection, doc_id, fingerprint });
        let answer = self.service.get(Request::new(v1::GetRequest { key })).await;
        match answer {
            Ok(response) => assert_eq!(response.into_inner().record, expected),
            Err(status) => {
                assert_eq!((status.code(), expected), (tonic::Code::NotFound, None));
            }
        }
    }

    async fn list(&self, collection: &str, prefix: &str, page_size: u32) {
        let query = ListQuery {
            collection: Some(collection.to_owned()),
            id_prefix: prefix.to_owned(),
            limit: usize::MAX,
            max_bytes: usize::MAX,
            ..ListQuery::default()
        };
        let expected = self.oracle.list(&query).unwrap().records;
        let mut found = Vec::new();
        let mut request = v1::ListRequest {
            collection: collection.to_owned(),
            id_prefix: prefix.to_owned(),
            page_size,
            summaries: true,
            ..Default::default()
        };
        loop {
            let page = self.service.list(Request::new(request.clone())).await.unwrap().into_inner();
            assert!(page.records.len() <= page_size as usize);
            found.extend(page.records);
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(found, expected);
    }
}

async fn open(store: &Store, dir: &tempfile::TempDir) -> IndexService {
    let options = IndexOptions { snapshot_every: 3, ..IndexOptions::default() };
    IndexService::open_with(store.clone(), dir.path(), "main", options).await.unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_service_answers_like_the_oracle(steps in prop::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut pair = Pair::new().await;
            for step in steps {
                pair.run(step).await;
            }
            for collection in COLLECTIONS {
                pair.list(collection, "", 4).await;
            }
            assert_eq!(pair.service.verify().await.unwrap(), []);
        });
    }
}
