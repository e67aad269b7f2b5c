//! The repository's chores: `cargo xtask <verb>`.
//!
//! `test` installs what the tests need and runs them all; `faults` is the long form of its fault tests; `bench` measures us beside other systems; `ci` is what must pass before a change lands; `rules` and
//! `licences` are two of its steps that are quick to run alone. Each step is printed before it runs, so that it can be
//! repeated by hand.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod bench;
mod ci;
mod deploy;
mod faults;
mod instructions;
mod licences;
mod memcheck;
mod metadata;
mod proto;
mod rules;
mod run;
mod spdx;
mod test;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The repository's chores")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what the tests need, then run every test
    Test(test::TestArgs),
    /// Jobs on real processes, each with a fault chosen by its seed; one line per run
    Faults(faults::FaultsArgs),
    /// Our speed beside that of other systems
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Everything that must pass before a change lands
    Ci,
    /// Render and check the chart, the Kustomize base, alert rules
    Deploy(deploy::DeployArgs),
    /// Protos against those of the last release
    Compatible(deploy::DeployArgs),
    /// Instruction counts of the kernels against the committed ones
    Instructions(instructions::InstructionsArgs),
    /// Tests of the kernels under valgrind's memcheck
    Memcheck,
    /// House rules: file length, no ignored tests, dependency direction, protos
    Rules,
    /// Licences and sources of every dependency against deny.toml
    Licences,
}

fn main() -> ExitCode {
    match run_verb(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_verb(verb: Verb) -> Result<()> {
    std::env::set_current_dir(run::root())?;
    match verb {
        Verb::Test(args) => test::run(&args),
        Verb::Faults(args) => faults::run(&args),
        Verb::Bench(bench) => bench::run(&bench),
        Verb::Ci => ci::run(),
        Verb::Deploy(args) => deploy::check(&args),
        Verb::Compatible(args) => deploy::compatible(&args),
        Verb::Instructions(args) => instructions::run(&args),
        Verb::Memcheck => memcheck::run(),
        Verb::Rules => rules::check(),
        Verb::Licences => licences::check(),
    }
}
