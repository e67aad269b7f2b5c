use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::Shutdown;

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

/// What a service is asked about itself, besides whether it takes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Its model computes: a small forward pass gave finite numbers.
    Forward,
    /// The object store takes writes.
    Storage,
}

impl Check {
    fn as_str(self) -> &'static str {
        match self {
            Check::Forward => "forward",
            Check::Storage => "storage",
        }
    }
}

/// What is known of one service.
#[derive(Debug, Clone)]
struct Condition {
    takes_calls: bool,
    checks: BTreeMap<Check, bool>,
}

impl Condition {
    fn is_ready(&self) -> bool {
        self.takes_calls && self.checks.values().all(|passed| *passed)
    }
}

/// Sets what the health service answers. Clones share one state.
///
/// Three different answers: liveness (the empty name) stays `SERVING` as long as the process serves, for a service that
/// is busy or whose disk is full is not sick; a service's own name, and [`READINESS`] for all of them, say whether calls
/// make sense; `e2llm.v1.Decoder/forward` and the like say what each [`Check`] found.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    services: Arc<Mutex<BTreeMap<ServiceName, Condition>>>,
    /// What was said last. Held while saying, so that an older state never overwrites a newer one.
    said: Arc<tokio::sync::Mutex<BTreeMap<String, bool>>>,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self { reporter: HealthReporter::new(), services: Arc::default(), said: Arc::default() }
    }

    pub(crate) fn reporter(&self) -> HealthReporter {
        self.reporter.clone()
    }

    pub(crate) fn register(&self, service: ServiceName) {
        self.lock().entry(service).or_insert_with(|| Condition { takes_calls: true, checks: BTreeMap::new() });
    }

    pub(crate) fn services(&self) -> Vec<ServiceName> {
        self.lock().keys().copied().collect()
    }

    /// Says whether `service` can take calls. Services can unless told otherwise.
    pub async fn set_ready(&self, service: ServiceName, ready: bool) {
        if let Some(condition) = self.lock().get_mut(&service) {
            condition.takes_calls = ready;
        }
        self.publish().await;
    }

    /// Whether every registered service is ready.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Condition::is_ready)
    }

    /// Whether every service that is asked `check` last passed it; true where none is asked.
    pub fn passes(&self, check: Check) -> bool {
        self.lock().values().all(|condition| condition.checks.get(&check).copied().unwrap_or(true))
    }

    /// Runs `probe` at once and then `every` so often until shutdown; until it first passes, and while it fails,
    /// `service` is not ready.
    ///
    /// A probe that waits, say behind a long document, changes nothing until it has an answer.
    pub fn watch<F>(
        self,
        service: ServiceName,
        check: Check,
        every: Duration,
        mut probe: impl FnMut() -> F,
        shutdown: Shutdown,
    ) -> impl Future<Output = ()>
    where
        F: Future<Output = Result<(), String>>,
    {
        self.set_check(service, check, false);
        async move {
            let mut before = None;
            loop {
                let found = tokio::select! {
                    found = probe() => found,
                    () = shutdown.requested() => return,
                };
                tell(service, check, before, &found);
                before = Some(found.is_ok());
                self.set_check(service, check, found.is_ok());
                self.publish().await;
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    () = shutdown.requested() => return,
                }
            }
        }
    }

    /// Takes every service out of rotation; liveness stays.
    pub(crate) async fn drain(&self) {
        self.lock().values_mut().for_each(|condition| condition.takes_calls = false);
        self.publish().await;
    }

    pub(crate) async fn publish(&self) {
        let mut said = self.said.lock().await;
        for (name, ready) in self.answers() {
            if said.insert(name.clone(), ready) != Some(ready) {
                self.reporter.set_service_status(name, serving(ready)).await;
            }
        }
    }

    /// Every health name with its answer now.
    fn answers(&self) -> Vec<(String, bool)> {
        let services = self.lock();
        let mut answers = vec![(READINESS.to_owned(), services.values().all(Condition::is_ready))];
        for (service, condition) in services.iter() {
            let name = service.as_str();
            answers.push((name.to_owned(), condition.is_ready()));
            let checks = condition.checks.iter();
            answers.extend(checks.map(|(check, passed)| (format!("{name}/{}", check.as_str()), *passed)));
        }
        answers
    }

    fn set_check(&self, service: ServiceName, check: Check, passed: bool) {
        if let Some(condition) = self.lock().get_mut(&service) {
            condition.checks.insert(check, passed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ServiceName, Condition>> {
        self.services.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Logs what changed.
fn tell(service: ServiceName, check: Check, before: Option<bool>, found: &Result<(), String>) {
    let (service, check) = (service.as_str(), check.as_str());
    match found {
        Err(reason) if before != Some(false) => tracing::warn!(service, check, reason, "not ready"),
        Ok(()) if before != Some(true) => tracing::info!(service, check, "ready"),
        _ => {}
    }
}

fn serving(ready: bool) -> ServingStatus {
    if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}
