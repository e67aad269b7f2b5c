//! Downloads from a model hub. The hub is a double, for none can be reached from a test: it speaks what `hf-hub` asks
//! for (listing, ranges, etags, commits) and breaks connections off on request.

use super::{fetcher, says};
use e2llm_weights::{HubOptions, ModelRef, Progress};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::tempdir;

const FILES: [(&str, usize); 3] = [("config.json", 2), ("tokenizer.json", 2), ("model.safetensors", 300_000)];

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8).collect()
}

#[derive(Clone)]
struct Hub {
    endpoint: String,
    /// Downloads of the weights to be broken off in their middle.
    breaks: Arc<AtomicUsize>,
    commit: Arc<Mutex<String>>,
    /// First byte of each download of the weights.
    starts: Arc<Mutex<Vec<usize>>>,
}

impl Hub {
    fn start(breaks: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Self {
            endpoint: format!("http://{}/", listener.local_addr().unwrap()),
            breaks: Arc::new(AtomicUsize::new(breaks)),
            commit: Arc::new(Mutex::new("a".repeat(40))),
            starts: Arc::default(),
        };
        let served = hub.clone();
        std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| served.answer(stream)));
        hub
    }

    fn answer(&self, mut stream: TcpStream) {
        let lines: Vec<String> =
            BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else { return };
        // Datasets are served as models are, below a path of their own.
        let path = &path.replace("/api/datasets/", "/api/models/").replace("/datasets/", "/");
        let commit = self.commit.lock().unwrap().clone();
        if *path == "/api/models/org/name/revision/main" {
            let siblings = FILES.map(|(name, _)| format!("{{\"rfilename\": \"{name}\"}}")).join(",");
            let body = format!("{{\"sha\": \"{commit}\", \"siblings\": [{siblings}]}}");
            let _ =
                write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len());
            return;
        }
        let file = FILES.iter().find(|(name, _)| *path == format!("/org/name/resolve/main/{name}"));
        let Some((name, size)) = file else {
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            return;
        };
        let range = lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let range = range.expect("hf-hub asks for ranges");
        let (start, end) = range.split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(*size, |last: usize| last + 1);
        let mut body = content(*size)[start..end].to_vec();
        let length = body.len();
        if *name == "model.safetensors" && end == *size {
            self.starts.lock().unwrap().push(start);
            let left = self.breaks.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            body.truncate(if left.is_ok() { length / 2 } else { length });
        }
        let _ = write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\ncontent-length: {length}\r\ncontent-range: bytes {start}-{}/{size}\r\n\
             etag: \"{name}-1\"\r\nx-repo-commit: {commit}\r\nconnection: close\r\n\r\n",
            end - 1
        );
        let _ = stream.write_all(&body);
    }

    fn options(&self, cache: &Path, offline: bool) -> HubOptions {
        HubOptions { endpoint: Some(self.endpoint.clone()), cache_dir: Some(cache.to_path_buf()), offline }
    }
}

fn model() -> ModelRef {
    ModelRef::parse("org/name").unwrap()
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let (own, cache, hub) = (tempdir().unwrap(), tempdir().unwrap(), Hub::start(2));
    let files = fetcher(own.path()).with_hub(hub.options(cache.path(), false)).resolve(&model()).unwrap();
    assert!(fs::read(&files.weights[0]).unwrap() == content(300_000), "other bytes than the hub's");
    assert_eq!(hub.breaks.load(Ordering::SeqCst), 0, "the connection was never broken off");
    assert_eq!(*hub.starts.lock().unwrap(), [0, 150_000, 225_000]);
    let offline = fetcher(own.path()).with_hub(hub.options(cache.path(), true)).resolve(&model()).unwrap();
    assert_eq!(offline.weights, files.weights);
}

#[test]
fn a_new_commit_fetches_only_what_changed_and_is_what_offline_finds() {
    let (own, cache, hub) = (tempdir().unwrap(), tempdir().unwrap(), Hub::start(0));
    let fetch = |offline| fetcher(own.path()).with_hub(hub.options(cache.path(), offline)).resolve(&model()).unwrap();
    fetch(false);
    *hub.commit.lock().unwrap() = "b".repeat(40);
    let second = fetch(false);
    assert!(second.dir.ends_with("b".repeat(40)), "{:?}", second.dir);
    assert_eq!(hub.starts.lock().unwrap().len(), 1, "equal weights were fetched twice");
    assert_eq!(fetch(true).dir, second.dir);
}

#[test]
fn a_leftover_that_cannot_be_continued_is_begun_anew() {
    let (own, cache, hub) = (tempdir().unwrap(), tempdir().unwrap(), Hub::start(0));
    let blobs = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("model.safetensors-1").with_extension("part"), vec![0; 300_000]).unwrap();
    let files = fetcher(own.path()).with_hub(hub.options(cache.path(), false)).resolve(&model()).unwrap();
    assert!(fs::read(&files.weights[0]).unwrap() == content(300_000), "the leftover was used");
}

#[test]
fn a_connection_that_always_breaks_off_is_an_error_and_what_arrived_is_kept() {
    let (own, cache, hub) = (tempdir().unwrap(), tempdir().unwrap(), Hub::start(usize::MAX));
    let fetcher = fetcher(own.path()).with_hub(hub.options(cache.path(), false));
    says(&fetcher.resolve(&model()).unwrap_err(), &["org/name", "kept"]);
    hub.breaks.store(0, Ordering::SeqCst);
    fetcher.resolve(&model()).unwrap();
    assert!(*hub.starts.lock().unwrap().last().unwrap() > 150_000, "it began anew");
    says(&fetcher.resolve(&ModelRef::parse("org/other").unwrap()).unwrap_err(), &["org/other", "check the name"]);
}

#[test]
fn a_file_of_a_dataset_is_fetched_once_and_found_offline() {
    let (cache, hub) = (tempdir().unwrap(), Hub::start(1));
    let file = ModelRef::parse("org/name:model.safetensors").unwrap();
    let fetch =
        |reference: &ModelRef, offline| hub.options(cache.path(), offline).dataset_file(reference, Progress::Hidden);
    says(&fetch(&file, true).unwrap_err(), &["org/name", "not cached"]);
    let path = fetch(&file, false).unwrap();
    assert!(fs::read(&path).unwrap() == content(300_000), "other bytes than the hub's");
    assert!(path.starts_with(cache.path().join("datasets--org--name")), "{path:?}");
    assert_eq!(*hub.starts.lock().unwrap(), [0, 150_000]);
    assert_eq!((fetch(&file, true).unwrap(), fetch(&file, false).unwrap()), (path.clone(), path));
    let other = ModelRef::parse("org/name:data.json").unwrap();
    says(&fetch(&other, false).unwrap_err(), &["data.json", "config.json"]);
    says(&fetch(&model(), false).unwrap_err(), &["org/name:file"]);
}
