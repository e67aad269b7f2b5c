//! What every [`DocIndex`] does, run over each of them.

use e2llm_store::manifest::{Change, Position};

use super::support::{Script, delete, open_sled, record, summary};
use crate::Filter;
use crate::doc_index::{DocIndex, ListQuery, RecordKey};
use crate::memory_index::MemoryIndex;

/// Runs `check` over an empty view of each kind.
async fn over_all<F: Future>(check: impl Fn(Box<dyn DocIndex>) -> F) {
    check(Box::new(MemoryIndex::default())).await;
    let dir = tempfile::tempdir().unwrap();
    check(Box::new(open_sled(&dir.path().join("view")))).await;
}

fn key(collection: &str, doc_id: &str, fingerprint: &str) -> RecordKey {
    RecordKey { collection: collection.into(), doc_id: doc_id.into(), fingerprint: fingerprint.into() }
}

fn everything() -> ListQuery {
    ListQuery { limit: usize::MAX, max_bytes: usize::MAX, ..ListQuery::default() }
}

fn names(index: &dyn DocIndex, query: &ListQuery) -> Vec<String> {
    let page = index.list(query).unwrap();
    page.records.iter().map(|r| format!("{}/{}/{}", r.collection, r.doc_id, r.fingerprint)).collect()
}

#[tokio::test]
async fn a_put_record_is_found_with_the_manifests_number_as_version() {
    over_all(|index| async move {
        let mut script = Script::new().await;
        index.apply(&script.manifest(vec![delete("c", "x")]).await).unwrap();
        let manifest = script.manifest(vec![Change::Put(record("c", "a", "f", 1))]).await;
        index.apply(&manifest).unwrap();
        let mut expected = record("c", "a", "f", 1);
        expected.version = 2;
        assert_eq!(index.get(&key("c", "a", "f")).unwrap(), Some(expected));
        assert_eq!(index.position(), manifest.position);
        for absent in [key("c", "a", "g"), key("c", "b", "f"), key("d", "a", "f")] {
            assert_eq!(index.get(&absent).unwrap(), None);
        }
    })
    .await;
}

#[tokio::test]
async fn the_last_put_of_a_key_in_one_manifest_wins() {
    over_all(|index| async move {
        let puts = (1..=3).map(|salt| Change::Put(record("c", "a", "f", salt))).collect();
        index.apply(&Script::new().await.manifest(puts).await).unwrap();
        assert_eq!(index.get(&key("c", "a", "f")).unwrap().unwrap().encoded_unix_ms, 3);
        assert_eq!(names(&*index, &everything()), ["c/a/f"]);
    })
    .await;
}

#[tokio::test]
async fn a_delete_removes_all_records_of_that_document_only() {
    over_all(|index| async move {
        let mut script = Script::new().await;
        let all = [("c", "a", "f"), ("c", "a", "g"), ("c", "ab", "f"), ("ca", "a", "f"), ("d", "a", "f")];
        let puts = all.map(|(c, d, f)| Change::Put(record(c, d, f, 1))).to_vec();
        index.apply(&script.manifest(puts).await).unwrap();
        let effects = index.apply(&script.manifest(vec![delete("c", "a"), delete("c", "b")]).await).unwrap();
        assert_eq!(effects.removed, [vec![key("c", "a", "f"), key("c", "a", "g")], vec![]]);
        assert_eq!(names(&*index, &everything()), ["c/ab/f", "ca/a/f", "d/a/f"]);
    })
    .await;
}

#[tokio::test]
async fn changes_of_one_manifest_take_effect_in_order() {
    over_all(|index| async move {
        let mut script = Script::new().await;
        let put = |fingerprint, salt| Change::Put(record("c", "a", fingerprint, salt));
        let manifest = vec![put("f", 1), delete("c", "a"), put("g", 2), delete("c", "a"), put("h", 3)];
        let effects = index.apply(&script.manifest(manifest).await).unwrap();
        assert_eq!(effects.removed, [vec![key("c", "a", "f")], vec![key("c", "a", "g")]]);
        assert_eq!(names(&*index, &everything()), ["c/a/h"]);
    })
    .await;
}

#[tokio::test]
async fn the_newest_record_is_that_of_the_latest_manifest() {
    over_all(|index| async move {
        let mut script = Script::new().await;
        for fingerprint in ["m", "z", "a"] {
            let put = Change::Put(record("c", "doc", fingerprint, 1));
            index.apply(&script.manifest(vec![put]).await).unwrap();
        }
        assert_eq!(index.newest("c", "doc").unwrap().unwrap().fingerprint, "a");
        let together = [("p", 9), ("q", 5)].map(|(f, salt)| Change::Put(record("c", "doc", f, salt)));
        index.apply(&script.manifest(together.to_vec()).await).unwrap();
        assert_eq!(index.newest("c", "doc").unwrap().unwrap().fingerprint, "p");
        assert_eq!(index.newest("c", "do").unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn lists_are_in_key_order_filtered_and_paged() {
    over_all(|index| async move {
        let puts = ["b", "a", "a b", "aé", "Z", "a-1"].map(|id| Change::Put(record("c", id, "f", 1)));
        let others = [Change::Put(record("c", "a", "g", 1)), Change::Put(record("b", "a", "f", 1))];
        let changes = puts.into_iter().chain(others).collect();
        index.apply(&Script::new().await.manifest(changes).await).unwrap();
        let in_c = ListQuery { collection: Some("c".into()), ..everything() };
        let all = ["c/Z/f", "c/a/f", "c/a/g", "c/a b/f", "c/a-1/f", "c/aé/f", "c/b/f"];
        assert_eq!(names(&*index, &in_c), all);
        let of_f = ListQuery { fingerprint: Some("g".into()), ..in_c.clone() };
        assert_eq!(names(&*index, &of_f), ["c/a/g"]);
        let prefixed = ListQuery { id_prefix: "a".into(), ..in_c.clone() };
        assert_eq!(names(&*index, &prefixed), &all[1..6]);
        let mut paged = Vec::new();
        let mut query = ListQuery { limit: 2, ..in_c };
        loop {
            let page = index.list(&query).unwrap();
            assert_eq!(page.records.len() == 2 && page.more, paged.len() < 6);
            paged.extend(names(&*index, &query));
            query.after = page.records.last().map(RecordKey::of);
            if !page.more {
                break;
            }
        }
        assert_eq!(paged, all);
    })
    .await;
}

#[tokio::test]
async fn a_page_ends_when_its_bytes_are_used_up() {
    over_all(|index| async move {
        let puts = ["a", "b", "c"].map(|id| Change::Put(record("c", id, "f", 1))).to_vec();
        index.apply(&Script::new().await.manifest(puts).await).unwrap();
        let page = index.list(&ListQuery { max_bytes: 1, ..everything() }).unwrap();
        assert_eq!((page.records.len(), page.more), (1, true));
    })
    .await;
}

#[tokio::test]
async fn loaded_records_keep_their_versions() {
    over_all(|index| async move {
        let mut loaded = record("c", "a", "f", 1);
        loaded.version = 77;
        index.load(vec![loaded.clone()]).unwrap();
        index.load(vec![]).unwrap();
        let position = Position { number: 99, ..Position::default() };
        index.finish_load(position).unwrap();
        assert_eq!(index.position(), position);
        assert_eq!(index.newest("c", "a").unwrap(), Some(loaded));
    })
    .await;
}

fn summary_of(index: &dyn DocIndex, doc_id: &str, fingerprint: &str) -> Option<String> {
    Some(index.get(&key("c", doc_id, fingerprint)).unwrap()?.summary?.text)
}

#[tokio::test]
async fn a_summary_is_kept_with_the_record_that_has_its_text_only() {
    over_all(|index| async move {
        let mut script = Script::new().await;
        let puts = ["f", "g"].map(|fingerprint| Change::Put(record("c", "a", fingerprint, 1)));
        index.apply(&script.manifest(puts.to_vec()).await).unwrap();
        let of = |doc_id, fingerprint, salt| Change::Summary(summary("c", doc_id, fingerprint, salt, "short"));
        let summaries = vec![of("a", "f", 1), of("a", "g", 2), of("b", "f", 1), of("a", "h", 1)];
        let effects = index.apply(&script.manifest(summaries).await).unwrap();
        assert_eq!(effects.kept, [true, false, false, false]);
        assert_eq!(summary_of(&*index, "a", "f").unwrap(), "short");
        assert_eq!(summary_of(&*index, "a", "g"), None);
        assert_eq!(index.get(&key("c", "a", "f")).unwrap().unwrap().version, 1, "a summary is no new version");
    })
    .await;
}

#[tokio::test]
async fn a_put_of_the_same_text_keeps_the_summary_and_another_text_drops_it() {
    over_all(|index| async move {
        let mut script = Script::new().await;
        let put = |salt| Change::Put(record("c", "a", "f", salt));
        let short = Change::Summary(summary("c", "a", "f", 1, "short"));
        index.apply(&script.manifest(vec![put(1), short.clone()]).await).unwrap();
        index.apply(&script.manifest(vec![put(1)]).await).unwrap();
        assert_eq!(summary_of(&*index, "a", "f").unwrap(), "short");
        index.apply(&script.manifest(vec![put(2), short]).await).unwrap();
        assert_eq!(summary_of(&*index, "a", "f"), None);
        index.apply(&script.manifest(vec![put(1)]).await).unwrap();
        assert_eq!(summary_of(&*index, "a", "f"), None, "a summary does not come back");
    })
    .await;
}

#[tokio::test]
async fn the_last_summary_wins_and_goes_with_its_document() {
    over_all(|index| async move {
        let mut script = Script::new().await;
        let of = |text| Change::Summary(summary("c", "a", "f", 1, text));
        let put = Change::Put(record("c", "a", "f", 1));
        index.apply(&script.manifest(vec![put.clone(), of("first"), of("second")]).await).unwrap();
        assert_eq!(summary_of(&*index, "a", "f").unwrap(), "second");
        let effects = index.apply(&script.manifest(vec![delete("c", "a"), of("late"), put]).await).unwrap();
        assert_eq!((effects.kept, summary_of(&*index, "a", "f")), (vec![false], None));
    })
    .await;
}

#[tokio::test]
async fn lists_show_summaries_unless_they_are_left_out() {
    over_all(|index| async move {
        let short = Change::Summary(summary("c", "a", "f", 1, "short"));
        let manifest = Script::new().await.manifest(vec![Change::Put(record("c", "a", "f", 1)), short]).await;
        index.apply(&manifest).unwrap();
        assert!(index.list(&everything()).unwrap().records[0].summary.is_some());
        let without = ListQuery { without_summaries: true, ..everything() };
        assert!(index.list(&without).unwrap().records[0].summary.is_none());
    })
    .await;
}

#[tokio::test]
async fn a_filtered_list_is_paged_by_what_it_found_and_by_what_it_looked_at() {
    over_all(|index| async move {
        let dated = |year: u32| {
            let metadata = format!("{{\"year\":{year}}}");
            Change::Put(e2llm_api::v1::DocRecord { metadata, ..record("c", &format!("d{year}"), "f", 1) })
        };
        index.apply(&Script::new().await.manifest((2000..2010).map(dated).collect()).await).unwrap();
        let recent = Filter::parse(&["year>=2004".to_owned(), "year!=2006".to_owned()]).unwrap();
        let mut query = ListQuery { filter: recent, limit: 2, look_at: Some(3), ..everything() };
        let (mut found, mut pages) = (Vec::new(), Vec::new());
        loop {
            let page = index.list(&query).unwrap();
            pages.push(page.records.len());
            found.extend(page.records.into_iter().map(|record| record.doc_id));
            query.after = page.last;
            if !page.more {
                break;
            }
        }
        assert_eq!(found, ["d2004", "d2005", "d2007", "d2008", "d2009"]);
        assert_eq!(pages, [0, 2, 2, 1], "no page looked at more than three or found more than two");
    })
    .await;
}
