//! Where an evaluation goes: tables, charts, and every answer.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use e2llm_data::LineWriter;
use e2llm_eval::{Outcome, Page, Report, charts, html};

use super::Evaluated;
use crate::output::print_line;

/// Flags of what is written.
#[derive(Debug, Args)]
pub(super) struct OutputArgs {
    /// File for every answer with its score: JSON Lines
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// File for the tables with charts, which needs no other
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Directory for the charts, an SVG file each
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    /// Answers of earlier runs of the same bundle (their --output), to be reported together with these
    #[arg(long, value_name = "FILE")]
    with: Vec<PathBuf>,
}

impl OutputArgs {
    /// The answers of earlier runs.
    pub(super) fn earlier(&self) -> Result<Vec<Outcome>> {
        Ok(self.with.iter().map(|path| answers(path)).collect::<Result<Vec<_>>>()?.concat())
    }

    /// Writes the answers to their file; those and `earlier` ones as tables and charts.
    pub(super) fn write(&self, evaluated: Evaluated, earlier: Vec<Outcome>, json: bool) -> Result<()> {
        let Evaluated { bundle, mut outcomes, documents } = evaluated;
        if let Some(path) = &self.output {
            let mut writer = LineWriter::create(path)?;
            outcomes.iter().try_for_each(|outcome| writer.write(outcome))?;
            writer.commit()?;
        }
        outcomes.extend(earlier);
        let mut seen = HashSet::new();
        if let Some(twice) = outcomes.iter().find(|o| !seen.insert((&o.suite, &o.id, &o.system))) {
            bail!("{} of {} was answered in two of the runs; leave one of them out of --with", twice.id, twice.system);
        }
        let report = Report::new(&outcomes);
        match json {
            true => report.rows.iter().try_for_each(|row| print_line(&serde_json::to_string(row)?))?,
            false => print_line(&report.markdown())?,
        }
        if let Some(directory) = &self.charts {
            draw(directory, &report, &outcomes)?;
        }
        let Some(path) = &self.report else { return Ok(()) };
        let command = typed();
        let page = Page { bundle: &bundle, command: &command, report: &report, outcomes: &outcomes, documents };
        let text = html(&page).map_err(|error| anyhow!("cannot draw the report's charts: {error}"))?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// What an earlier run wrote to its `--output`.
fn answers(path: &Path) -> Result<Vec<Outcome>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let outcome = |(number, line): (usize, &str)| {
        serde_json::from_str(line)
            .with_context(|| format!("{} line {} is no answer of `e2llm eval --output`", path.display(), number + 1))
    };
    text.lines().enumerate().map(outcome).collect()
}

fn draw(directory: &Path, report: &Report, outcomes: &[Outcome]) -> Result<()> {
    let charts = charts(report, outcomes).map_err(|error| anyhow!("cannot draw the charts: {error}"))?;
    std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    charts.iter().try_for_each(|chart| {
        let path = directory.join(&chart.name).with_extension("svg");
        std::fs::write(&path, &chart.svg).with_context(|| format!("cannot write {}", path.display()))
    })
}

/// The command line, for people to repeat.
fn typed() -> String {
    let quoted = |argument: std::ffi::OsString| {
        let argument = argument.to_string_lossy().into_owned();
        let is_plain = !argument.is_empty() && argument.chars().all(|c| c.is_alphanumeric() || "-_./,:=@".contains(c));
        if is_plain { argument } else { format!("'{}'", argument.replace('\'', r"'\''")) }
    };
    std::env::args_os().map(quoted).collect::<Vec<_>>().join(" ")
}
