//! `e2llm data prepare`: packaged texts to data files.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use e2llm_data::Split;
use e2llm_data::prepare::{self, Job, Report};
use e2llm_model::prompt::{self, SUMMARIZE};
use serde_json::json;

use crate::output::print_line;
use crate::progress::Meter;
use crate::render::count;
use crate::settings::Settings;

/// Where texts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Source {
    /// RFCs: directories into which `dpkg-deb -x` unpacked Debian's doc-rfc-* packages; text with abstracts, and
    /// summary tasks; test is RFC 9000 and later
    Rfc,
    /// Directories or files of .txt, .md, .rst and .html; text
    Text,
    /// apt's Translation-en files, or the output of `apt-cache dumpavail`; tasks: a description to a line
    Packages,
    /// Directories of .txt files, each a headline, a blank line and an article; tasks: an article to its headline
    News,
    /// Data files of texts, such as `prepare rfc` makes; tasks: what an abbreviation stands for that a paragraph introduces
    Abbreviations,
    /// LongBench v2: data.json, multiple choice; test tasks alone, as of all benchmarks
    LongbenchV2,
    /// QuALITY: QuALITY.v1.0.1.htmlstripped.dev and the like, multiple choice
    Quality,
    /// QMSum: data/ALL/jsonl/test.jsonl and the like, questions about meetings
    Qmsum,
    /// GovReport: JSON Lines of {"report", "summary"}
    Govreport,
    /// TriviaQA: the unpacked directory with qa/ and evidence/, or JSON Lines of LongBench
    Triviaqa,
    /// NarrativeQA: the repository's directory with qaps.csv and the stories in tmp/
    Narrativeqa,
    /// SQuAD 1.1 or 2.0: dev-v2.0.json and the like
    Squad,
    /// HotpotQA: hotpot_dev_distractor_v1.json and the like
    Hotpotqa,
}

/// Flags of `e2llm data prepare`.
#[derive(Debug, Args)]
pub(crate) struct PrepareArgs {
    /// What kind of texts
    #[arg(value_enum)]
    source: Source,
    /// Directories or files; .gz and .zst are undone while reading
    #[arg(required = true, value_name = "INPUT")]
    inputs: Vec<PathBuf>,
    /// Directory for train.jsonl, validate.jsonl and test.jsonl, and for tasks train-tasks.jsonl and so on
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Which documents are test and validation, where they are chosen by a hash (all but RFCs)
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

pub(super) fn run(args: &PrepareArgs, settings: &Settings) -> Result<()> {
    let mut meter = Meter::start("prepare", "documents", settings.quiet);
    let prepare = match args.source {
        Source::Rfc => prepare::rfc,
        Source::Text => prepare::text,
        Source::Packages => prepare::packages,
        Source::News => prepare::news,
        Source::Abbreviations => prepare::abbreviations,
        Source::LongbenchV2 => prepare::longbench_v2,
        Source::Quality => prepare::quality,
        Source::Qmsum => prepare::qmsum,
        Source::Govreport => prepare::govreport,
        Source::Triviaqa => prepare::triviaqa,
        Source::Narrativeqa => prepare::narrativeqa,
        Source::Squad => prepare::squad,
        Source::Hotpotqa => prepare::hotpotqa,
    };
    let report = prepare(&mut Job {
        inputs: &args.inputs,
        output: &args.output,
        seed: args.seed,
        summarize: SUMMARIZE,
        question: prompt::question,
        progress: &mut |done, of| meter.update(done, of, ""),
    })?;
    let seconds = (meter.seconds() * 10.0).round() / 10.0;
    drop(meter);
    if settings.json {
        let mut line = json!({"output": args.output, "seconds": seconds});
        if let (Some(line), serde_json::Value::Object(report)) = (line.as_object_mut(), serde_json::to_value(&report)?)
        {
            line.extend(report);
        }
        return print_line(&line.to_string());
    }
    lines(&report).iter().try_for_each(|line| print_line(line))
}

/// The report for people.
fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for split in [Split::Train, Split::Validate, Split::Test] {
        let of = |counts: &std::collections::BTreeMap<Split, u64>| counts.get(&split).copied().unwrap_or_default();
        let (texts, tasks) = (count(of(&report.texts)), count(of(&report.tasks)));
        lines.push(format!("{:<9} {texts:>9} texts {tasks:>9} tasks", split.name()));
    }
    for (reason, dropped) in &report.dropped {
        lines.push(format!("left out  {:>9} {reason}", count(*dropped)));
    }
    if let Some(bytes) = report.shared_bytes {
        lines.push(format!("taken out {:>9} bytes of text that the test split shares with train", count(bytes)));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_lists_splits_and_reasons() {
        let mut report = Report { texts: [(Split::Train, 8182)].into(), shared_bytes: Some(7), ..Report::default() };
        report.dropped.insert("duplicate", 3);
        let lines = lines(&report);
        assert_eq!(lines[0], "train         8,182 texts         0 tasks");
        assert_eq!(lines[3], "left out          3 duplicate");
        assert_eq!(lines.len(), 5);
    }
}
