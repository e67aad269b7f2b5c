use std::fmt::Write;

use crate::bootstrap::Interval;
use crate::outcome::Outcome;
use crate::plot::{PlotError, charts};
use crate::report::{Documents, Report, Row, percent};
use crate::system::System;

const STYLE: &str = "body{font:15px/1.45 system-ui,sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;margin:1em 0;font-size:13px}td,th{border:1px solid #ccc;padding:3px 7px;text-align:right}\
td:first-child,th:first-child{text-align:left}.good{background:#dcf2dc}figure{display:inline-block;margin:.6em}\
figcaption{font-size:13px;max-width:620px}code{background:#f2f2f2;padding:1px 4px}";

/// Pairs from which on a credit above zero is marked: the bootstrap of fewer is too sure of itself.
const FEWEST: usize = 10;

/// What a page says besides its figures.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// The bundle's fingerprint, or another name of it.
    pub bundle: &'a str,
    /// The command that gives the same figures.
    pub command: &'a str,
    /// The table.
    pub report: &'a Report,
    /// All answers.
    pub outcomes: &'a [Outcome],
    /// What the documents took.
    pub documents: Documents,
}

/// A report as one HTML file that needs no other: table, normalised scores, times and charts.
///
/// # Errors
/// What drawing the charts fails with.
pub fn html(page: &Page<'_>) -> Result<String, PlotError> {
    let Page { bundle, command, report, outcomes, documents } = page;
    let mut text = format!("<!doctype html><meta charset=\"utf-8\"><title>e2llm eval</title><style>{STYLE}</style>");
    let _ = write!(text, "<h1>Evaluation of bundle <code>{}</code></h1>", escaped(bundle));
    let _ = write!(text, "<p><code>{}</code></p><p>{}</p>", escaped(command), about(documents));
    text += &score_table(report);
    text += &number_table(
        "Teacher-normalised: 1 is what the decoder makes of as much of the text as its window holds, 0 what it makes of none",
        report,
        |row, system| {
            let of = row.normalized.get(system)?;
            Some(format!("{:.2} ({:.2} to {:.2})", of.value, of.low, of.high))
        },
    );
    text += &number_table(
        "Evidence among the raw text: percent of the tasks, and scores of those tasks and of the others",
        report,
        |row, system| {
            let of = row.evidence.get(system)?;
            let score = |score: Option<Interval>| score.as_ref().map_or("–".to_owned(), percent);
            Some(format!("{:.0}: {}, {}", 100.0 * of.read, score(of.score_if_read), score(of.score_if_not)))
        },
    );
    text += &number_table("Median milliseconds to the first token, and to the last", report, |row, system| {
        Some(format!("{:.0}, {:.0}", row.first_token_ms.get(system)?, row.total_ms.get(system)?))
    });
    for chart in charts(report, outcomes)? {
        let _ = write!(text, "<figure>{}<figcaption>{}</figcaption></figure>", chart.svg, escaped(&chart.title));
    }
    Ok(text + "\n")
}

fn about(documents: &Documents) -> String {
    let Documents { documents, text_bytes, stored_bytes, encode_seconds } = documents;
    let encoded = encode_seconds.map(|seconds| format!(", encoded in {seconds:.2} s each")).unwrap_or_default();
    format!("{documents} documents of {text_bytes:.0} bytes of text, stored in {stored_bytes:.0} bytes each{encoded}.")
}

fn score_table(report: &Report) -> String {
    let systems = report.systems();
    let mut text = String::from(
        "<h2>Scores in percent with 95 % intervals, decoder positions after @</h2><table><tr><th>task<th>tokens<th>n",
    );
    systems.iter().for_each(|system| text += &format!("<th>{system}"));
    text += "<th>own − other<th>paper, 7B";
    for row in &report.rows {
        let length = row.length.map_or("?".to_owned(), |length| length.to_string());
        let _ = write!(text, "<tr><td>{}<td>{length}<td>{}", escaped(&row.title()), row.count());
        for system in &systems {
            let score = row.scores.get(system.name()).map(percent).unwrap_or_default();
            let positions = row.positions.get(system.name()).map(|p| format!(" @{p:.0}")).unwrap_or_default();
            let _ = write!(text, "<td>{score}{positions}");
        }
        let earned = row.soft_credit.is_some_and(|credit| credit.count >= FEWEST && credit.low > 0.0);
        let class = if earned { " class=\"good\"" } else { "" };
        let credit = row.soft_credit.as_ref().map(percent).unwrap_or_default();
        let figure = row.paper.map(|figure| figure.to_string()).unwrap_or_default();
        let _ = write!(text, "<td{class}>{credit}<td>{figure}");
    }
    text + "</table>"
}

/// A table of rows by system; empty if no cell has anything to say.
fn number_table(title: &str, report: &Report, cell: impl Fn(&Row, &str) -> Option<String>) -> String {
    let systems = report.systems();
    let mut text = format!("<h2>{}</h2><table><tr><th>task<th>tokens", escaped(title));
    systems.iter().for_each(|system| text += &format!("<th>{system}"));
    let mut is_empty = true;
    for row in &report.rows {
        let cells: Vec<Option<String>> = systems.iter().map(|system: &System| cell(row, system.name())).collect();
        if cells.iter().all(Option::is_none) {
            continue;
        }
        is_empty = false;
        let length = row.length.map_or("?".to_owned(), |length| length.to_string());
        let _ = write!(text, "<tr><td>{}<td>{length}", escaped(&row.title()));
        cells.into_iter().for_each(|cell| text += &format!("<td>{}", cell.unwrap_or_default()));
    }
    if is_empty { String::new() } else { text + "</table>" }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::outcome;

    fn outcomes() -> Vec<Outcome> {
        let mut all = Vec::new();
        for (length, task) in [(4_000, "niah_single_1"), (8_000, "niah_single_1"), (4_000, "vt"), (8_000, "vt")] {
            for id in 0..12 {
                for system in System::ALL {
                    let score = match system {
                        System::None | System::Other => 0.0,
                        _ => f64::from(u8::from(length < 5_000 || id % 2 == 0)),
                    };
                    all.push(Outcome {
                        suite: "ruler".to_owned(),
                        task: task.to_owned(),
                        tokens: Some(length),
                        length: length.checked_next_power_of_two(),
                        depth: Some(f64::from(id) / 12.0),
                        ..outcome(&format!("{task}-{length}-{id}"), system, score)
                    });
                }
            }
        }
        all
    }

    #[test]
    fn a_page_has_tables_and_charts_and_nothing_from_elsewhere() {
        let outcomes = outcomes();
        let report = Report::new(&outcomes);
        let documents = Documents { documents: 24, text_bytes: 9e3, stored_bytes: 1e3, encode_seconds: Some(0.5) };
        let page =
            Page { bundle: "b<1>", command: "e2llm eval ruler", report: &report, outcomes: &outcomes, documents };
        let text = html(&page).unwrap();
        assert!(text.contains("<code>b&lt;1&gt;</code>") && text.contains("encoded in 0.50 s each"));
        // Two tasks, the needles and the mean by length, compression, and four maps.
        assert_eq!(text.matches("<svg").count(), 9);
        assert!(text.contains("ruler vt: score in percent") && text.contains("Needles with expand"));
        assert!(text.contains("80–100 % deep") && text.contains("4k"));
        assert!(text.contains("<td>1.00 (1.00 to 1.00)"), "normalised scores");
        assert_eq!(text.matches("class=\"good\"").count(), 6, "own beats other everywhere");
        assert!(!text.contains("src=") && !text.contains("href="));
    }

    #[test]
    fn without_lengths_there_is_only_the_table() {
        let mut outcomes = outcomes();
        outcomes.iter_mut().for_each(|outcome| (outcome.tokens, outcome.length) = (None, None));
        let report = Report::new(&outcomes);
        let page =
            Page { bundle: "b", command: "", report: &report, outcomes: &outcomes, documents: Documents::default() };
        let text = html(&page).unwrap();
        assert_eq!(text.matches("<svg").count(), 0);
        assert!(text.contains("<table>"));
    }
}
