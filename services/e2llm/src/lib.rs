//! The e2llm command line: bulk summaries, questions by document id, and the services.
//!
//! This library is the binary, so that its parsers can be fuzzed; it is no interface.
//!
//! A command is parsed by `cli`, given its defaults by `settings`, and run by `app` through one of
//! `commands`. Commands talk to the four services only through gRPC clients (`local`), whether the services
//! run in this process or behind `--server`. Bulk commands read `input`s, submit them as a `job` and show its
//! rows as they finish (`view`, `render`, `output`, `progress`).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod app;
mod bundle;
mod cli;
mod commands;
mod config;
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

/// How long blocking work, such as a forward pass, may hold up the end of the process.
const LAST_WORK: Duration = Duration::from_secs(2);

/// Runs the command of this process's arguments to its exit code.
pub fn run() -> ExitCode {
    let cli = match config::parse(std::env::args_os()) {
        Ok((_, Some(printed))) => {
            print!("{printed}");
            return ExitCode::SUCCESS;
        }
        Ok((cli, None)) => cli,
        Err(error) => return failure::wrong_command_line(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failure::report(&anyhow::Error::new(error).context("cannot start threads")),
    };
    let outcome = runtime.block_on(app::run(cli));
    e2llm_runtime::trace::flush();
    runtime.shutdown_timeout(LAST_WORK);
    outcome.unwrap_or_else(|error| failure::report(&error))
}

/// Parsers of users' files, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzz {
    use crate::input::{Columns, Input, read_documents, read_questions};

    /// Reads a file of this name with these bytes: JSON Lines, Parquet, text, compressed or not.
    pub fn documents(name: &str, bytes: &[u8]) {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|error| panic!("no directory: {error}"));
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap_or_else(|error| panic!("not written: {error}"));
        let mut documents = read_documents(vec![Input::Path(path.clone())], Columns::default());
        while documents.blocking_recv().is_some() {}
        let mut questions = read_questions(Input::Path(path));
        while questions.blocking_recv().is_some() {}
    }
}
