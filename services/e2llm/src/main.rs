//! The e2llm command line: bulk summaries, questions by document id, and the services.
//!
//! A command is parsed by [`cli`], given its defaults by [`settings`], and run by [`app`] through one of
//! [`commands`]. Commands talk to the four services only through gRPC clients ([`local`]), whether the services
//! run in this process or behind `--server`. Bulk commands read [`input`]s, submit them as a [`job`] and show its
//! rows as they finish ([`view`], [`render`], [`output`], [`progress`]).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod app;
mod bundle;
mod cli;
mod commands;
mod data_cmd;
mod eval_cmd;
mod failure;
mod input;
mod job;
mod local;
mod objects;
mod output;
mod probes;
mod progress;
mod render;
mod serve;
mod settings;
mod train_cmd;
mod view;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// How long blocking work, such as a forward pass, may hold up the end of the process.
const LAST_WORK: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&anyhow::Error::new(error).context("cannot start threads")),
    };
    let outcome = runtime.block_on(app::run(cli));
    runtime.shutdown_timeout(LAST_WORK);
    outcome.unwrap_or_else(|error| failure::report(&error))
}
