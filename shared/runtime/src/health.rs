use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The health name that is `SERVING` only while every service of the process is ready.
///
/// The empty name answers liveness, each service's full name (`e2llm.v1.Index`) its own readiness.
pub const READINESS: &str = "readiness";

/// The four services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceName {
    /// `e2llm.v1.Encoder`
    Encoder,
    /// `e2llm.v1.Index`
    Index,
    /// `e2llm.v1.Decoder`
    Decoder,
    /// `e2llm.v1.Coordinator`
    Coordinator,
}

impl ServiceName {
    /// The full gRPC name.
    pub fn as_str(self) -> &'static str {
        match self {
            ServiceName::Encoder => "e2llm.v1.Encoder",
            ServiceName::Index => "e2llm.v1.Index",
            ServiceName::Decoder => "e2llm.v1.Decoder",
            ServiceName::Coordinator => "e2llm.v1.Coordinator",
        }
    }
}

/// Sets what the health service answers. Clones share one state.
///
/// Liveness stays `SERVING` as long as the process serves: a service that is busy or still loading is not sick.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    ready: Arc<Mutex<BTreeMap<ServiceName, bool>>>,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self { reporter: HealthReporter::new(), ready: Arc::default() }
    }

    pub(crate) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    pub(crate) fn register(&self, service: ServiceName) {
        self.lock().entry(service).or_insert(true);
    }

    pub(crate) fn services(&self) -> Vec<ServiceName> {
        self.lock().keys().copied().collect()
    }

    /// Says whether `service` can take calls. Services are ready unless told otherwise.
    pub async fn set_ready(&self, service: ServiceName, ready: bool) {
        self.lock().insert(service, ready);
        self.publish().await;
    }

    /// Whether every registered service is ready.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|ready| *ready)
    }

    /// Takes every service out of rotation; liveness stays.
    pub(crate) async fn drain(&self) {
        self.lock().values_mut().for_each(|ready| *ready = false);
        self.publish().await;
    }

    pub(crate) async fn publish(&self) {
        let each: Vec<(ServiceName, bool)> = self.lock().iter().map(|(name, ready)| (*name, *ready)).collect();
        for (service, ready) in &each {
            self.reporter.set_service_status(service.as_str(), serving(*ready)).await;
        }
        let all_ready = each.iter().all(|(_, ready)| *ready);
        self.reporter.set_service_status(READINESS, serving(all_ready)).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceName, bool>> {
        self.ready.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn serving(ready: bool) -> ServingStatus {
    if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}
