//! `cargo xtask test`: installs what the tests need, then runs them all.
//!
//! Needed beyond Rust: Python with pip (an S3 server from PyPI for the storage tests) and the default models, which the
//! product fetches itself. Python packages go to `target/test-python`; weights to the same cache that `e2llm` uses.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run::{self, cargo, root, succeeds};

const REQUIREMENTS: &str = "tests/requirements.txt";

/// `cargo xtask test`
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Do not install or fetch anything: what is needed is there
    #[arg(long)]
    offline: bool,
    /// Passed to the test runner: a filter, or its options
    #[arg(last = true)]
    runner: Vec<String>,
}

/// Installs, fetches, then runs unit, integration and documentation tests.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let python = prepare(args.offline)?;
    let runner = if has_nextest() { vec!["nextest", "run"] } else { vec!["test", "--all-targets", "--no-fail-fast"] };
    let mut tests = cargo();
    tests.args(runner).args(["--workspace", "--locked"]).args(&args.runner);
    run::run(with_python(&mut tests, &python))?;
    if args.runner.is_empty() {
        run::run(cargo().args(["test", "--workspace", "--locked", "--doc"]))?;
    }
    Ok(())
}

/// Installs, builds and fetches what tests need; where their Python is.
pub(crate) fn prepare(offline: bool) -> Result<PathBuf> {
    let python = root().join("target/test-python");
    if !offline {
        install_python(&python, REQUIREMENTS)?;
    }
    build()?;
    if !offline {
        fetch_weights()?;
    }
    Ok(python)
}

/// Everything in one go, with the features that the tests unify to: building `e2llm` alone first would compile shared
/// dependencies twice. Some tests start the `e2llm` binary that this leaves in the target directory.
fn build() -> Result<()> {
    run::run(cargo().args(["build", "--workspace", "--all-targets", "--locked"]))
}

/// The default bundle's weights, through the product's own command.
fn fetch_weights() -> Result<()> {
    run::run(Command::new(binary("e2llm")).args(["models", "pull"]))
}

/// A program of this workspace, as the test build leaves it.
pub(crate) fn binary(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// Where cargo builds.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

fn has_nextest() -> bool {
    succeeds(cargo().args(["nextest", "--version"]))
}

/// A virtual environment with the packages of a requirements file, made anew when that file changes.
pub(crate) fn install_python(directory: &Path, requirements: &str) -> Result<()> {
    let wanted = fs::read_to_string(requirements).with_context(|| requirements.to_owned())?;
    let stamp = directory.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    if !succeeds(Command::new("python3").args(["-m", "pip", "--version"])) {
        bail!("python3 with pip is needed for {requirements}: install python3-pip (or use --offline without them)");
    }
    // Without its own pip: Debian's python3 has no ensurepip, and the pip at hand can install into another interpreter.
    run::run(Command::new("python3").args(["-m", "venv", "--clear", "--without-pip"]).arg(directory))?;
    let interpreter = directory.join("bin/python");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--disable-pip-version-check", "--python"]).arg(interpreter);
    run::run(pip.args(["install", "--quiet", "--requirement", requirements]))?;
    fs::write(&stamp, wanted).with_context(|| stamp.display().to_string())
}

/// Tests start their servers and foreign clients with `E2LLM_PYTHON`.
pub(crate) fn with_python<'a>(command: &'a mut Command, directory: &Path) -> &'a mut Command {
    let interpreter = directory.join("bin/python");
    if interpreter.exists() { command.env("E2LLM_PYTHON", interpreter) } else { command }
}
