use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::RuntimeError;

/// Asks parts of a process to drain and stop. Clones share one request.
#[derive(Debug, Clone, Default)]
pub struct Shutdown(CancellationToken);

impl Shutdown {
    /// A shutdown that only [`Shutdown::request`] triggers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A shutdown that SIGTERM or SIGINT triggers. A second signal ends the process at once.
    pub fn on_signals() -> Result<Self, RuntimeError> {
        let shutdown = Self::new();
        let mut terminate = signal(SignalKind::terminate()).map_err(RuntimeError::Signals)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(RuntimeError::Signals)?;
        let requested = shutdown.clone();
        tokio::spawn(async move {
            let mut received = 0;
            loop {
                let exit_code = tokio::select! {
                    _ = terminate.recv() => 143,
                    _ = interrupt.recv() => 130,
                };
                received += 1;
                if received > 1 {
                    warn!("second signal: exiting without draining");
                    std::process::exit(exit_code);
                }
                info!("signal received: draining; a second one exits at once");
                requested.request();
            }
        });
        Ok(shutdown)
    }

    /// Asks for shutdown.
    pub fn request(&self) {
        self.0.cancel();
    }

    /// Whether shutdown was asked for.
    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until shutdown is asked for.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    /// A shutdown that follows this one but can also be requested alone.
    ///
    /// Stop order matters where one part serves another: workers first, then the server they report to.
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }

    /// The token behind it.
    pub fn token(&self) -> CancellationToken {
        self.0.clone()
    }
}
