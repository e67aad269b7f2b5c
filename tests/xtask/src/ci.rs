//! What must pass before a change lands.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::deploy::{self, DeployArgs};
use crate::run::{self, cargo, succeeds};
use crate::{licences, memcheck, rules};

/// A name for the summary, and what to do.
type Step = (&'static str, fn() -> Result<()>);

/// Cheap steps first; the tests last, by the same command that the README names.
const STEPS: [Step; 11] = [
    ("rules", rules::check),
    ("format", format),
    ("licences", licences::check),
    ("advisories", advisories),
    ("compatible", || deploy::compatible(&DeployArgs::default())),
    ("deploy", || deploy::check(&DeployArgs::default())),
    ("clippy", clippy),
    ("doc", doc),
    ("instructions", instructions),
    ("memcheck", memcheck::run),
    ("test", test),
];

/// Runs every step and stops at the first that fails.
pub(crate) fn run() -> Result<()> {
    let mut times = Vec::new();
    for (name, step) in STEPS {
        eprintln!("== {name}");
        let started = Instant::now();
        step().with_context(|| format!("step `{name}`"))?;
        times.push((name, started.elapsed()));
    }
    print_times(&times);
    Ok(())
}

fn format() -> Result<()> {
    run::run(cargo().args(["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    run::run(cargo().args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]))
}

fn doc() -> Result<()> {
    let arguments = ["doc", "--workspace", "--no-deps", "--locked"];
    run::run(cargo().args(arguments).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Needs cargo-deny and the advisory database; without them the step says so and passes.
fn advisories() -> Result<()> {
    if !succeeds(cargo().args(["deny", "--version"])) {
        eprintln!("not checked: cargo-deny is not installed (cargo install --locked cargo-deny)");
        return Ok(());
    }
    let database = "https://github.com/RustSec/advisory-db";
    let mut reach = Command::new("timeout");
    reach.args(["20", "git", "ls-remote", "--exit-code", database, "HEAD"]).env("GIT_TERMINAL_PROMPT", "0");
    if !succeeds(&mut reach) {
        eprintln!("not checked: {database} cannot be reached");
        return Ok(());
    }
    run::run(cargo().args(["deny", "--locked", "check", "advisories"]))
}

fn instructions() -> Result<()> {
    run::run(cargo().args(["xtask", "instructions"]))
}

fn test() -> Result<()> {
    run::run(cargo().args(["xtask", "test"]))
}

fn print_times(times: &[(&str, Duration)]) {
    let seconds: Vec<String> = times.iter().map(|(name, took)| format!("{name} {} s", took.as_secs())).collect();
    eprintln!("== all steps passed: {}", seconds.join(", "));
}
