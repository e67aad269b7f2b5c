use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use serde::Serialize;

use crate::bootstrap::{Interval, interval, resampled};
use crate::outcome::Outcome;
use crate::paper::paper;
use crate::system::System;

/// The row of all needles, which is what the paper has a figure of.
pub(crate) const NEEDLES: &str = "ruler niah, mean of all";
/// What benchmarks say of tasks that rows are made for, too.
const LABELS: [&str; 2] = ["difficulty", "length"];

/// What the outcomes of one kind of task and length amount to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The kind of task, see [`Outcome::name`].
    pub task: String,
    /// The label that all of these tasks have, such as `difficulty=hard`; absent for the row of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// See [`Outcome::length`].
    pub length: Option<usize>,
    /// Mean tokens of the documents, where they were counted.
    pub tokens: Option<f64>,
    /// Score by system.
    pub scores: BTreeMap<String, Interval>,
    /// Paired over tasks, (score − score without document) / (score of the full text − score without document): 1 is what the
    /// decoder makes of as much of the text as its window holds. Only where the text is of use to it: the 95 % interval of the denominator is above 0.
    pub normalized: BTreeMap<String, Interval>,
    /// What raw text of the evidence is worth, by system, of tasks that have evidence.
    pub evidence: BTreeMap<String, Evidence>,
    /// Mean decoder positions of the prompt by system.
    pub positions: BTreeMap<String, f64>,
    /// Median milliseconds to the first token by system.
    pub first_token_ms: BTreeMap<String, f64>,
    /// Median milliseconds to the last.
    pub total_ms: BTreeMap<String, f64>,
    /// Paired over tasks: score with the document's own soft tokens minus that with another's, raw text being the same.
    pub soft_credit: Option<Interval>,
    /// See [`paper`].
    pub paper: Option<f64>,
}

/// A system's scores by whether the decoder read all of the evidence as raw text: what choosing chunks costs, and what is
/// lost with the right ones read.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Evidence {
    /// Share of tasks in which it did.
    pub read: f64,
    /// Score of these tasks.
    pub score_if_read: Option<Interval>,
    /// Score of the others.
    pub score_if_not: Option<Interval>,
}

/// What the documents of an evaluation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Documents {
    /// Different ones.
    pub documents: usize,
    /// Mean bytes of text.
    pub text_bytes: f64,
    /// Mean bytes stored for one: soft tokens and vectors.
    pub stored_bytes: f64,
    /// Seconds of encoding per document, waiting included; absent where they were all encoded before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encode_seconds: Option<f64>,
}

/// Kind of task, label, and length.
type Group = (String, Option<String>, Option<usize>);

/// A table of systems.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// By kind of task, then by length.
    pub rows: Vec<Row>,
}

impl Report {
    /// Sums outcomes up.
    pub fn new(outcomes: &[Outcome]) -> Self {
        let mut groups: BTreeMap<Group, Vec<&Outcome>> = BTreeMap::new();
        for outcome in outcomes {
            let labels = LABELS.iter().filter_map(|name| Some(format!("{name}={}", outcome.labels.get(*name)?)));
            for label in labels.map(Some).chain([None]) {
                groups.entry((outcome.name(), label, outcome.length)).or_default().push(outcome);
            }
            if outcome.suite == "ruler" && outcome.task.starts_with("niah_") {
                groups.entry((NEEDLES.to_owned(), None, outcome.length)).or_default().push(outcome);
            }
        }
        Self { rows: groups.into_iter().map(|(group, of)| row(group, &of)).collect() }
    }

    /// The table as Markdown: scores in percent with their 95 % intervals and, after @, decoder positions.
    pub fn markdown(&self) -> String {
        let systems = self.systems();
        let with_paper = self.rows.iter().any(|row| row.paper.is_some());
        let mut text = String::from("| task | tokens | n |");
        systems.iter().for_each(|system| text += &format!(" {system} |"));
        text += " own − other |";
        text += if with_paper { " paper, 7B |\n" } else { "\n" };
        text += &"|---".repeat(systems.len() + 4 + usize::from(with_paper));
        text += "|";
        for row in &self.rows {
            let length = row.length.map_or("?".to_owned(), |length| length.to_string());
            let _ = write!(text, "\n| {} | {length} | {} |", row.title(), row.count());
            for system in &systems {
                let cell = row.scores.get(system.name()).map(|score| {
                    format!("{} @{:.0}", percent(score), row.positions.get(system.name()).copied().unwrap_or(0.0))
                });
                let _ = write!(text, " {} |", cell.unwrap_or_default());
            }
            let _ = write!(text, " {} |", row.soft_credit.as_ref().map(percent).unwrap_or_default());
            if with_paper {
                let _ = write!(text, " {} |", row.paper.map(|figure| figure.to_string()).unwrap_or_default());
            }
        }
        text
    }

    /// The systems that there are outcomes of, in the order of tables.
    pub fn systems(&self) -> Vec<System> {
        let used: BTreeSet<&String> = self.rows.iter().flat_map(|row| row.scores.keys()).collect();
        System::ALL.into_iter().filter(|system| used.iter().any(|name| *name == system.name())).collect()
    }
}

impl Row {
    /// Its kind of task with the label.
    pub fn title(&self) -> String {
        self.label.as_ref().map_or_else(|| self.task.clone(), |label| format!("{}, {label}", self.task))
    }

    /// Tasks.
    pub fn count(&self) -> usize {
        self.scores.values().map(|score| score.count).max().unwrap_or(0)
    }
}

type BySystem<'o> = BTreeMap<String, Vec<&'o Outcome>>;

fn row((task, label, length): Group, outcomes: &[&Outcome]) -> Row {
    let mut by_system: BySystem<'_> = BTreeMap::new();
    outcomes.iter().for_each(|outcome| by_system.entry(outcome.system.clone()).or_default().push(outcome));
    let mean = |values: &mut dyn Iterator<Item = f64>, count: usize| values.sum::<f64>() / count.max(1) as f64;
    let of_each = |value: &dyn Fn(&[&Outcome]) -> f64| {
        by_system.iter().map(|(system, of)| (system.clone(), value(of))).collect::<BTreeMap<_, _>>()
    };
    let counted: Vec<f64> = outcomes.iter().filter_map(|outcome| Some(outcome.tokens? as f64)).collect();
    let paper = if label.is_none() { paper(&task, length) } else { None };
    Row {
        task,
        label,
        length,
        tokens: (!counted.is_empty()).then(|| mean(&mut counted.iter().copied(), counted.len())),
        scores: by_system.iter().filter_map(|(system, of)| Some((system.clone(), mean_score(of)?))).collect(),
        normalized: normalized(&by_system),
        evidence: by_system.iter().filter_map(|(system, of)| Some((system.clone(), evidence(of)?))).collect(),
        positions: of_each(&|of| mean(&mut of.iter().map(|outcome| f64::from(outcome.positions)), of.len())),
        first_token_ms: of_each(&|of| median_ms(of.iter().map(|outcome| outcome.first_token_us))),
        total_ms: of_each(&|of| median_ms(of.iter().map(|outcome| outcome.total_us))),
        soft_credit: credit(&by_system),
        paper,
    }
}

fn mean_score<'o>(outcomes: impl IntoIterator<Item = &'o &'o Outcome>) -> Option<Interval> {
    interval(outcomes.into_iter().map(|outcome| (outcome.doc_id.as_str(), outcome.score)))
}

fn evidence(outcomes: &[&Outcome]) -> Option<Evidence> {
    let known: Vec<&Outcome> = outcomes.iter().copied().filter(|outcome| outcome.evidence_read.is_some()).collect();
    let is_read = |outcome: &&Outcome| outcome.evidence_read.is_some_and(|share| share >= 1.0);
    let (read, not): (Vec<&Outcome>, Vec<&Outcome>) = known.iter().copied().partition(is_read);
    (!known.is_empty()).then(|| Evidence {
        read: read.len() as f64 / known.len() as f64,
        score_if_read: mean_score(&read),
        score_if_not: mean_score(&not),
    })
}

fn median_ms(times: impl Iterator<Item = u64>) -> f64 {
    let mut times: Vec<u64> = times.collect();
    times.sort_unstable();
    times.get(times.len() / 2).map_or(0.0, |time| *time as f64 / 1e3)
}

/// Scores by task.
fn scores<'o>(by_system: &BySystem<'o>, system: &str) -> Option<HashMap<&'o str, f64>> {
    Some(by_system.get(system)?.iter().map(|outcome| (outcome.id.as_str(), outcome.score)).collect())
}

fn credit(by_system: &BySystem<'_>) -> Option<Interval> {
    let other = scores(by_system, System::Other.name())?;
    let own = by_system.get(System::Expand.name())?;
    let pairs = own
        .iter()
        .filter_map(|outcome| Some((outcome.doc_id.as_str(), outcome.score - other.get(outcome.id.as_str())?)));
    interval(pairs)
}

fn normalized(by_system: &BySystem<'_>) -> BTreeMap<String, Interval> {
    let ends = [System::Full, System::None].map(System::name);
    let (Some(full), Some(none)) = (scores(by_system, ends[0]), scores(by_system, ends[1])) else {
        return BTreeMap::new();
    };
    let of_system = |(system, outcomes): (&String, &Vec<&Outcome>)| {
        let gains = outcomes.iter().filter_map(|outcome| {
            let (full, none) = (full.get(outcome.id.as_str())?, none.get(outcome.id.as_str())?);
            Some((outcome.doc_id.as_str(), (outcome.score - none, full - none)))
        });
        let (documents, gains): (Vec<&str>, Vec<(f64, f64)>) = gains.unzip();
        let teacher = documents.iter().copied().zip(gains.iter().map(|(_, teacher)| *teacher));
        interval(teacher).filter(|teacher| teacher.low > 0.0)?;
        let ratio = |of: &[usize]| {
            let (own, teacher) = of.iter().fold((0.0, 0.0), |sum, at| (sum.0 + gains[*at].0, sum.1 + gains[*at].1));
            own / teacher
        };
        Some((system.clone(), resampled(&documents, ratio)?))
    };
    by_system.iter().filter(|(system, _)| !ends.contains(&system.as_str())).filter_map(of_system).collect()
}

pub(crate) fn percent(Interval { value, low, high, .. }: &Interval) -> String {
    format!("{:.0} ({:.0} to {:.0})", 100.0 * value, 100.0 * low, 100.0 * high)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn outcome(id: &str, system: System, score: f64) -> Outcome {
        Outcome {
            suite: String::new(),
            id: id.to_owned(),
            task: "qa".to_owned(),
            doc_id: id.to_owned(),
            tokens: Some(3_900),
            length: Some(4_096),
            labels: BTreeMap::new(),
            depth: None,
            evidence_read: None,
            prompt: String::new(),
            instruction: String::new(),
            references: Vec::new(),
            system: system.name().to_owned(),
            prediction: String::new(),
            choices: Vec::new(),
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
        assert_eq!((row.length, row.scores["expand"].value), (Some(4_096), 0.5));
        let credit = row.soft_credit.unwrap();
        assert_eq!((credit.value, credit.low, credit.high), (0.25, 0.25, 0.25), "every pair differs alike");
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
    fn scores_are_told_apart_by_whether_the_evidence_was_read() {
        let of = |id: &str, evidence_read, score| Outcome { evidence_read, ..outcome(id, System::Expand, score) };
        let outcomes = [of("a", Some(1.0), 1.0), of("b", Some(0.9), 0.25), of("c", Some(0.0), 0.0), of("d", None, 1.0)];
        let report = Report::new(&outcomes);
        let evidence = report.rows[0].evidence["expand"];
        let value = |interval: Option<Interval>| interval.map(|interval| (interval.value, interval.count));
        assert!((evidence.read - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!((value(evidence.score_if_read), value(evidence.score_if_not)), (Some((1.0, 1)), Some((0.125, 2))));
        assert!(Report::new(&outcomes[3..]).rows[0].evidence.is_empty(), "a task without evidence");
    }

    #[test]
    fn a_score_is_normalized_where_the_text_is_of_use() {
        let outcomes = |full: f64| -> Vec<Outcome> {
            let of = |id: usize| {
                let id = id.to_string();
                [outcome(&id, System::Soft, 0.5), outcome(&id, System::Full, full), outcome(&id, System::None, 0.2)]
            };
            (0..8).flat_map(of).collect()
        };
        let report = Report::new(&outcomes(0.8));
        let normalized = &report.rows[0].normalized;
        assert!((normalized["soft"].value - 0.5).abs() < 1e-9 && normalized.len() == 1, "{normalized:?}");
        assert!(Report::new(&outcomes(0.2)).rows[0].normalized.is_empty(), "the text was of no use");
    }

    #[test]
    fn labels_get_rows_of_their_own_and_the_paper_a_column() {
        let labelled = |id: &str, difficulty: &str| Outcome {
            suite: "longbench-v2".to_owned(),
            task: "choice".to_owned(),
            tokens: None,
            length: None,
            labels: [("difficulty", difficulty), ("domain", "law")].map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            ..outcome(id, System::Soft, 1.0)
        };
        let report = Report::new(&[labelled("a", "easy"), labelled("b", "hard")]);
        let titles: Vec<String> = report.rows.iter().map(Row::title).collect();
        assert_eq!(titles, ["longbench-v2", "longbench-v2, difficulty=easy", "longbench-v2, difficulty=hard"]);
        assert_eq!((report.rows[0].count(), report.rows[2].count()), (2, 1));
        assert!(report.markdown().contains("paper, 7B |\n|---|") && report.markdown().contains("| 31.8 |"));
    }

    #[test]
    fn without_the_control_there_is_no_credit() {
        let report = Report::new(&[outcome("a", System::Expand, 1.0)]);
        assert_eq!(report.rows[0].soft_credit, None);
        assert_eq!(Report::new(&[]).rows, []);
    }
}
