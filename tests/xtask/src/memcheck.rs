//! `cargo xtask memcheck`: the tests of the one crate with `unsafe` code, under valgrind's memcheck.

use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{self, cargo, succeeds};

/// Fails on a read or write outside of what was allocated, and on a decision by memory that nobody wrote.
pub(crate) fn run() -> Result<()> {
    if !succeeds(Command::new("valgrind").arg("--version")) {
        bail!("valgrind is missing: apt-get install valgrind (or your system's package)");
    }
    let mut tests = cargo();
    tests.args(["test", "--release", "--locked", "--package", "e2llm-kernels", "--lib", "--", "--test-threads=1"]);
    // A few cases of each property: under valgrind everything takes thirty times as long.
    tests.env("PROPTEST_CASES", "16");
    tests.env(runner(), "valgrind --quiet --error-exitcode=9");
    run::run(&mut tests)
}

/// The variable by which cargo starts this platform's programs through another.
fn runner() -> String {
    format!("CARGO_TARGET_{}_{}_RUNNER", std::env::consts::ARCH, "unknown_linux_gnu").to_uppercase()
}
