//! The log as a specification.

use futures::TryStreamExt;

use super::*;

const SHARD: &str = "main";

async fn log() -> ManifestLog {
    ManifestLog::new(Store::open("memory://").await.unwrap(), SHARD).unwrap()
}

fn put(doc_id: &str) -> Change {
    Change::Put(v1::DocRecord { collection: "c".into(), doc_id: doc_id.into(), ..Default::default() })
}

fn delete(doc_id: &str) -> Change {
    Change::Delete { collection: "c".into(), doc_id: doc_id.into() }
}

async fn append(log: &ManifestLog, last: Position, changes: &[Change]) -> Position {
    match log.append(last, changes).await.unwrap() {
        Append::Mine(manifest) => manifest.position,
        Append::Theirs(manifest) => panic!("unexpected {manifest:?}"),
    }
}

/// A log of `count` manifests, each with one put.
async fn filled(count: u64) -> (ManifestLog, Position) {
    let log = log().await;
    let mut last = Position::default();
    for number in 1..=count {
        last = append(&log, last, &[put(&format!("d{number}"))]).await;
    }
    (log, last)
}

/// Replaces an object's bytes, as damage does.
async fn overwrite(log: &ManifestLog, path: &str, bytes: Vec<u8>) {
    log.store().delete(path).await.unwrap();
    assert_eq!(log.store().create(path, bytes).await.unwrap(), Created::New);
}

#[tokio::test]
async fn changes_read_back_in_order_under_the_documented_name() {
    let log = log().await;
    let changes = [put("a"), delete("b"), put("b")];
    let position = append(&log, Position::default(), &changes).await;
    assert_eq!(position.number, 1);
    assert_eq!(log.store().list("index").await.unwrap(), ["index/main/manifests/00000000000000000001"]);
    let manifest = log.read(1).await.unwrap().unwrap();
    assert_eq!(manifest.changes, changes);
    assert_eq!(manifest.position, position);
    assert_eq!(log.read(2).await.unwrap(), None);
}

#[tokio::test]
async fn the_loser_of_a_race_gets_the_winners_manifest_and_appends_after_it() {
    let first = log().await;
    let second = ManifestLog::new(first.store().clone(), SHARD).unwrap();
    let won = append(&first, Position::default(), &[put("a")]).await;
    let Append::Theirs(theirs) = second.append(Position::default(), &[put("b")]).await.unwrap() else {
        panic!("a taken number was written");
    };
    assert_eq!((theirs.position, theirs.changes), (won, vec![put("a")]));
    assert_eq!(append(&second, won, &[put("b")]).await.number, 2);
}

#[tokio::test]
async fn an_append_whose_answer_was_lost_is_recognised_as_another_attempt() {
    // the same writer appends twice at one number: the nonce tells the attempts apart
    let log = log().await;
    let first = append(&log, Position::default(), &[put("a")]).await;
    let Append::Theirs(earlier) = log.append(Position::default(), &[put("b")]).await.unwrap() else {
        panic!("two manifests of one number");
    };
    assert_eq!((earlier.position, earlier.changes), (first, vec![put("a")]));
}

#[tokio::test]
async fn every_flipped_bit_of_a_manifest_is_detected_and_named() {
    let (log, _) = filled(1).await;
    let path = log.path(1);
    let good = log.store().get(&path).await.unwrap().unwrap();
    for byte in 0..good.len() {
        for bit in 0..8 {
            let mut bad = good.to_vec();
            bad[byte] ^= 1 << bit;
            let error = log.decode(1, &path, &bad).unwrap_err();
            assert!(error.is_damage() && error.to_string().contains(&path), "byte {byte} bit {bit}: {error}");
        }
    }
}

#[tokio::test]
async fn truncated_extended_and_foreign_manifests_are_refused() {
    let (log, _) = filled(2).await;
    let path = log.path(1);
    let good = log.store().get(&path).await.unwrap().unwrap();
    for length in 0..good.len() {
        assert!(log.decode(1, &path, &good[..length]).unwrap_err().is_damage(), "{length} bytes");
    }
    let longer = [&good[..], &[0x18, 0x01]].concat();
    assert!(log.decode(1, &path, &longer).unwrap_err().is_damage());
    assert!(log.decode(2, &path, &good).unwrap_err().to_string().contains("number 1"));
    let (other, _) = filled(1).await;
    let foreign = other.store().get(&path).await.unwrap().unwrap();
    assert!(log.decode(1, &path, &foreign).unwrap_err().to_string().contains("belongs to"));
}

#[tokio::test]
async fn replay_gives_all_manifests_in_order() {
    let (log, last) = filled(40).await;
    let all: Vec<Manifest> = log.replay(Position::default(), 40).try_collect().await.unwrap();
    assert_eq!(all.len(), 40);
    assert!(all.iter().zip(1..).all(|(manifest, n)| manifest.changes == [put(&format!("d{n}"))]));
    assert_eq!(all[39].position, last);
    let rest: Vec<Manifest> = log.replay(all[29].position, 40).try_collect().await.unwrap();
    assert_eq!(rest, all[30..]);
}

#[tokio::test]
async fn replay_stops_at_a_corrupt_manifest_and_names_it() {
    let (log, _) = filled(5).await;
    let mut bytes = log.store().get(&log.path(3)).await.unwrap().unwrap().to_vec();
    bytes[20] ^= 1;
    overwrite(&log, &log.path(3), bytes).await;
    let mut seen = Vec::new();
    let mut replay = Box::pin(log.replay(Position::default(), 5));
    let error = loop {
        match replay.try_next().await {
            Ok(manifest) => seen.push(manifest.unwrap().position.number),
            Err(error) => break error,
        }
    };
    assert_eq!(seen, [1, 2]);
    assert!(matches!(&error, ManifestError::Corrupt { object, .. } if *object == log.path(3)), "{error}");
    assert!(replay.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn replay_names_a_missing_manifest() {
    let (log, _) = filled(4).await;
    log.store().delete(&log.path(2)).await.unwrap();
    let error = log.replay(Position::default(), 4).try_collect::<Vec<_>>().await.unwrap_err();
    assert!(matches!(&error, ManifestError::Missing { object, .. } if *object == log.path(2)), "{error}");
}

#[tokio::test]
async fn a_manifest_of_another_history_does_not_follow() {
    let (log, last) = filled(2).await;
    let elsewhere = Position { checksum: Checksum::default(), ..last };
    log.store().delete(&log.path(3)).await.unwrap();
    append(&log, elsewhere, &[put("x")]).await;
    let error = log.replay(last, 3).try_collect::<Vec<_>>().await.unwrap_err();
    assert!(error.to_string().contains("does not follow"), "{error}");
    assert!(log.append(last, &[put("y")]).await.unwrap_err().is_damage());
}

fn record(doc_id: &str) -> v1::DocRecord {
    v1::DocRecord { doc_id: doc_id.into(), version: 7, ..Default::default() }
}

async fn snapshot(log: &ManifestLog, number: u64) -> Position {
    let position = Position { number, ..Position::default() };
    let mut writer = log.snapshot_writer(position);
    writer.part(vec![record("a"), record("b")]).await.unwrap();
    writer.part(vec![record("c")]).await.unwrap();
    assert_eq!(writer.finish().await.unwrap(), Created::New);
    position
}

#[tokio::test]
async fn a_snapshot_reads_back_part_by_part() {
    let log = log().await;
    let position = snapshot(&log, 9).await;
    assert_eq!(log.snapshots().await.unwrap(), [9]);
    let found = log.read_snapshot(9).await.unwrap().unwrap();
    assert_eq!((found.position, found.records, found.parts()), (position, 3, 2));
    assert_eq!(log.read_part(&found, 0).await.unwrap(), [record("a"), record("b")]);
    assert_eq!(log.read_part(&found, 1).await.unwrap(), [record("c")]);
}

#[tokio::test]
async fn a_snapshot_without_its_head_does_not_exist() {
    let log = log().await;
    log.snapshot_writer(Position::default()).part(vec![record("a")]).await.unwrap();
    assert!(log.snapshots().await.unwrap().is_empty());
    assert!(log.read_snapshot(0).await.unwrap().is_none());
}

#[tokio::test]
async fn damage_anywhere_in_a_snapshot_is_named() {
    let log = log().await;
    snapshot(&log, 9).await;
    let snapshot = log.read_snapshot(9).await.unwrap().unwrap();
    for path in log.store().list("index/main/snapshots").await.unwrap() {
        let good = log.store().get(&path).await.unwrap().unwrap();
        let mut bad = good.to_vec();
        let middle = bad.len() / 2;
        bad[middle] ^= 4;
        overwrite(&log, &path, bad).await;
        let mut errors = Vec::new();
        errors.extend(log.read_snapshot(9).await.err());
        for part in 0..snapshot.parts() {
            errors.extend(log.read_part(&snapshot, part).await.err());
        }
        assert_eq!(errors.len(), 1, "{path}: {errors:?}");
        assert!(errors[0].is_damage() && errors[0].to_string().contains(&path), "{}", errors[0]);
        overwrite(&log, &path, good.to_vec()).await;
    }
}

#[tokio::test]
async fn pruning_keeps_the_newest_snapshots_and_nothing_of_older_ones() {
    let log = log().await;
    log.snapshot_writer(Position::default()).part(vec![record("left over")]).await.unwrap();
    for number in [3, 5, 8, 13] {
        snapshot(&log, number).await;
    }
    log.prune_snapshots(2).await.unwrap();
    assert_eq!(log.snapshots().await.unwrap(), [8, 13]);
    assert_eq!(log.store().list("index/main/snapshots").await.unwrap().len(), 2 * 3);
    log.delete_snapshot(13).await.unwrap();
    assert_eq!(log.snapshots().await.unwrap(), [8]);
}

#[tokio::test]
async fn shard_names_that_could_leave_their_folder_are_refused() {
    let store = Store::open("memory://").await.unwrap();
    for name in ["", "..", "a/b", "A", "ü", &"x".repeat(65)] {
        assert!(ManifestLog::new(store.clone(), name).is_err(), "{name:?}");
    }
}
