//! The processes under test, with their store and whatever stands between the two.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2llm_e2e::S3;
use e2llm_runtime::{ClientOptions, Endpoint};
use e2llm_store::Store;
use rand::Rng;
use tempfile::TempDir;

use crate::disk::Disk;
use crate::expect::Reference;
use crate::member::{Member, Recipe};
use crate::plan::Role;
use crate::proxy::Proxy;

/// Short, so that a lost worker is noticed within a run.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_millis(300);
/// Manifests after which the index writes a snapshot: every run sees one in its first half.
const SNAPSHOT_EVERY: u64 = 3;
/// Loading models takes long where other work shares the cores.
const START_UP: Duration = Duration::from_secs(180);
/// Below the ports that the system gives to clients, which could take that of a process while it is dead.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// Where the store of a fleet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// A directory.
    Disk,
    /// A bucket of an S3 server.
    Bucket,
}

/// An index, a coordinator, two encoders and two decoders.
#[derive(Debug)]
pub struct Fleet {
    pub(crate) members: Vec<Member>,
    /// As the test sees the store: without faults.
    pub(crate) store: Store,
    pub(crate) disk: Disk,
    pub(crate) proxy: Option<Proxy>,
    pub(crate) reference: Reference,
    _storage: Option<Storage>,
    // Removed last.
    directory: TempDir,
}

/// A real S3 server.
struct Storage(#[allow(dead_code, reason = "stops when dropped")] S3);

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Storage")
    }
}

impl Fleet {
    /// Starts it, and runs each kind of job once without a fault: what it gives is what all later runs must give.
    pub async fn start(site: Site) -> Result<Self> {
        let directory = TempDir::new()?;
        let path = directory.path();
        fs::create_dir(path.join("store"))?;
        let disk = Disk::new(path, &path.join("store"));
        let storage = (site == Site::Bucket).then(S3::start);
        let (url, direct, vars, proxy) = match &storage {
            None => (path.join("store").display().to_string(), Vec::new(), disk.vars(), None),
            Some(s3) => {
                let (proxy, vars) = behind_proxy(s3).await?;
                (s3.store(), s3.vars(), vars, Some(proxy))
            }
        };
        let store = Store::open_with(&url, direct).await?;
        let members = members(path, &url, &vars);
        let reference = Reference::default();
        let _storage = storage.map(Storage);
        let mut fleet = Self { members, store, disk, proxy, reference, _storage, directory };
        fleet.ready().await?;
        fleet.reference = Reference::of(&fleet).await?;
        Ok(fleet)
    }

    /// The processes of a role.
    pub(crate) fn of(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.role == role)
    }

    /// A client's side of the only process of a role, or of the first.
    pub(crate) fn endpoint(&self, role: Role) -> Result<Endpoint> {
        let member = self.of(role).next().context("a member of each role")?;
        Ok(Endpoint::connect(&member.url(), &ClientOptions::default())?)
    }

    /// Waits until all processes serve.
    pub(crate) async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + START_UP;
        for member in &self.members {
            while !member.serves() {
                ensure!(Instant::now() < deadline, "{} does not serve:\n{}", member.name, member.log_from(0));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// Ends all faults and forgets what was stored of documents, so that the next run encodes them afresh.
    pub(crate) async fn clean(&self) -> Result<()> {
        self.disk.heal();
        self.proxy.iter().for_each(Proxy::heal);
        self.ready().await?;
        for folder in ["blobs", "texts", "quarantine"] {
            for path in self.store.list(folder).await? {
                self.store.delete(&path).await?;
            }
        }
        self.members.iter().for_each(|member| member.points.clear());
        Ok(())
    }

    /// Where each log stands now.
    pub(crate) fn log_sizes(&self) -> BTreeMap<String, u64> {
        self.members.iter().map(|member| (member.name.clone(), member.log_size())).collect()
    }

    /// What the processes of a role have logged since.
    pub(crate) fn log_since(&self, role: Role, sizes: &BTreeMap<String, u64>) -> String {
        self.of(role).map(|member| member.log_from(sizes[&member.name])).collect()
    }

    /// Writes what the processes have logged since, and what they reached, into `target`.
    pub(crate) fn keep_logs(&self, sizes: &BTreeMap<String, u64>, target: &Path) -> Result<()> {
        fs::create_dir_all(target)?;
        for member in &self.members {
            fs::write(target.join(format!("{}.log", member.name)), member.log_from(sizes[&member.name]))?;
            let trace = member.points.directory().join("trace");
            if trace.exists() {
                fs::copy(trace, target.join(format!("{}.trace", member.name)))?;
            }
        }
        Ok(())
    }

    /// A file of a store on disk.
    pub(crate) fn stored_file(&self, path: &str) -> PathBuf {
        self.directory.path().join("store").join(path)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Site::Disk => "disk",
            Site::Bucket => "s3",
        })
    }
}

/// The variables that lead a service to the S3 server through a proxy.
async fn behind_proxy(s3: &S3) -> Result<(Proxy, Vec<(String, String)>)> {
    let mut vars = s3.vars();
    let endpoint = vars.iter_mut().find(|(key, _)| key == "AWS_ENDPOINT_URL").context("an S3 endpoint")?;
    let server = endpoint.1.trim_start_matches("http://").to_owned();
    let proxy = Proxy::start(server).await?;
    endpoint.1 = format!("http://{}", proxy.address);
    Ok((proxy, vars))
}

fn members(directory: &Path, store: &str, vars: &[(String, String)]) -> Vec<Member> {
    let addresses = free_addresses(6);
    let url = |member: usize| format!("http://{}", addresses[member]);
    let text = humantime_millis;
    // On the disk of a local store, where it is by default: what happens to one happens to the other.
    let view = directory.join("store").join("view").display().to_string();
    let (lease, heartbeat, every) = (text(LEASE), text(HEARTBEAT), SNAPSHOT_EVERY.to_string());
    let peers = ["--index-url".to_owned(), url(0), "--coordinator-url".to_owned(), url(1)];
    let owned = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
    // What a decoder holds already is not read again, and then no fault of the store is met.
    let without_caches = owned(&["--document-cache", "0B", "--disk-cache", "0B"]);
    let decoder = [&peers[..], &["--encoder-url".to_owned(), url(2)], &without_caches].concat();
    let plan = [
        ("index", Role::Index, owned(&["--index-dir", &view, "--snapshot-every", &every])),
        ("coordinator", Role::Coordinator, owned(&["--lease", &lease, "--heartbeat", &heartbeat])),
        ("encoder-0", Role::Encoder, peers.to_vec()),
        ("encoder-1", Role::Encoder, peers.to_vec()),
        ("decoder-0", Role::Decoder, decoder.clone()),
        ("decoder-1", Role::Decoder, decoder),
    ];
    let start = |((name, role, flags), address): ((&str, Role, Vec<String>), &String)| {
        let fixed = owned(&["--store", store, "serve", role.as_str(), "--listen", address]);
        let recipe = Recipe {
            arguments: [fixed, flags].concat(),
            vars: vars.to_vec(),
            points: crate::points::Points::new(directory.join("points").join(name)),
            log: directory.join(format!("{name}.log")),
        };
        Member::start(name.to_owned(), role, address.clone(), recipe)
    };
    plan.into_iter().zip(&addresses).map(start).collect()
}

fn humantime_millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

fn free_addresses(count: usize) -> Vec<String> {
    let mut taken = Vec::new();
    let mut rng = rand::rng();
    while taken.len() < count {
        taken.extend(TcpListener::bind(("127.0.0.1", rng.random_range(PORTS))).ok());
    }
    taken.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}
