//! `e2llm serve`: one service, or all four at one address.

use std::time::Duration;

use anyhow::{Result, bail};
use e2llm_api::ErrorCode;
use e2llm_api::v1::GetJobRequest;
use e2llm_coordinator::{CoordinatorOptions, CoordinatorService};
use e2llm_decoder::DecoderService;
use e2llm_encoder::EncoderService;
use e2llm_index::{IndexOptions, IndexService, Shard};
use e2llm_runtime::auth::Auth;
use e2llm_runtime::{
    Endpoint, Listener, Metrics, ServerBuilder, ServerOptions, ServerTls, ServiceName, Shutdown, TlsFiles, cause_of,
    code_of, with_deadline,
};
use e2llm_store::{Store, StoreLock};
use tokio::task::JoinHandle;

use crate::cli::{Role, ServeArgs};
use crate::local::{self, Ports};
use crate::probes;
use crate::settings::Settings;

/// How far a read replica may be behind.
const FOLLOW: Duration = Duration::from_secs(1);
/// How often a worker looks whether its job has ended.
const JOB_LOOK: Duration = Duration::from_secs(3);

/// A service of this process on its way to be served.
struct Boot<'a> {
    settings: &'a Settings,
    store: Store,
    shutdown: Shutdown,
    server: ServerBuilder,
    /// What has to end after serving: workers, then the index and its hold on the store.
    workers: Vec<JoinHandle<()>>,
    index: Option<(IndexService, Option<StoreLock>)>,
}

/// Serves until shutdown is requested.
pub(crate) async fn run(args: ServeArgs, settings: &Settings, shutdown: Shutdown) -> Result<()> {
    check_role(&args)?;
    // Ports are taken before the slow parts, so that one in use is reported at once.
    let ports = ports(&args, settings).await?;
    let settings = &Settings { caches: args.caches, ..settings.clone() };
    if args.role == Role::All {
        return serve_all(settings, coordinator_options(&args)?, ports, shutdown).await;
    }
    let store = Store::open(&settings.store).await?;
    let server = ServerBuilder::new(ports.options);
    let mut boot = Boot { settings, store, shutdown, server, workers: Vec::new(), index: None };
    match args.role {
        Role::Index => boot.index(&args).await?,
        Role::Coordinator => boot.coordinator(coordinator_options(&args)?).await?,
        Role::Encoder => boot.encoder(&boot.index_endpoint(&args)?, boot.coordinator_of(&args)?).await?,
        Role::Decoder => {
            let index = boot.index_endpoint(&args)?;
            let encoder = boot.endpoint(&args.encoder_url, "--encoder-url")?;
            boot.decoder(&index, &encoder, boot.coordinator_of(&args)?).await?;
        }
        Role::All => {}
    }
    if let Some(job) = &args.until_job {
        let Some(coordinator) = boot.coordinator_of(&args)? else { bail!("--until-job needs --coordinator-url") };
        tokio::spawn(end_with_job(coordinator, job.clone(), boot.shutdown.clone()));
    }
    boot.serve(ports.listener, ports.admin).await
}

/// Asks for shutdown once the job has ended. A coordinator that is away, or does not know the job yet, is asked again.
async fn end_with_job(coordinator: Endpoint, job_id: String, shutdown: Shutdown) {
    let mut was_known = false;
    while !shutdown.is_requested() {
        tokio::time::sleep(JOB_LOOK).await;
        let request = with_deadline(GetJobRequest { job_id: job_id.clone() }, JOB_LOOK);
        match coordinator.coordinator().get_job(request).await {
            Ok(status) if status.get_ref().ended_unix_ms > 0 => {
                tracing::info!(job_id, state = status.get_ref().state, "the job has ended, and so does this worker");
                shutdown.request();
            }
            Ok(_) => was_known = true,
            Err(status) if was_known && code_of(&status) == ErrorCode::NotFound => {
                tracing::info!(job_id, "the job was deleted, and this worker ends");
                shutdown.request();
            }
            Err(status) => tracing::debug!(job_id, cause = cause_of(&status), "the job is not known yet"),
        }
    }
}

/// Settings that would be passed over in silence.
fn check_role(args: &ServeArgs) -> Result<()> {
    if args.role != Role::Index && (args.replica || (args.role == Role::All && args.shards > 1)) {
        bail!("--replica and --shards are for `serve index` alone");
    }
    if args.until_job.is_some() && !matches!(args.role, Role::Encoder | Role::Decoder) {
        bail!("--until-job is for `serve encoder` and `serve decoder` alone");
    }
    Ok(())
}

async fn ports(args: &ServeArgs, settings: &Settings) -> Result<Ports> {
    let guard = &args.guard;
    let auth = match &guard.tokens {
        Some(path) => Auth::from_file(path)?,
        None => Auth::Open,
    };
    let tls = match (settings.identity.clone(), &guard.tls_client_ca) {
        (Some(identity), trusted) => {
            Some(ServerTls::new(TlsFiles { identity: Some(identity), trusted: trusted.clone() })?)
        }
        (None, Some(_)) => {
            bail!("--tls-client-ca needs --tls-cert and --tls-key: clients show certificates over TLS only")
        }
        (None, None) => None,
    };
    let asks = guard.tokens.is_some() || guard.tls_client_ca.is_some();
    if !asks && !guard.allow_unauthenticated && !args.listen.ip().is_loopback() {
        bail!(
            "whoever reaches {} could read, change and delete everything; give --tokens or --tls-client-ca, listen on 127.0.0.1, or \
             say --allow-unauthenticated",
            args.listen
        );
    }
    if guard.tokens.is_some() && tls.is_none() && !args.listen.ip().is_loopback() {
        tracing::warn!("tokens are sent in clear text; give --tls-cert and --tls-key, unless a proxy or mesh encrypts");
    }
    let admin = match args.admin_listen {
        Some(address) => Some((Listener::bind(&address.to_string()).await?, Metrics::install()?)),
        None => None,
    };
    let listener = Listener::bind(&args.listen.to_string()).await?;
    Ok(Ports { listener, admin, options: ServerOptions { auth, tls, ..ServerOptions::default() } })
}

fn coordinator_options(args: &ServeArgs) -> Result<CoordinatorOptions> {
    let ServeArgs { lease, heartbeat, max_job_rows: max_rows, .. } = *args;
    if heartbeat.is_zero() || lease < heartbeat * 2 {
        let (lease, heartbeat) = (humantime::format_duration(lease), humantime::format_duration(heartbeat));
        bail!("a lease of {lease} is too short for a heartbeat of {heartbeat}; make it at least twice as long");
    }
    // A worker that holds a task has said so within a heartbeat.
    let adopt_grace = heartbeat + heartbeat / 3;
    Ok(CoordinatorOptions { lease, heartbeat, adopt_grace, max_rows, ..CoordinatorOptions::default() })
}

impl Boot<'_> {
    fn endpoint(&self, url: &Option<String>, flag: &str) -> Result<Endpoint> {
        let Some(url) = url else { bail!("{flag} is missing; this service needs to reach that one") };
        Ok(Endpoint::connect(url, &self.settings.client)?)
    }

    /// The index, or all its shards as one.
    fn index_endpoint(&self, args: &ServeArgs) -> Result<Endpoint> {
        let Some(urls) = &args.index_url else { bail!("--index-url is missing; this service needs to reach that one") };
        local::index(urls.split(','), &self.settings.client)
    }

    /// Without a coordinator a worker answers calls and takes no bulk work.
    fn coordinator_of(&self, args: &ServeArgs) -> Result<Option<Endpoint>> {
        let url = &args.coordinator_url;
        url.is_some().then(|| self.endpoint(url, "--coordinator-url")).transpose()
    }

    async fn index(&mut self, args: &ServeArgs) -> Result<()> {
        let lock = match args.replica {
            true => None,
            false => Some(self.store.lock_exclusive(local::LOCK_WAIT).await?),
        };
        let directory = match &args.index_dir {
            Some(directory) => directory.clone(),
            None if args.replica => bail!("--replica needs a view of its own: give --index-dir"),
            None => self.settings.index_dir(&self.store)?,
        };
        let shard = Shard::new(args.shard, args.shards)?;
        local::keep_shards(&self.store, args.shards).await?;
        let follow_every = args.replica.then_some(FOLLOW);
        let options =
            IndexOptions { snapshot_every: args.snapshot_every, shard, follow_every, ..IndexOptions::default() };
        let index = IndexService::open_with(self.store.clone(), &directory, &shard.log(), options).await?;
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

    async fn serve(self, listener: Listener, admin: Option<(Listener, Metrics)>) -> Result<()> {
        if let Some((listener, metrics)) = admin {
            metrics.serve(listener, self.server.health(), self.shutdown.clone());
        }
        tracing::info!(store = self.store.url(), "ready");
        self.server.serve(listener, self.shutdown).await?;
        finish(self.workers, self.index).await
    }
}

/// All four: they reach each other inside the process, users reach them at one address.
async fn serve_all(settings: &Settings, options: CoordinatorOptions, ports: Ports, shutdown: Shutdown) -> Result<()> {
    let services = local::start(settings, local::Needs::Models, options).await?;
    let served = services.serve(ports, shutdown).await;
    services.stop().await;
    served
}

async fn finish(workers: Vec<JoinHandle<()>>, index: Option<(IndexService, Option<StoreLock>)>) -> Result<()> {
    for worker in workers {
        // A worker that panicked has logged it; the index still has to be closed.
        let _ = worker.await;
    }
    if let Some((index, _lock)) = index {
        index.close().await?;
    }
    Ok(())
}
