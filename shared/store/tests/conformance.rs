//! What every backend must do: one suite, run over memory, a local directory and a real S3 server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use e2llm_api::ErrorCode;
use e2llm_store::garbage::ObjectName;
use e2llm_store::{BlobName, Created, Health, ObjectInfo, ObjectKind, Store, StoreError, TextRef};
use futures::{StreamExt, TryStreamExt};
use support::moto::Moto;
use support::{damage, noise, soft_prompt};

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    conforms(&Store::open("memory://").await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_directory_conforms() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/store");
    let store = Store::open(path.to_str().unwrap()).await.unwrap();
    conforms(&store).await;
    let again = Store::open(&format!("file://{}", path.display())).await.unwrap();
    assert_eq!(again.id(), store.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_server_conforms() {
    let moto = Moto::start();
    let store = Store::open_with("s3://bucket/some/prefix", moto.vars()).await.unwrap();
    conforms(&store).await;
    let again = Store::open_with("s3://bucket/some/prefix", moto.vars()).await.unwrap();
    assert_eq!(again.id(), store.id());
    let other = Store::open_with("s3://bucket/other", moto.vars()).await.unwrap();
    assert_ne!(other.id(), store.id());
    let missing = Store::open_with("s3://no-such-bucket/x", moto.vars()).await.unwrap_err();
    assert!(missing.to_string().contains("does not exist; create it"), "{missing}");
}

async fn conforms(store: &Store) {
    objects_are_created_once_and_listed_by_folder(store).await;
    of_sixteen_creators_exactly_one_wins(store).await;
    texts_come_back_verified(store).await;
    a_text_of_several_parts_streams(store).await;
    bytes_that_are_not_utf8_are_refused_with_their_offset(store).await;
    soft_prompts_come_back_verified(store).await;
    everything_stored_so_far_verifies(store).await;
    a_damaged_text_is_quarantined_and_replaced(store).await;
    a_damaged_blob_is_quarantined_and_replaced(store).await;
    a_damaged_blob_does_not_hide_a_good_one(store).await;
    a_record_that_differs_from_its_blob_is_not_served(store).await;
    verify_names_each_damaged_object_and_moves_none(store).await;
    objects_have_an_age_and_many_are_deleted_at_once(store).await;
    marks_come_back_and_a_damaged_one_is_set_aside(store).await;
}

async fn objects_have_an_age_and_many_are_deleted_at_once(store: &Store) {
    let begun = unix_ms();
    for n in 0..3 {
        assert_eq!(store.create(&format!("many/{n}"), "abc").await.unwrap(), Created::New);
    }
    let listed: Vec<ObjectInfo> = store.list_stream("many").try_collect().await.unwrap();
    assert_eq!(listed.len(), 3);
    for object in &listed {
        // S3 tells whole seconds
        let written = begun - 1000..=unix_ms() + 1000;
        assert!(written.contains(&object.modified_unix_ms) && object.bytes == 3, "{object:?}");
        assert_eq!(store.info(&object.path).await.unwrap().as_ref(), Some(object));
        assert_eq!(object.age_ms(object.modified_unix_ms + 5), 5);
    }
    let doomed = ["many/0", "many/never-was", "many/2"].map(str::to_owned);
    store.delete_all(&doomed).await.unwrap();
    assert_eq!(store.list("many").await.unwrap(), ["many/1"]);
    assert_eq!(store.info("many/0").await.unwrap(), None);
    store.delete_all(&doomed).await.unwrap();
    store.delete_all(&[]).await.unwrap();
}

async fn marks_come_back_and_a_damaged_one_is_set_aside(store: &Store) {
    let all: Vec<_> = store.collectable().map_ok(|(name, _)| name).try_collect().await.unwrap();
    assert!(all.iter().any(ObjectName::is_text) && !all.iter().all(ObjectName::is_text), "{all:?}");
    assert_eq!(store.marks().await.unwrap(), [0; 0]);
    for (number, names) in [(1, &all[..]), (2, &all[..1])] {
        assert_eq!(store.create_mark(7, names).await.unwrap(), number);
    }
    let mut read = store.read_mark(1).await.unwrap().unwrap();
    read.names.sort_unstable();
    let mut expected = all.clone();
    expected.sort_unstable();
    assert_eq!((read.unix_ms, read.names), (7, expected));
    damage(store, "gc/marks/00000000000000000002", |bytes| bytes[5] ^= 1).await;
    let error = store.read_mark(2).await.unwrap_err();
    quarantined(store, &error, "gc/marks/00000000000000000002").await;
    store.delete_mark(1).await.unwrap();
    assert_eq!(store.marks().await.unwrap(), [0; 0]);
}

fn unix_ms() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

async fn objects_are_created_once_and_listed_by_folder(store: &Store) {
    assert_eq!(store.get("jobs/a/spec").await.unwrap(), None);
    assert_eq!(store.create("jobs/a/spec", "one").await.unwrap(), Created::New);
    assert_eq!(store.create("jobs/a/spec", "two").await.unwrap(), Created::Exists);
    assert_eq!(store.create("jobs/a/spec", "one").await.unwrap(), Created::Exists);
    assert_eq!(store.get("jobs/a/spec").await.unwrap().unwrap(), "one");
    for path in ["jobs/a/plan/000002", "jobs/a/plan/000001", "jobs/ab/spec"] {
        assert_eq!(store.create(path, "").await.unwrap(), Created::New);
    }
    let listed = store.list("jobs/a").await.unwrap();
    assert_eq!(listed, ["jobs/a/plan/000001", "jobs/a/plan/000002", "jobs/a/spec"]);
    assert!(store.list("jobs/none").await.unwrap().is_empty());
    store.delete("jobs/a/spec").await.unwrap();
    store.delete("jobs/a/spec").await.unwrap();
    assert!(!store.exists("jobs/a/spec").await.unwrap());
    for path in ["", "../x", "a//b", "a/../b", "a#1"] {
        let error = store.create(path, "x").await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidArgument, "{path:?}: {error}");
    }
}

async fn of_sixteen_creators_exactly_one_wins(store: &Store) {
    for round in 0..4 {
        let path = format!("race/{round}");
        let creators = (0..16).map(|n| {
            let (store, path) = (store.clone(), path.clone());
            tokio::spawn(async move { (n, store.create(&path, format!("writer {n}")).await.unwrap()) })
        });
        let outcomes = futures::future::try_join_all(creators).await.unwrap();
        let winners: Vec<_> = outcomes.iter().filter(|(_, created)| *created == Created::New).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let body = store.get(&path).await.unwrap().unwrap();
        assert_eq!(body, format!("writer {}", winners[0].0));
    }
}

async fn put_in_pieces(store: &Store, text: &[u8], piece: usize) -> Result<TextRef, StoreError> {
    let mut writer = store.text_writer()?;
    for part in text.chunks(piece) {
        writer.write(part)?;
    }
    writer.finish().await
}

async fn texts_come_back_verified(store: &Store) {
    for text in ["", "plain", "ß漢😀 \u{0}\r\n", &"long ".repeat(100_000)] {
        let stored = store.put_text(text).await.unwrap();
        assert_eq!(stored.bytes, text.len() as u64);
        assert_eq!(stored.hash, blake3::hash(text.as_bytes()).to_hex().as_str());
        assert!(store.has_text(&stored.hash).await.unwrap());
        assert_eq!(store.get_text(&stored.hash).await.unwrap(), text);
        // Code points straddle the pieces, and the pieces leave no trace.
        for piece in [1, 2, 3, 5].into_iter().filter(|_| text.len() < 100) {
            assert_eq!(put_in_pieces(store, text.as_bytes(), piece).await.unwrap(), stored);
        }
    }
    let absent = blake3::hash(b"absent").to_hex();
    assert!(!store.has_text(&absent).await.unwrap());
    let error = store.get_text(&absent).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::NotFound, "{error}");
}

async fn a_text_of_several_parts_streams(store: &Store) {
    let text = noise(20 << 20, 1);
    let stored = put_in_pieces(store, text.as_bytes(), 1 << 20).await.unwrap();
    assert!(store.get_text(&stored.hash).await.unwrap() == text);
    assert_eq!(put_in_pieces(store, text.as_bytes(), 1 << 20).await.unwrap(), stored);
}

async fn bytes_that_are_not_utf8_are_refused_with_their_offset(store: &Store) {
    for piece in 1..=8 {
        let error = put_in_pieces(store, b"abc\xe6\xbcxyz", piece).await.unwrap_err();
        assert_eq!(error, StoreError::NotUtf8 { offset: 3 });
        let error = put_in_pieces(store, b"cut short \xf0\x9f\x98", piece).await.unwrap_err();
        assert_eq!(error, StoreError::NotUtf8 { offset: 10 });
        assert!(error.to_string().contains("offset 10"), "{error}");
    }
    let mut writer = store.text_writer().unwrap();
    writer.write(b"good").unwrap();
    writer.write(b"\xff").unwrap_err();
    writer.write(b"good").unwrap();
    assert_eq!(writer.finish().await.unwrap_err(), StoreError::NotUtf8 { offset: 4 });
}

async fn soft_prompts_come_back_verified(store: &Store) {
    let prompt = soft_prompt("document", 3, 1);
    assert_eq!(store.find_blob(&prompt.input_key).await.unwrap(), None);
    let segment = store.put_blob(&prompt).await.unwrap();
    assert_eq!((segment.chunks, segment.soft_tokens, segment.text_end), (3, 12, 150));
    assert_eq!(store.get_blob(&segment).await.unwrap(), prompt);
    assert_eq!(store.put_blob(&prompt).await.unwrap(), segment);
    assert_eq!(store.find_blob(&prompt.input_key).await.unwrap(), Some(segment.clone()));
    let path = BlobName::new(&segment.input_key, &segment.content_hash).unwrap().path();
    assert_eq!(store.get(&path).await.unwrap().unwrap().len() as u64, segment.bytes);
}

async fn everything_stored_so_far_verifies(store: &Store) {
    let findings: Vec<_> = store.verify().try_collect().await.unwrap();
    assert!(findings.iter().all(|finding| finding.health == Health::Ok), "{findings:?}");
    for (kind, count) in [(ObjectKind::Identity, 1), (ObjectKind::Text, 5), (ObjectKind::Blob, 1)] {
        assert_eq!(findings.iter().filter(|finding| finding.kind == kind).count(), count, "{kind:?}");
    }
}

/// Where the error says the object went; fails if it is not there or the object still is.
async fn quarantined(store: &Store, error: &StoreError, path: &str) {
    let StoreError::Corrupt { object, quarantined: Some(target), .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!((error.code(), object.as_str()), (ErrorCode::Corrupt, path));
    assert!(error.to_string().contains(path), "{error}");
    assert!(target.starts_with("quarantine/") && store.exists(target).await.unwrap());
    assert!(!store.exists(path).await.unwrap());
}

async fn a_damaged_text_is_quarantined_and_replaced(store: &Store) {
    let text = "the same text, damaged in several ways";
    let hash = blake3::hash(text.as_bytes()).to_hex();
    let path = format!("texts/{}/{hash}.zst", &hash[..2]);
    let changes: [fn(&mut Vec<u8>); 4] = [
        |bytes| bytes[9] ^= 1,
        |bytes| *bytes.last_mut().unwrap() ^= 0x80,
        |bytes| bytes.truncate(bytes.len() / 2),
        Vec::clear,
    ];
    for change in changes {
        store.put_text(text).await.unwrap();
        damage(store, &path, change).await;
        quarantined(store, &store.get_text(&hash).await.unwrap_err(), &path).await;
        store.put_text(text).await.unwrap();
        assert_eq!(store.get_text(&hash).await.unwrap(), text);
    }
}

async fn a_damaged_blob_is_quarantined_and_replaced(store: &Store) {
    let prompt = soft_prompt("to be damaged", 2, 5);
    let segment = store.put_blob(&prompt).await.unwrap();
    let path = BlobName::new(&segment.input_key, &segment.content_hash).unwrap().path();
    let changes: [fn(&mut Vec<u8>); 4] =
        [|bytes| bytes[0] ^= 0x40, |bytes| *bytes.last_mut().unwrap() ^= 1, |bytes| bytes.truncate(100), Vec::clear];
    for change in changes {
        damage(store, &path, change).await;
        quarantined(store, &store.get_blob(&segment).await.unwrap_err(), &path).await;
        assert_eq!(store.put_blob(&prompt).await.unwrap(), segment);
        assert_eq!(store.get_blob(&segment).await.unwrap(), prompt);
    }
    // Damage that nobody has read yet does not survive the next put either.
    damage(store, &path, |bytes| bytes[50] ^= 1).await;
    assert_eq!(store.put_blob(&prompt).await.unwrap(), segment);
    assert_eq!(store.get_blob(&segment).await.unwrap(), prompt);
}

async fn a_damaged_blob_does_not_hide_a_good_one(store: &Store) {
    let mut segments = Vec::new();
    for seed in [1, 2] {
        segments.push(store.put_blob(&soft_prompt("encoded twice", 2, seed)).await.unwrap());
    }
    segments.sort_by(|a, b| a.content_hash.cmp(&b.content_hash));
    let [first, second] = &segments[..] else { panic!("{segments:?}") };
    let path = BlobName::new(&first.input_key, &first.content_hash).unwrap().path();
    damage(store, &path, |bytes| bytes[200] ^= 1).await;
    assert_eq!(store.find_blob(&first.input_key).await.unwrap().as_ref(), Some(second));
    assert!(!store.exists(&path).await.unwrap());
}

async fn a_record_that_differs_from_its_blob_is_not_served(store: &Store) {
    let prompt = soft_prompt("named wrongly", 2, 1);
    let segment = store.put_blob(&prompt).await.unwrap();
    let wrong = e2llm_api::v1::Segment { soft_tokens: 7, ..segment.clone() };
    let error = store.get_blob(&wrong).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { quarantined: None, .. }), "{error:?}");
    assert_eq!(store.get_blob(&segment).await.unwrap(), prompt);
    let absent = e2llm_api::v1::Segment { content_hash: "0".repeat(64), ..segment };
    assert_eq!(store.get_blob(&absent).await.unwrap_err().code(), ErrorCode::NotFound);
}

async fn verify_names_each_damaged_object_and_moves_none(store: &Store) {
    let text = store.put_text("a text for doctor").await.unwrap();
    let text_path = format!("texts/{}/{}.zst", &text.hash[..2], text.hash);
    let segment = store.put_blob(&soft_prompt("for doctor", 1, 1)).await.unwrap();
    let blob_path = BlobName::new(&segment.input_key, &segment.content_hash).unwrap().path();
    for path in [&text_path, &blob_path] {
        damage(store, path, |bytes| bytes[20] ^= 1).await;
    }
    damage(store, "store.json", |bytes| bytes[40] ^= 1).await;
    let mut damaged: Vec<_> = store
        .verify()
        .filter_map(|finding| async { finding.ok().filter(|finding| finding.health != Health::Ok) })
        .map(|finding| finding.object)
        .collect()
        .await;
    damaged.sort();
    assert_eq!(damaged, [blob_path.as_str(), "store.json", &text_path]);
    damage(store, "store.json", |bytes| bytes[40] ^= 1).await;
    for path in [text_path, blob_path] {
        assert!(store.quarantine(&path).await.unwrap().is_some());
        assert_eq!(store.quarantine(&path).await.unwrap(), None);
    }
}
