//! `cargo xtask instructions`: the kernels' instruction counts against those committed. Unlike times, counts are the same on a busy
//! machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run::{self, cargo, root, succeeds};

const BASELINE: &str = "tests/bench/instructions.json";
/// Percent by which a count may differ: another libc copies memory in another way.
const TOLERANCE: f64 = 3.0;
/// The function whose instructions count, with all that it calls.
const COUNTED: &str = "workload::counted*";

/// Instructions by workload.
type Counts = BTreeMap<String, u64>;

/// `cargo xtask instructions`
#[derive(Args)]
pub(crate) struct InstructionsArgs {
    /// Write the counts to the baseline instead of comparing with it
    #[arg(long)]
    write: bool,
}

/// Counts, then compares or writes.
pub(crate) fn run(args: &InstructionsArgs) -> Result<()> {
    if !succeeds(Command::new("valgrind").arg("--version")) {
        bail!("valgrind is missing: apt-get install valgrind (or your system's package)");
    }
    let counts = count()?;
    if args.write {
        let text = serde_json::to_string_pretty(&counts)? + "\n";
        return fs::write(BASELINE, text).context(BASELINE);
    }
    let text = fs::read_to_string(BASELINE).context(BASELINE)?;
    let baseline: Counts = serde_json::from_str(&text).context(BASELINE)?;
    compare(&counts, &baseline)
}

fn count() -> Result<Counts> {
    let arguments = ["build", "--release", "--locked", "--package", "e2llm-kernels", "--example", "workload"];
    run::run(cargo().args(arguments))?;
    let program = program();
    let listed = run::output(&mut Command::new(&program))?;
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    names.map(|name| Ok((name.to_owned(), instructions(&program, name)?))).collect()
}

fn program() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release/examples/workload")
}

fn instructions(program: &Path, workload: &str) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", &format!("--toggle-collect={COUNTED}")]);
    let output = valgrind.arg(program).arg(workload).output().context("cannot start valgrind")?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{workload} failed under valgrind: {report}");
    }
    collected(&report).with_context(|| format!("callgrind counted nothing for {workload}: {report}"))
}

/// The count that callgrind reports at its end.
fn collected(report: &str) -> Option<u64> {
    let line = report.lines().find_map(|line| line.split_once("Collected :"))?.1;
    line.trim().parse().ok().filter(|count| *count > 0)
}

fn compare(counts: &Counts, baseline: &Counts) -> Result<()> {
    let mut wrong = Vec::new();
    for name in counts.keys().chain(baseline.keys().filter(|name| !counts.contains_key(*name))) {
        let (Some(count), Some(expected)) = (counts.get(name), baseline.get(name)) else {
            wrong.push(format!(
                "{name}: only {}",
                if counts.contains_key(name) { "counted" } else { "in the baseline" }
            ));
            continue;
        };
        let percent = (*count as f64 / *expected as f64 - 1.0) * 100.0;
        eprintln!("{name}: {count} instructions ({percent:+.2} %)");
        if percent.abs() > TOLERANCE {
            wrong.push(format!("{name}: {count} instructions, the baseline has {expected} ({percent:+.1} %)"));
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{}\nif that is meant: cargo xtask instructions --write, and say why in the commit", wrong.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(all: &[(&str, u64)]) -> Counts {
        all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn the_count_stands_at_the_end_of_the_report() {
        let report = "==7== Callgrind, a profiler\n==7== Events    : Ir\n==7== Collected : 123456\n";
        assert_eq!(collected(report), Some(123_456));
        assert_eq!(collected("==7== Collected : 0\n"), None);
        assert_eq!(collected(""), None);
    }

    #[test]
    fn more_and_fewer_instructions_than_tolerated_are_named() {
        let baseline = counts(&[("a", 1000), ("b", 1000), ("gone", 1)]);
        assert!(compare(&counts(&[("a", 1029), ("b", 971), ("gone", 1)]), &baseline).is_ok());
        let problem = compare(&counts(&[("a", 1031), ("b", 969), ("new", 1)]), &baseline).unwrap_err().to_string();
        for part in ["a: 1031", "+3.1 %", "b: 969", "-3.1 %", "new: only counted", "gone: only in the baseline"] {
            assert!(problem.contains(part), "{problem}");
        }
    }
}
