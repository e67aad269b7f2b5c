//! What every service process needs: configuration, telemetry, boot, health, shutdown, client channels.
//!
//! A process boots in this order: [`telemetry::init`], [`Shutdown::on_signals`], [`Listener::bind`] (every port
//! early, before models load), services, [`ServerBuilder`], [`ServerBuilder::serve`]. Without a server the same
//! services are served over memory: [`in_process()`] gives a [`Dialer`] and a [`PipeListener`], and
//! [`Dialer::endpoint`] an [`Endpoint`] no different from the one [`Endpoint::connect`] makes for a URL.
//!
//! ```
//! # use std::time::Duration;
//! use e2llm_runtime::{ServerBuilder, ServerOptions, Shutdown, in_process};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let (dialer, listener) = in_process();
//! let shutdown = Shutdown::new();
//! let server = ServerBuilder::new(ServerOptions::default()); // .index(…).encoder(…)
//! tokio::spawn(server.serve_in_process(listener, shutdown.clone()));
//! let index = dialer.endpoint().index();
//! # Ok(()) }
//! ```
//!
//! Options are plain structs whose fields document their defaults; the binary fills them from flags and
//! `E2LLM_*` variables.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod admin;
pub mod auth;
mod channel;
mod clock;
mod endpoint;
mod error;
pub mod failpoint;
mod health;
mod in_process;
mod observe;
mod reload;
mod retry;
mod server;
mod shutdown;
pub mod telemetry;
mod tls;
pub mod trace;
pub mod worker;

pub use admin::Metrics;
pub use channel::{Affinity, Channel};
pub use clock::{Clock, ManualClock, SystemClock};
pub use endpoint::{ClientOptions, Endpoint};
pub use error::RuntimeError;
pub use health::{Check, Health, READINESS, ServiceName};
pub use in_process::{Dialer, PipeListener, in_process};
pub use retry::{CallError, RetryPolicy, cause_of, code_of, overloaded, retry, with_deadline};
pub use server::{Listener, ServerBuilder, ServerOptions};
pub use shutdown::Shutdown;
pub use tls::{ClientTls, ServerTls, TlsFiles};
pub use tokio_util::sync::CancellationToken;
pub use tonic::async_trait;
