//! How the index grows: `cargo run --release -p e2llm-index --example rebuild -- 1000000`.
//!
//! Commits so many records of one segment over gRPC, on a store in a temporary directory, looks some up and lists them; then deletes the view
//! and opens the index again, from its snapshot and manifests, and once more from its manifests alone; then splits
//! it into four shards. Prints one JSON line.

use std::path::Path;
use std::time::{Duration, Instant};

use e2llm_api::v1::{CommitRequest, DocKey, DocRecord, GetRequest, ListRequest, Segment};
use e2llm_index::{DEFAULT_SHARD, IndexService, reshard};
use e2llm_runtime::{ServerBuilder, ServerOptions, Shutdown, in_process};
use e2llm_store::{ContentHash, Store};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Records of one commit.
const BATCH: u64 = 500;
/// Commits at the same time, as from a fleet.
const WRITERS: u64 = 8;
/// Shards that the index is split into at last.
const SHARDS: u32 = 4;
/// Values of a mean vector: those of the default encoder.
const VECTOR: usize = 384;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let records: u64 = std::env::args().nth(1).map_or(Ok(10_000), |text| text.parse())?;
    let directory = tempfile::tempdir()?;
    let line = measure(directory.path(), records).await?;
    std::io::Write::write_all(&mut std::io::stdout(), format!("{line}\n").as_bytes())?;
    Ok(())
}

async fn measure(directory: &Path, records: u64) -> Result<String, Failure> {
    let (stored, view) = (directory.join("store"), directory.join("view"));
    let store = Store::open(&stored.display().to_string()).await?;
    let index = IndexService::open(store.clone(), &view, DEFAULT_SHARD).await?;
    let (dialer, listener) = in_process();
    let server = ServerBuilder::new(ServerOptions::default()).index(index.clone());
    tokio::spawn(server.serve_in_process(listener, Shutdown::new()));
    let begun = Instant::now();
    let writers = (0..WRITERS).map(|writer| {
        let mut client = dialer.endpoint().index();
        async move {
            for batch in (0..records.div_ceil(BATCH)).filter(|batch| batch % WRITERS == writer) {
                let of = (batch * BATCH)..((batch + 1) * BATCH).min(records);
                client.commit(CommitRequest { records: of.map(record).collect() }).await?;
            }
            Ok::<_, tonic::Status>(())
        }
    });
    futures::future::try_join_all(writers).await?;
    let commit = begun.elapsed();
    let mut client = dialer.endpoint().index();
    let begun = Instant::now();
    for number in 0..1000 {
        let key = DocKey {
            collection: "scale".to_owned(),
            doc_id: id(number * (records / 1000).max(1)),
            ..Default::default()
        };
        client.get(GetRequest { key: Some(key) }).await?;
    }
    let get = begun.elapsed() / 1000;
    let begun = Instant::now();
    let page = ListRequest { collection: "scale".to_owned(), page_size: 1000, ..Default::default() };
    let listed = client.list(page).await?.into_inner().records.len();
    let list = begun.elapsed();
    index.close().await?;
    let reopened = opening(&store, &view).await?;
    std::fs::remove_dir_all(&view)?;
    let from_snapshot = opening(&store, &view).await?;
    std::fs::remove_dir_all(&view)?;
    let snapshots = stored.join("index").join(DEFAULT_SHARD).join("snapshots");
    if snapshots.exists() {
        std::fs::remove_dir_all(&snapshots)?;
    }
    let from_manifests = opening(&store, &view).await?;
    let (log, view) = (bytes_below(&stored), bytes_below(&view));
    let begun = Instant::now();
    let moved = reshard(&store, &directory.join("moving"), (1, SHARDS), |_| {}).await?.records;
    let resharded = begun.elapsed();
    let [commit, reopened, from_snapshot, from_manifests, resharded] =
        [commit, reopened, from_snapshot, from_manifests, resharded].map(|time: Duration| time.as_secs_f64());
    Ok(format!(
        "{{\"records\":{records},\"commit_s\":{commit:.2},\"get_us\":{},\"list_{listed}_ms\":{:.1},\"reopen_s\":{reopened:.2},\
         \"rebuild_from_snapshot_s\":{from_snapshot:.2},\"rebuild_from_manifests_s\":{from_manifests:.2},\"store_bytes\":{log},\"view_bytes\":{view},\
         \"resharded\":{moved},\"reshard_to_{SHARDS}_s\":{resharded:.2}}}",
        get.as_micros(),
        list.as_secs_f64() * 1e3,
    ))
}

async fn opening(store: &Store, view: &Path) -> Result<Duration, Failure> {
    let begun = Instant::now();
    let index = IndexService::open(store.clone(), view, DEFAULT_SHARD).await?;
    let time = begun.elapsed();
    index.close().await?;
    Ok(time)
}

fn id(number: u64) -> String {
    format!("document-{number:09}")
}

fn record(number: u64) -> DocRecord {
    let hash = |what: &str| ContentHash::of(format!("{what} {number}").as_bytes()).to_string();
    let vector = (0..VECTOR).map(|value| ((number as usize + value) % 17) as f32);
    DocRecord {
        collection: "scale".to_owned(),
        doc_id: id(number),
        fingerprint: "0".repeat(64),
        ratio: 4,
        text_hash: hash("text"),
        text_bytes: 30_000,
        text_stored: true,
        segments: vec![Segment {
            input_key: hash("input"),
            content_hash: hash("content"),
            text_end: 30_000,
            ..Segment::default()
        }],
        mean_vector: vector.flat_map(f32::to_le_bytes).collect(),
        encoded_unix_ms: number,
        ..DocRecord::default()
    }
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => bytes_below(&entry.path()),
        Ok(about) => about.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}
