//! `e2llm serve`: one service, or all four at one address.

use anyhow::{Result, bail};
use e2llm_coordinator::{CoordinatorOptions, CoordinatorService};
use e2llm_decoder::DecoderService;
use e2llm_encoder::EncoderService;
use e2llm_index::{DEFAULT_SHARD, IndexOptions, IndexService};
use e2llm_runtime::{ClientOptions, Endpoint, Listener, ServerBuilder, ServerOptions, ServiceName, Shutdown};
use e2llm_store::{Store, StoreLock};
use tokio::task::JoinHandle;

use crate::cli::{Role, ServeArgs};
use crate::local;
use crate::probes;
use crate::settings::Settings;

/// A service of this process on its way to be served.
struct Boot<'a> {
    settings: &'a Settings,
    store: Store,
    shutdown: Shutdown,
    server: ServerBuilder,
    /// What has to end after serving: workers, then the index and its hold on the store.
    workers: Vec<JoinHandle<()>>,
    index: Option<(IndexService, StoreLock)>,
}

/// Serves until shutdown is requested.
pub(crate) async fn run(args: ServeArgs, settings: &Settings, shutdown: Shutdown) -> Result<()> {
    // The port is taken before the slow parts, so that one in use is reported at once.
    let listener = Listener::bind(&args.listen.to_string()).await?;
    let settings = &Settings { caches: args.caches, ..settings.clone() };
    if args.role == Role::All {
        return serve_all(settings, coordinator_options(&args)?, listener, shutdown).await;
    }
    let store = Store::open(&settings.store).await?;
    let server = ServerBuilder::new(ServerOptions::default());
    let mut boot = Boot { settings, store, shutdown, server, workers: Vec::new(), index: None };
    match args.role {
        Role::Index => boot.index(&args).await?,
        Role::Coordinator => boot.coordinator(coordinator_options(&args)?).await?,
        Role::Encoder => boot.encoder(&endpoint(&args.index_url, "--index-url")?, coordinator(&args)?).await?,
        Role::Decoder => {
            let (index, encoder) =
                (endpoint(&args.index_url, "--index-url")?, endpoint(&args.encoder_url, "--encoder-url")?);
            boot.decoder(&index, &encoder, coordinator(&args)?).await?;
        }
        Role::All => {}
    }
    boot.serve(listener).await
}

fn endpoint(url: &Option<String>, flag: &str) -> Result<Endpoint> {
    let Some(url) = url else { bail!("{flag} is missing; this service needs to reach that one") };
    Ok(Endpoint::connect(url, &ClientOptions::default())?)
}

fn coordinator_options(args: &ServeArgs) -> Result<CoordinatorOptions> {
    let ServeArgs { lease, heartbeat, .. } = *args;
    if heartbeat.is_zero() || lease < heartbeat * 2 {
        let (lease, heartbeat) = (humantime::format_duration(lease), humantime::format_duration(heartbeat));
        bail!("a lease of {lease} is too short for a heartbeat of {heartbeat}; make it at least twice as long");
    }
    // A worker that holds a task has said so within a heartbeat.
    let adopt_grace = heartbeat + heartbeat / 3;
    Ok(CoordinatorOptions { lease, heartbeat, adopt_grace, ..CoordinatorOptions::default() })
}

/// Without a coordinator a worker answers calls and takes no bulk work.
fn coordinator(args: &ServeArgs) -> Result<Option<Endpoint>> {
    args.coordinator_url.is_some().then(|| endpoint(&args.coordinator_url, "--coordinator-url")).transpose()
}

impl Boot<'_> {
    async fn index(&mut self, args: &ServeArgs) -> Result<()> {
        let lock = self.store.lock_exclusive(local::LOCK_WAIT).await?;
        let directory = match &args.index_dir {
            Some(directory) => directory.clone(),
            None => self.settings.index_dir(&self.store)?,
        };
        let options = IndexOptions { snapshot_every: args.snapshot_every, ..IndexOptions::default() };
        let index = IndexService::open_with(self.store.clone(), &directory, DEFAULT_SHARD, options).await?;
        self.add(|server| server.index(index.clone()));
        probes::storage(&self.server.health(), ServiceName::Index, &self.store, &self.shutdown);
        self.index = Some((index, lock));
        Ok(())
    }

    async fn coordinator(&mut self, options: CoordinatorOptions) -> Result<()> {
        let coordinator = CoordinatorService::open(self.store.clone(), options, self.shutdown.clone()).await?;
        self.add(|server| server.coordinator(coordinator));
        probes::storage(&self.server.health(), ServiceName::Coordinator, &self.store, &self.shutdown);
        Ok(())
    }

    async fn encoder(&mut self, index: &Endpoint, coordinator: Option<Endpoint>) -> Result<()> {
        let bundle = local::prepare(self.settings).await?;
        let pipeline = local::encoder(self.settings, bundle, self.store.clone(), index).await?;
        self.add(|server| server.encoder(EncoderService::new(pipeline.clone())));
        probes::encoder(&self.server.health(), &pipeline, &self.shutdown);
        if let Some(coordinator) = coordinator {
            self.workers.push(local::encode_worker(&coordinator, pipeline, &self.shutdown));
        }
        Ok(())
    }

    async fn decoder(&mut self, index: &Endpoint, encoder: &Endpoint, coordinator: Option<Endpoint>) -> Result<()> {
        let bundle = local::prepare(self.settings).await?;
        let answering = local::decoder(self.settings, bundle.clone(), self.store.clone(), index, encoder).await?;
        self.add(|server| server.decoder(DecoderService::new(answering.clone())));
        probes::decoder(&self.server.health(), &answering, &self.shutdown);
        if let Some(coordinator) = coordinator {
            self.workers.push(local::decode_worker(&coordinator, answering, &self.shutdown));
            let store = self.store.clone();
            self.workers.push(local::train_worker(&coordinator, encoder, bundle, store, &self.shutdown));
        }
        Ok(())
    }

    fn add(&mut self, service: impl FnOnce(ServerBuilder) -> ServerBuilder) {
        let server = std::mem::replace(&mut self.server, ServerBuilder::new(ServerOptions::default()));
        self.server = service(server);
    }

    async fn serve(self, listener: Listener) -> Result<()> {
        tracing::info!(store = self.store.url(), "ready");
        self.server.serve(listener, self.shutdown).await?;
        finish(self.workers, self.index).await
    }
}

/// All four: they reach each other inside the process, users reach them at one address.
async fn serve_all(
    settings: &Settings,
    options: CoordinatorOptions,
    listener: Listener,
    shutdown: Shutdown,
) -> Result<()> {
    let services = local::start(settings, local::Needs::Models, options).await?;
    let served = services.serve(listener, shutdown).await;
    services.stop().await;
    served
}

async fn finish(workers: Vec<JoinHandle<()>>, index: Option<(IndexService, StoreLock)>) -> Result<()> {
    for worker in workers {
        // A worker that panicked has logged it; the index still has to be closed.
        let _ = worker.await;
    }
    if let Some((index, _lock)) = index {
        index.close().await?;
    }
    Ok(())
}
