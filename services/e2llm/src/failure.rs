//! How a command fails: one line on standard error and an exit code.

use std::error::Error;
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use e2llm_api::ErrorCode;
use e2llm_runtime::{CallError, code_of};
use tonic::Status;

/// Exit code of a command that did its work, of which some documents failed: repeating it does not help by itself.
pub(crate) const SOME_FAILED: u8 = 3;
/// Exit code of a process that SIGINT ended.
const INTERRUPTED: u8 = 130;

/// The user pressed Ctrl-C, or the process was asked to stop.
#[derive(Debug, Default)]
pub(crate) struct Interrupted {
    /// What was done and how to go on.
    pub(crate) hint: Option<String>,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl Error for Interrupted {}

/// Prints the error as one line and gives the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let (line, code) = match error.downcast_ref::<Interrupted>() {
        Some(interrupted) => (interrupted.to_string(), ExitCode::from(INTERRUPTED)),
        None => (format!("error: {}", one_line(error)), ExitCode::FAILURE),
    };
    warn_line(&line);
    code
}

/// The same for a command line or a file of settings that cannot be used.
pub(crate) fn wrong_command_line(error: &anyhow::Error) -> ExitCode {
    warn_line(&format!("error: {}", one_line(error)));
    ExitCode::from(2)
}

/// Writes a line to standard error. Where that is closed there is nobody to tell.
pub(crate) fn warn_line(line: &str) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The reader of standard output went away, as `head` does: nothing went wrong.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

/// The message and its causes, leaving out causes that the message already holds.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The error of a call that answered `status`: its message alone, for messages name value and remedy.
pub(crate) fn of_status(status: &Status, address: &str) -> anyhow::Error {
    // Only statuses made on this side of the wire have a source: the connection itself failed.
    let Some(source) = status.source() else {
        let message = if status.message().is_empty() { code_of(status).as_str() } else { status.message() };
        return anyhow::anyhow!("{message}");
    };
    let mut innermost = source;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    anyhow::anyhow!("cannot reach {address}: {innermost}; check --server and that `e2llm serve all` runs there")
}

/// The error of a call that was tried again and failed for good.
pub(crate) fn of_call(error: CallError) -> anyhow::Error {
    if error.code() == ErrorCode::Unavailable {
        return anyhow::anyhow!("{error}; check --server and that `e2llm serve all` runs there");
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_is_one_line_without_repetition() {
        let inner: anyhow::Error = anyhow::anyhow!("no space\nleft");
        assert_eq!(one_line(&inner.context("writing out.jsonl")), "writing out.jsonl: no space left");
        let source = io::Error::other("disk on fire");
        let repeated = anyhow::Error::new(source).context("reading x: disk on fire");
        assert_eq!(one_line(&repeated), "reading x: disk on fire");
    }

    #[test]
    fn a_broken_pipe_is_found_below_its_context() {
        let broken: Result<(), io::Error> = Err(io::ErrorKind::BrokenPipe.into());
        assert!(is_broken_pipe(&broken.context("writing the summary").unwrap_err()));
        assert!(!is_broken_pipe(&anyhow::anyhow!("Broken pipe")));
    }

    #[test]
    fn a_status_is_its_message() {
        let status = e2llm_api::status(e2llm_api::ErrorCode::NotFound, "no document \"a\"; encode it first");
        assert_eq!(of_status(&status, "x").to_string(), "no document \"a\"; encode it first");
        assert_eq!(of_status(&Status::not_found(""), "x").to_string(), "NOT_FOUND");
    }
}
