//! The four services: those of this process, or those behind `--server`.

use std::path::Path;

use anyhow::{Result, bail};
use e2llm_api::v1::coordinator_client::CoordinatorClient;
use e2llm_api::v1::decoder_client::DecoderClient;
use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::index_client::IndexClient;
use e2llm_runtime::{ClientOptions, Endpoint, Shutdown};
use tonic::transport::Channel;

use crate::cli::ServeArgs;
use crate::settings::Settings;

/// Clients' side of the four services.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    encoder: Endpoint,
    index: Endpoint,
    decoder: Endpoint,
    coordinator: Endpoint,
}

impl Services {
    /// The services behind one address. Connects at the first call.
    pub(crate) fn connect(server_url: &str) -> Result<Self> {
        let endpoint = Endpoint::connect(server_url, &ClientOptions::default())?;
        Ok(Self::behind(|| endpoint.clone()))
    }

    /// The services behind one server; each may have a connection of its own.
    pub(crate) fn behind(endpoint: impl Fn() -> Endpoint) -> Self {
        Self { encoder: endpoint(), index: endpoint(), decoder: endpoint(), coordinator: endpoint() }
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

    /// What to call the server in messages.
    pub(crate) fn address(&self) -> &str {
        self.coordinator.address()
    }

    /// Stops services of this process; does nothing to those behind an address.
    pub(crate) async fn stop(self) {}
}

/// Starts the four services in this process, on `settings.store`.
pub(crate) async fn start(settings: &Settings) -> Result<Services> {
    bail!("this build cannot run services in its own process on {}; give --server URL", settings.store)
}

/// Runs services until shutdown is requested.
pub(crate) async fn serve(args: ServeArgs, settings: &Settings, shutdown: Shutdown) -> Result<()> {
    let _ = (shutdown.is_requested(), args.index_dir.as_deref().map(Path::exists));
    bail!("this build cannot serve {:?} on {} yet", args.role, settings.store)
}
