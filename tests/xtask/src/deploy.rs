//! `cargo xtask deploy`: what is deployed is rendered and checked; `cargo xtask compatible`: protos against the last release.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::run::{self, root};
use crate::test;

const REQUIREMENTS: &str = "tests/deploy/requirements.txt";
/// Descriptors of the last release: what clients and other services may have been built with.
const RELEASED: &str = "released.binpb";
/// Messages that are on the wire or in the store must be understood by both versions.
const RULES: &str = r#"{"version":"v2","breaking":{"use":["WIRE_JSON"]}}"#;

/// `cargo xtask deploy`
#[derive(Args, Default)]
pub(crate) struct DeployArgs {
    /// Do not install anything: what is needed is there
    #[arg(long)]
    offline: bool,
}

fn python(offline: bool) -> Result<PathBuf> {
    let directory = root().join("target/deploy-python");
    if !offline {
        test::install_python(&directory, REQUIREMENTS)?;
    }
    Ok(directory.join("bin"))
}

/// Renders the chart in several ways and checks what comes out.
pub(crate) fn check(args: &DeployArgs) -> Result<()> {
    let programs = python(args.offline)?;
    run::run(Command::new(programs.join("python")).arg("tests/deploy/check.py"))
}

/// A message or field that an older version knows must not have become another one.
pub(crate) fn compatible(args: &DeployArgs) -> Result<()> {
    let programs = python(args.offline)?;
    let mut buf = Command::new(programs.join("buf"));
    run::run(buf.current_dir("proto").args(["breaking", "--against", RELEASED, "--config", RULES]))
}
