//! The four services: those of this process, or those behind `--server`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2llm_api::v1::Stage;
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::decoder_client::DecoderClient;
use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::index_client::IndexClient;
use e2llm_coordinator::{CoordinatorOptions, CoordinatorService};
use e2llm_decoder::{Answering, DecodeTasks, DecoderService, Engine, LoadDecoderSide, TrainTasks};
use e2llm_encoder::{EncodeTasks, EncoderService, Pipeline};
use e2llm_index::{DEFAULT_SHARD, IndexService, Router};
use e2llm_runtime::worker::{TaskHandler, WorkerLoop};
use e2llm_runtime::{
    Channel, ClientOptions, Endpoint, Health, Listener, Metrics, ServerBuilder, ServerOptions, ServiceName, Shutdown,
    in_process,
};
use e2llm_store::{Store, StoreLock};
use futures::StreamExt;
use tokio::task::JoinHandle;

use crate::bundle::LocalBundle;
use crate::probes;
use crate::settings::Settings;

/// Into how many shards the index is split: numbered notes, of which the last one holds.
const SHARDS: &str = "index/layouts";
/// The services of `--server`, in the order of [`Services`].
const ROLES: [&str; 4] = ["encoder", "index", "decoder", "coordinator"];
const PAIRS: &str = "--server takes one URL, or service=URL pairs with commas between them";
/// How long a command waits for another one that uses the store.
pub(crate) const LOCK_WAIT: Duration = Duration::from_secs(5);
/// How long calls of this process on itself may go on at the end.
const SHORT_DRAIN: Duration = Duration::from_secs(2);
/// Tasks a worker holds: one computes while the next one's documents are fetched.
pub(crate) const SLOTS: usize = 2;

/// Clients' side of the four services.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    encoder: Endpoint,
    index: Endpoint,
    decoder: Endpoint,
    coordinator: Endpoint,
    own: Option<Arc<Own>>,
}

/// Services of this process, to be stopped in order.
#[derive(Debug)]
struct Own {
    parts: Parts,
    /// In the order in which they end: workers hand back their tasks while the server still listens.
    tasks: Mutex<Vec<(Shutdown, JoinHandle<()>)>>,
    _lock: StoreLock,
}

/// The services themselves.
#[derive(Debug)]
struct Parts {
    index: IndexService,
    coordinator: CoordinatorService,
    models: Option<(Pipeline, Answering)>,
}

/// Where and how a process serves.
#[derive(Debug)]
pub(crate) struct Ports {
    /// For calls.
    pub(crate) listener: Listener,
    /// For metrics and probes.
    pub(crate) admin: Option<(Listener, Metrics)>,
    pub(crate) options: ServerOptions,
}

/// What a command needs of the services of its own process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Index and coordinator alone: no weights are fetched or loaded, and no worker works.
    Records,
    /// All four.
    Models,
}

impl Services {
    /// The services behind one address, or those behind an address each: `coordinator=URL,decoder=URL,…`. Connects at the first call.
    pub(crate) fn connect(server: &str, options: &ClientOptions) -> Result<Self> {
        if !server.contains('=') {
            let endpoint = Endpoint::connect(server, options)?;
            return Ok(Self::behind(|| endpoint.clone()));
        }
        let mut addresses = BTreeMap::<&str, Vec<&str>>::new();
        for part in server.split(',') {
            let (role, url) = part.trim().split_once('=').context(PAIRS)?;
            addresses.entry(role).or_default().push(url);
        }
        if let Some(unknown) = addresses.keys().find(|role| !ROLES.contains(*role)) {
            bail!("{server:?} has an address for {unknown:?}; the services are {}", ROLES.join(", "));
        }
        let [encoder, index, decoder, coordinator] = ROLES.map(|role| match addresses.get(role).map(Vec::as_slice) {
            Some(shards) if role == "index" => self::index(shards.iter().copied(), options),
            Some([url]) => Endpoint::connect(url, options).map_err(anyhow::Error::new),
            Some(_) => bail!("{server:?} has several addresses of the {role}; give one, such as dns:///{role}:7700"),
            // Only commands that need it find out.
            None => Ok(Endpoint::unknown(&format!("{role} (no address is given for it: --server {role}=URL,…)"))),
        });
        Ok(Self { encoder: encoder?, index: index?, decoder: decoder?, coordinator: coordinator?, own: None })
    }

    /// The services behind one server; each may have a connection of its own.
    pub(crate) fn behind(endpoint: impl Fn() -> Endpoint) -> Self {
        Self { encoder: endpoint(), index: endpoint(), decoder: endpoint(), coordinator: endpoint(), own: None }
    }

    pub(crate) fn encoder(&self) -> EncoderClient<Channel> {
        self.encoder.encoder()
    }

    pub(crate) fn index(&self) -> IndexClient<Channel> {
        self.index.index()
    }

    pub(crate) fn decoder(&self) -> DecoderClient<Channel> {
        self.decoder.decoder()
    }

    pub(crate) fn coordinator(&self) -> CoordinatorClient<Channel> {
        self.coordinator.coordinator()
    }

    /// Whether they run in this process, so that nobody else uses the store.
    pub(crate) fn are_own(&self) -> bool {
        self.own.is_some()
    }

    /// The bundle that models of this process belong to.
    pub(crate) fn fingerprint(&self) -> Option<&str> {
        let (pipeline, _) = self.own.as_ref()?.parts.models.as_ref()?;
        Some(pipeline.fingerprint())
    }

    /// What to call the server in messages.
    pub(crate) fn address(&self) -> &str {
        self.coordinator.address()
    }

    /// Serves the services of this process over TCP too, until shutdown is requested.
    pub(crate) async fn serve(&self, ports: Ports, shutdown: Shutdown) -> Result<()> {
        if let Some(own) = &self.own {
            let server = own.parts.register(ServerBuilder::new(ports.options));
            own.parts.watch(&server.health(), &shutdown);
            if let Some((listener, metrics)) = ports.admin {
                metrics.serve(listener, server.health(), shutdown.clone());
            }
            server.serve(ports.listener, shutdown).await?;
        }
        Ok(())
    }

    /// Stops services of this process; does nothing to those behind an address.
    pub(crate) async fn stop(self) {
        let Some(own) = &self.own else { return };
        let tasks = own.tasks.lock().map(|mut tasks| std::mem::take(&mut *tasks)).unwrap_or_default();
        for (shutdown, task) in tasks {
            shutdown.request();
            // A task that panicked has logged it; the others still have to end.
            let _ = task.await;
        }
        if let Err(error) = own.parts.index.close().await {
            tracing::warn!(%error, "closing the index failed; it will be rebuilt from its manifests");
        }
    }
}

/// Starts services in this process, on `settings.store`.
pub(crate) async fn start(settings: &Settings, needs: Needs, options: CoordinatorOptions) -> Result<Services> {
    let store = Store::open(&settings.store).await?;
    let lock = store.lock_exclusive(LOCK_WAIT).await?;
    keep_shards(&store, 1).await?;
    let index = IndexService::open(store.clone(), &settings.index_dir(&store)?, DEFAULT_SHARD).await?;
    let shutdown = Shutdown::new();
    let coordinator = CoordinatorService::open(store.clone(), options, shutdown.clone()).await?;
    let (dialer, listener) = in_process();
    let endpoint = dialer.endpoint();
    // Clients get connections of their own: work of the services on each other must not hold them up.
    let services = Services::behind(|| dialer.endpoint());
    let mut parts = Parts { index, coordinator, models: None };
    let mut tasks = Vec::new();
    if needs == Needs::Models {
        let bundle = prepare(settings).await?;
        let (pipeline, answering) = tokio::try_join!(
            encoder(settings, bundle.clone(), store.clone(), &endpoint),
            decoder(settings, bundle.clone(), store.clone(), &endpoint, &endpoint),
        )?;
        let ending = Shutdown::new();
        for task in [
            encode_worker(&endpoint, pipeline.clone(), &ending),
            decode_worker(&endpoint, answering.clone(), &ending),
            train_worker(&endpoint, &endpoint, bundle, store.clone(), &ending),
        ] {
            tasks.push((ending.clone(), task));
        }
        parts.models = Some((pipeline, answering));
    }
    let server = parts.register(ServerBuilder::new(ServerOptions { drain: SHORT_DRAIN, ..ServerOptions::default() }));
    let ending = shutdown.clone();
    let serving = tokio::spawn(async move {
        if let Err(error) = server.serve_in_process(listener, ending).await {
            tracing::error!(%error, "services of this process ended");
        }
    });
    tasks.push((shutdown, serving));
    let own = Own { parts, tasks: Mutex::new(tasks), _lock: lock };
    Ok(Services { own: Some(Arc::new(own)), ..services })
}

impl Parts {
    fn register(&self, server: ServerBuilder) -> ServerBuilder {
        let server = server.index(self.index.clone()).coordinator(self.coordinator.clone());
        match &self.models {
            Some((pipeline, answering)) => {
                server.encoder(EncoderService::new(pipeline.clone())).decoder(DecoderService::new(answering.clone()))
            }
            None => server,
        }
    }

    /// Keeps the health answers of a server that users reach true.
    fn watch(&self, health: &Health, shutdown: &Shutdown) {
        if let Some((pipeline, answering)) = &self.models {
            for service in [ServiceName::Index, ServiceName::Coordinator] {
                probes::storage(health, service, pipeline.store(), shutdown);
            }
            probes::encoder(health, pipeline, shutdown);
            probes::decoder(health, answering, shutdown);
        }
    }
}

/// The index behind one address, or its shards behind an address each as one.
pub(crate) fn index<'a>(urls: impl Iterator<Item = &'a str>, options: &ClientOptions) -> Result<Endpoint> {
    let shards = urls.map(|url| Endpoint::connect(url.trim(), options)).collect::<Result<Vec<_>, _>>()?;
    if let [whole] = shards.as_slice() {
        return Ok(whole.clone());
    }
    let router = Router::new(shards.iter().map(Endpoint::index).collect());
    let (dialer, listener) = in_process();
    // It ends with the process.
    tokio::spawn(
        ServerBuilder::new(ServerOptions::default()).index(router).serve_in_process(listener, Shutdown::new()),
    );
    Ok(dialer.endpoint())
}

/// Fails unless a store's index has so many shards; notes it where nobody has served the store yet.
pub(crate) async fn keep_shards(store: &Store, shards: u32) -> Result<()> {
    let kept = match noted_shards(store).await? {
        Some(kept) => kept,
        None => {
            // Stores of before this was noted have one.
            let is_old = store.list_stream(&format!("index/{DEFAULT_SHARD}/")).next().await.is_some();
            // Whoever was first has the say.
            note_shards(store, 1, if is_old { 1 } else { shards }).await?;
            noted_shards(store).await?.context("the number of shards was noted and is gone")?
        }
    };
    if kept != shards {
        bail!("the index of this store has {kept} shards, not {shards}; {}", remedy(kept, shards));
    }
    Ok(())
}

fn remedy(kept: u32, shards: u32) -> String {
    match shards {
        // What a command opens by itself.
        1 => format!("serve it with --shards {kept} and name the services with --server"),
        _ => format!("give --shards {kept}, or change it: e2llm reshard --from {kept} --to {shards}"),
    }
}

/// Fails unless a store's index has one of two numbers of shards: that before, or that after a change that has ended.
pub(crate) async fn check_change(store: &Store, (from, to): (u32, u32)) -> Result<()> {
    let kept = noted_shards(store).await?.unwrap_or(1);
    if kept != from && kept != to {
        bail!("the index of this store has {kept} shards, not {from}; give --from {kept}");
    }
    Ok(())
}

/// Notes that a store's index has another number of shards now.
pub(crate) async fn change_shards(store: &Store, shards: u32) -> Result<()> {
    if noted_shards(store).await? != Some(shards) {
        let last = notes(store).await?.pop_last();
        note_shards(store, last.unwrap_or_default() + 1, shards).await?;
    }
    keep_shards(store, shards).await
}

/// The numbers of all notes; the last one holds.
async fn notes(store: &Store) -> Result<BTreeSet<u64>> {
    let paths = store.list(SHARDS).await?;
    Ok(paths.iter().filter_map(|path| path.rsplit('/').next()?.parse().ok()).collect())
}

async fn noted_shards(store: &Store) -> Result<Option<u32>> {
    let Some(last) = notes(store).await?.pop_last() else { return Ok(None) };
    let path = note(last);
    let text = store.get(&path).await?.unwrap_or_default();
    let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
    number.map(Some).with_context(|| format!("{path} in the store is damaged: it holds no number of shards"))
}

async fn note_shards(store: &Store, number: u64, shards: u32) -> Result<()> {
    let _ = store.create(&note(number), shards.to_string().into_bytes()).await?;
    Ok(())
}

fn note(number: u64) -> String {
    format!("{SHARDS}/{number:08}")
}

/// The bundle with its weights on this machine; fetches them when they are absent.
pub(crate) async fn prepare(settings: &Settings) -> Result<Arc<LocalBundle>> {
    let settings = settings.clone();
    let prepared = tokio::task::spawn_blocking(move || LocalBundle::prepare(&settings)).await;
    Ok(Arc::new(prepared.context("fetching weights stopped")??))
}

/// The encoder's pipeline.
pub(crate) async fn encoder(
    settings: &Settings,
    bundle: Arc<LocalBundle>,
    store: Store,
    index: &Endpoint,
) -> Result<Pipeline> {
    let fingerprint = bundle.fingerprint.clone();
    let loaded = tokio::task::spawn_blocking(move || bundle.document_encoder()).await;
    let encoder = loaded.context("loading the encoder stopped")??;
    let pipeline = Pipeline::new(Arc::new(encoder), &fingerprint, store, index.index());
    Ok(pipeline.with_patience(settings.patience))
}

/// The decoder with its thread, which ends with its last user.
pub(crate) async fn decoder(
    settings: &Settings,
    bundle: Arc<LocalBundle>,
    store: Store,
    index: &Endpoint,
    encoder: &Endpoint,
) -> Result<Answering> {
    let (fingerprint, defaults) = (bundle.fingerprint.clone(), bundle.defaults());
    let loaded = tokio::task::spawn_blocking(move || bundle.generator()).await;
    let generator = loaded.context("loading the decoder stopped")??;
    let generator = generator.with_prefix_bytes(settings.caches.prefix_cache.as_u64());
    let engine = Engine::start(generator).context("cannot start the decoder's thread")?;
    let store = settings.read_cache(store)?;
    Ok(Answering::new(engine, &fingerprint, defaults, store, index.index(), encoder.encoder()))
}

/// Runs an encode worker until shutdown.
pub(crate) fn encode_worker(coordinator: &Endpoint, pipeline: Pipeline, shutdown: &Shutdown) -> JoinHandle<()> {
    let fingerprint = pipeline.fingerprint().to_owned();
    worker(coordinator, Stage::Encode, &fingerprint, EncodeTasks::new(pipeline), shutdown)
}

/// Runs a decode worker until shutdown.
pub(crate) fn decode_worker(coordinator: &Endpoint, answering: Answering, shutdown: &Shutdown) -> JoinHandle<()> {
    let fingerprint = answering.fingerprint().to_owned();
    worker(coordinator, Stage::Decode, &fingerprint, DecodeTasks::new(answering), shutdown)
}

/// Runs a training worker until shutdown: the decoder side of a pair whose encoder side is behind `encoder`.
pub(crate) fn train_worker(
    coordinator: &Endpoint,
    encoder: &Endpoint,
    bundle: Arc<LocalBundle>,
    store: Store,
    shutdown: &Shutdown,
) -> JoinHandle<()> {
    let fingerprint = bundle.fingerprint.clone();
    let load: LoadDecoderSide = Arc::new(move || bundle.decoder_side().map_err(|error| format!("{error:#}")));
    worker(coordinator, Stage::Train, &fingerprint, TrainTasks::new(store, encoder.encoder(), load), shutdown)
}

fn worker(
    coordinator: &Endpoint,
    stage: Stage,
    fingerprint: &str,
    handler: impl TaskHandler,
    shutdown: &Shutdown,
) -> JoinHandle<()> {
    let name = format!("{}-{}", stage.as_str_name().to_lowercase(), uuid::Uuid::new_v4().simple());
    // A share takes all cores for minutes; a second one would only make both late.
    let slots = if stage == Stage::Train { 1 } else { SLOTS };
    let worker = WorkerLoop::new(coordinator.coordinator(), name, stage, slots, handler).with_fingerprint(fingerprint);
    tokio::spawn(worker.run(shutdown.clone()))
}
