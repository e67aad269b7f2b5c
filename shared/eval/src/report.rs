use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use serde::Serialize;

use crate::bootstrap::{Interval, interval};
use crate::outcome::Outcome;
use crate::system::System;

/// What the outcomes of one kind of task and length amount to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The kind of task.
    pub task: String,
    /// Upper bound of its documents' tokens, a power of two; absent where nobody counted them.
    pub length: Option<usize>,
    /// Score by system.
    pub scores: BTreeMap<String, Interval>,
    /// Mean decoder positions of the prompt by system.
    pub positions: BTreeMap<String, f64>,
    /// Median milliseconds to the first token by system.
    pub first_token_ms: BTreeMap<String, f64>,
    /// Paired over tasks: score with the document's own soft tokens minus that with another's, raw text being the same.
    pub soft_credit: Option<Interval>,
}

/// A table of systems.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// By kind of task, then by length.
    pub rows: Vec<Row>,
}

impl Report {
    /// Sums outcomes up.
    pub fn new(outcomes: &[Outcome]) -> Self {
        let mut groups: BTreeMap<(&str, Option<usize>), Vec<&Outcome>> = BTreeMap::new();
        for outcome in outcomes {
            let length = outcome.tokens.and_then(usize::checked_next_power_of_two);
            groups.entry((&outcome.task, length)).or_default().push(outcome);
        }
        Self { rows: groups.into_iter().map(|((task, length), of)| row(task, length, &of)).collect() }
    }

    /// The table as Markdown: scores in percent with their 95 % intervals and, after @, decoder positions.
    pub fn markdown(&self) -> String {
        let systems = self.systems();
        let mut text = String::from("| task | tokens | n |");
        systems.iter().for_each(|system| text += &format!(" {system} |"));
        text += " own − other |\n|---|---|---|";
        text += &"---|".repeat(systems.len() + 1);
        for row in &self.rows {
            let count = row.scores.values().map(|score| score.count).max().unwrap_or(0);
            let length = row.length.map_or("?".to_owned(), |length| length.to_string());
            let _ = write!(text, "\n| {} | {length} | {count} |", row.task);
            for system in &systems {
                let cell = row.scores.get(system.name()).map(|score| {
                    format!("{} @{:.0}", percent(score), row.positions.get(system.name()).copied().unwrap_or(0.0))
                });
                let _ = write!(text, " {} |", cell.unwrap_or_default());
            }
            let _ = write!(text, " {} |", row.soft_credit.as_ref().map(percent).unwrap_or_default());
        }
        text
    }

    fn systems(&self) -> Vec<System> {
        let used: BTreeSet<&String> = self.rows.iter().flat_map(|row| row.scores.keys()).collect();
        System::ALL.into_iter().filter(|system| used.iter().any(|name| *name == system.name())).collect()
    }
}

fn row(task: &str, length: Option<usize>, outcomes: &[&Outcome]) -> Row {
    let mut by_system: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    outcomes.iter().for_each(|outcome| by_system.entry(outcome.system.clone()).or_default().push(outcome));
    let scores = |of: &Vec<&Outcome>| interval(&of.iter().map(|outcome| outcome.score).collect::<Vec<_>>());
    let positions = |of: &Vec<&Outcome>| {
        of.iter().map(|outcome| f64::from(outcome.positions)).sum::<f64>() / of.len().max(1) as f64
    };
    Row {
        task: task.to_owned(),
        length,
        scores: by_system.iter().filter_map(|(system, of)| Some((system.clone(), scores(of)?))).collect(),
        positions: by_system.iter().map(|(system, of)| (system.clone(), positions(of))).collect(),
        first_token_ms: by_system.iter().map(|(system, of)| (system.clone(), median_ms(of))).collect(),
        soft_credit: credit(&by_system),
    }
}

fn median_ms(outcomes: &[&Outcome]) -> f64 {
    let mut times: Vec<u64> = outcomes.iter().map(|outcome| outcome.first_token_us).collect();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| *time as f64 / 1e3)
}

fn credit(by_system: &BTreeMap<String, Vec<&Outcome>>) -> Option<Interval> {
    let other: HashMap<&str, f64> =
        by_system.get(System::Other.name())?.iter().map(|o| (o.id.as_str(), o.score)).collect();
    let own = by_system.get(System::Expand.name())?;
    let pairs = own.iter().filter_map(|outcome| Some(outcome.score - other.get(outcome.id.as_str())?));
    interval(&pairs.collect::<Vec<_>>())
}

fn percent(Interval { mean, low, high, .. }: &Interval) -> String {
    format!("{:.0} ({:.0} to {:.0})", 100.0 * mean, 100.0 * low, 100.0 * high)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(id: &str, system: System, score: f64) -> Outcome {
        Outcome {
            id: id.to_owned(),
            task: "qa".to_owned(),
            tokens: Some(3_900),
            system: system.name().to_owned(),
            prediction: String::new(),
            score,
            metrics: BTreeMap::new(),
            positions: 1_000,
            soft_positions: 900,
            chunks_left_out: 0,
            first_token_us: 2_000,
            total_us: 3_000,
        }
    }

    #[test]
    fn soft_tokens_get_credit_for_the_paired_difference_alone() {
        let outcomes: Vec<Outcome> = (0..4)
            .flat_map(|i| {
                let id = i.to_string();
                [outcome(&id, System::Expand, f64::from(i % 2)), outcome(&id, System::Other, f64::from(i % 2) - 0.25)]
            })
            .collect();
        let report = Report::new(&outcomes);
        let [row] = report.rows.as_slice() else { panic!("{report:?}") };
        assert_eq!((row.length, row.scores["expand"].mean), (Some(4_096), 0.5));
        let credit = row.soft_credit.unwrap();
        assert_eq!((credit.mean, credit.low, credit.high), (0.25, 0.25, 0.25), "every pair differs alike");
        assert_eq!((row.positions["other"], row.first_token_ms["other"]), (1_000.0, 2.0));
        let lines: Vec<String> = report.markdown().lines().map(str::to_owned).collect();
        assert_eq!(lines[0], "| task | tokens | n | expand | other | own − other |");
        assert_eq!(lines[1], "|---|---|---|---|---|---|");
        assert!(
            lines[2].starts_with("| qa | 4096 | 4 | 50 (") && lines[2].ends_with("| 25 (25 to 25) |"),
            "{}",
            lines[2]
        );
    }

    #[test]
    fn without_the_control_there_is_no_credit() {
        let report = Report::new(&[outcome("a", System::Expand, 1.0)]);
        assert_eq!(report.rows[0].soft_credit, None);
        assert_eq!(Report::new(&[]).rows, []);
    }
}
