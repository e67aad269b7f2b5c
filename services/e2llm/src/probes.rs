//! What running services ask themselves, for their health answers.

use std::sync::Arc;
use std::time::Duration;

use e2llm_decoder::Answering;
use e2llm_encoder::Pipeline;
use e2llm_runtime::{Check, Health, ServiceName, Shutdown};
use e2llm_store::Store;

/// Time between two probes, and the longest a write may take.
const EVERY: Duration = Duration::from_secs(10);

/// `service` is ready while `store` takes writes.
pub(crate) fn storage(health: &Health, service: ServiceName, store: &Store, shutdown: &Shutdown) {
    let store = store.clone();
    let holder: Arc<str> = uuid::Uuid::new_v4().simple().to_string().into();
    let probe = move || {
        let (store, holder) = (store.clone(), holder.clone());
        async move {
            match tokio::time::timeout(EVERY, store.probe(&holder)).await {
                Ok(written) => written.map_err(|error| error.to_string()),
                Err(_) => Err(format!("the store took no write within {} s", EVERY.as_secs())),
            }
        }
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
