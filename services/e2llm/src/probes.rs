//! What running services ask themselves, for their health answers.

use std::time::Duration;

use e2llm_decoder::Answering;
use e2llm_encoder::Pipeline;
use e2llm_runtime::{Check, Health, ServiceName, Shutdown};
use e2llm_store::Store;

/// Time between two probes.
const EVERY: Duration = Duration::from_secs(10);

/// `service` is ready while `store` takes writes.
pub(crate) fn storage(health: &Health, service: ServiceName, store: &Store, shutdown: &Shutdown) {
    let store = store.clone();
    let probe = move || {
        let store = store.clone();
        async move { store.probe().await.map_err(|error| error.to_string()) }
    };
    tokio::spawn(health.clone().watch(service, Check::Storage, EVERY, probe, shutdown.clone()));
}

/// The encoder is ready while its model computes and the store takes writes.
pub(crate) fn encoder(health: &Health, pipeline: &Pipeline, shutdown: &Shutdown) {
    storage(health, ServiceName::Encoder, pipeline.store(), shutdown);
    let pipeline = pipeline.clone();
    let probe = move || {
        let pipeline = pipeline.clone();
        async move { pipeline.check_forward().await }
    };
    tokio::spawn(health.clone().watch(ServiceName::Encoder, Check::Forward, EVERY, probe, shutdown.clone()));
}

/// The decoder only reads the store: it is ready while its model computes.
pub(crate) fn decoder(health: &Health, answering: &Answering, shutdown: &Shutdown) {
    let answering = answering.clone();
    let probe = move || {
        let answering = answering.clone();
        async move { answering.check_forward().await }
    };
    tokio::spawn(health.clone().watch(ServiceName::Decoder, Check::Forward, EVERY, probe, shutdown.clone()));
}
