//! Medians, spread, and the table.

use serde_json::{Value, json};

use super::works::{Against, Unit, Work};

/// Vectors are compared as equal if their difference is within this part of the larger one's size.
const TOLERANCE: f64 = 1e-2;

/// What was measured in one round, in the unit of the work.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) figure: f64,
    pub(crate) note: Value,
}

/// All rounds of one contestant, or why there are none.
pub(crate) type Rounds = Result<Vec<Measured>, Absent>;

/// Why there are no figures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Absent {
    /// The contestant has no such work.
    Unsupported(String),
    /// It should have, and failed.
    Failed(String),
}

/// Median, least and most.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// None of no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, least, most })
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.least, "max": self.most })
    }

    fn text(self) -> String {
        format!("{} ({}–{})", figure(self.median), figure(self.least), figure(self.most))
    }
}

/// One line of the table.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) work: &'static str,
    pub(crate) unit: Unit,
    pub(crate) against: Against,
    /// As the peer names its version and build.
    pub(crate) version: String,
    /// Which of our contestants it is.
    pub(crate) ours_name: &'static str,
    pub(crate) ours: Rounds,
    pub(crate) peer: Rounds,
}

impl Row {
    pub(crate) fn new(work: &Work, against: Against, version: String, ours: Rounds, peer: Rounds) -> Self {
        Self { work: work.name, unit: work.unit, against, version, ours_name: work.ours, ours, peer }
    }

    /// Ratio of medians, least and most of the rounds' ratios.
    fn ratio(&self) -> Option<Spread> {
        let (Ok(ours), Ok(peer)) = (&self.ours, &self.peer) else { return None };
        let of_rounds: Vec<f64> = ours.iter().zip(peer).map(|(a, b)| self.unit.ratio(a.figure, b.figure)).collect();
        let medians = self.unit.ratio(spread(&self.ours)?.median, spread(&self.peer)?.median);
        Spread::of(&of_rounds).map(|rounds| Spread { median: medians, ..rounds })
    }

    fn reached(&self) -> Option<bool> {
        Some(self.ratio()?.median >= self.against.bar?)
    }

    /// Whether both contestants came to the same, where they say what they came to.
    fn check(&self) -> Option<Check> {
        let (ours, peer) = (checked(&self.ours)?, checked(&self.peer)?);
        let both = ours.len().min(peer.len());
        if let Some(error) = relative_error(&ours[..both], &peer[..both]) {
            return Some(Check::Off { error });
        }
        let agreeing = ours.iter().zip(peer).take_while(|(a, b)| a == b).count();
        Some(if agreeing == both { Check::Agrees } else { Check::Differs { agreeing, of: both } })
    }

    /// Why the row has no ratio, or that its contestants disagree.
    pub(crate) fn failure(&self) -> Option<String> {
        let failed = |name: &str, rounds: &Rounds| match rounds {
            Err(Absent::Failed(reason)) => Some(format!("{} of {name}: {reason}", self.work)),
            _ => None,
        };
        let disagree = || match self.check()? {
            Check::Agrees | Check::Differs { agreeing: 1.., .. } => None,
            Check::Off { error } if error <= TOLERANCE => None,
            _ => Some(format!("{}: {} and {} differ", self.work, self.ours_name, self.against.peer)),
        };
        failed(self.ours_name, &self.ours).or_else(|| failed(self.against.peer, &self.peer)).or_else(disagree)
    }

    pub(crate) fn json(&self) -> Value {
        let rounds = self.ours.as_ref().or(self.peer.as_ref()).map_or(0, Vec::len);
        let median = |rounds: &Rounds| spread(rounds).map(|spread| spread.median);
        json!({
            "work": self.work, "unit": self.unit.name(), "ours": median(&self.ours), "peer": median(&self.peer),
            "ours_name": self.ours_name, "peer_name": self.against.peer, "peer_version": self.version, "ratio": self.ratio().map(|ratio| ratio.median),
            "bar": self.against.bar, "reached": self.reached(), "rounds": rounds,
            "spread": {
                "ours": spread(&self.ours).map(Spread::json), "peer": spread(&self.peer).map(Spread::json),
                "ratio": self.ratio().map(Spread::json),
            },
            "check": self.check().map(Check::text), "ours_note": note(&self.ours), "peer_note": note(&self.peer),
            "ours_absent": absent(&self.ours), "peer_absent": absent(&self.peer),
        })
    }

    fn markdown(&self) -> String {
        let figures = |rounds: &Rounds| spread(rounds).map_or_else(|| absent(rounds).unwrap_or_default(), Spread::text);
        let bar = match (self.against.bar, self.reached()) {
            (None, _) => "–".to_owned(),
            (Some(bar), Some(true)) => format!("≥ {bar} reached"),
            (Some(bar), Some(false)) => format!("≥ {bar} **missed**"),
            (Some(bar), None) => format!("≥ {bar}"),
        };
        let ratio = self
            .ratio()
            .map_or_else(|| "–".to_owned(), |r| format!("**{:.2}** ({:.2}–{:.2})", r.median, r.least, r.most));
        let check = self.check().map_or_else(|| "–".to_owned(), Check::text);
        let peer_name = format!("{} {}", self.against.peer, self.version);
        let notes = [("ours", note(&self.ours)), ("peer", note(&self.peer))];
        let notes: Vec<String> = notes.iter().filter_map(|(name, note)| said(name, note)).collect();
        let cells = [
            self.work.to_owned(),
            self.unit.name(),
            self.ours_name.to_owned(),
            figures(&self.ours),
            figures(&self.peer),
            peer_name.trim().to_owned(),
            ratio,
            bar,
            check,
            notes.join("; "),
        ];
        format!("| {} |", cells.map(|cell| cell.replace('|', "/").replace('\n', " ")).join(" | "))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Check {
    Agrees,
    /// Tokens.
    Differs {
        agreeing: usize,
        of: usize,
    },
    /// States: length of the difference, as a part of the larger vector's.
    Off {
        error: f64,
    },
}

impl Check {
    fn text(self) -> String {
        match self {
            Self::Agrees => "same".to_owned(),
            Self::Differs { agreeing, of } => format!("**differs** after {agreeing} of {of}"),
            Self::Off { error } if error <= TOLERANCE => format!("same within {:.1} %", 100.0 * error),
            Self::Off { error } => format!("**off** by {:.1} %", 100.0 * error),
        }
    }
}

/// The whole table.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = "| work | unit | ours | e2llm | peer | peer's name | ratio (of rounds) | bar | outputs | notes |\n|---|---|---|---|---|---|---|---|---|---|";
    let lines = rows.iter().map(Row::markdown);
    std::iter::once(head.to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
}

fn spread(rounds: &Rounds) -> Option<Spread> {
    let figures: Vec<f64> = rounds.as_ref().ok()?.iter().map(|measured| measured.figure).collect();
    Spread::of(&figures)
}

fn absent(rounds: &Rounds) -> Option<String> {
    rounds.as_ref().err().map(|absent| match absent {
        Absent::Unsupported(reason) => format!("unsupported: {reason}"),
        Absent::Failed(reason) => format!("failed: {reason}"),
    })
}

/// The note of the last round.
fn note(rounds: &Rounds) -> Value {
    rounds.as_ref().ok().and_then(|rounds| rounds.last()).map_or(Value::Null, |measured| measured.note.clone())
}

fn checked(rounds: &Rounds) -> Option<&Vec<Value>> {
    rounds.as_ref().ok()?.last()?.note["check"].as_array()
}

/// Of two vectors of states; None of tokens.
fn relative_error(ours: &[Value], peer: &[Value]) -> Option<f64> {
    let vector = |values: &[Value]| values.iter().map(|value| value.as_f64().filter(|_| value.is_f64())).collect();
    let (ours, peer): (Option<Vec<f64>>, Option<Vec<f64>>) = (vector(ours), vector(peer));
    let (ours, peer) = (ours.filter(|ours| !ours.is_empty())?, peer?);
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = length(&mut ours.iter().zip(&peer).map(|(a, b)| a - b));
    let size = length(&mut ours.iter().copied()).max(length(&mut peer.iter().copied()));
    Some(if size > 0.0 { difference / size } else { 0.0 })
}

/// A note's fields but its check.
fn said(name: &str, note: &Value) -> Option<String> {
    let fields = note.as_object()?.iter().filter(|(key, _)| *key != "check");
    let words: Vec<String> = fields.map(|(key, value)| format!("{key} {}", word(value))).collect();
    (!words.is_empty()).then(|| format!("{name}: {}", words.join(", ")))
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => figure(number.as_f64().unwrap_or_default()),
        other => other.to_string(),
    }
}

/// Four digits, or what stands before the point.
fn figure(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(figures: &[f64], check: Value) -> Rounds {
        Ok(figures
            .iter()
            .map(|figure| Measured { figure: *figure, note: json!({ "check": check, "positions": 7 }) })
            .collect())
    }

    fn row(unit: Unit, ours: Rounds, peer: Rounds) -> Row {
        let against = Against { peer: "torch", bar: Some(1.5) };
        Row { work: "prefill-1024", unit, against, version: "2".into(), ours_name: "model alone", ours, peer }
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_its_middle() {
        let spread = |values: &[f64]| Spread::of(values).map(|spread| (spread.least, spread.median, spread.most));
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some((1.0, 2.0, 3.0)));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 3.0]), Some((1.0, 2.5, 4.0)));
        assert_eq!(spread(&[]), None);
    }

    #[test]
    fn the_ratio_is_that_of_medians_and_its_spread_that_of_rounds() {
        let row = row(
            Unit::PerSecond("tokens"),
            rounds(&[10.0, 20.0, 40.0], json!([1])),
            rounds(&[10.0, 10.0, 10.0], json!([1])),
        );
        assert_eq!(row.ratio(), Some(Spread { median: 2.0, least: 1.0, most: 4.0 }));
        assert_eq!(row.reached(), Some(true));
        assert_eq!(row.json()["spread"]["ratio"]["max"], 4.0);
    }

    #[test]
    fn outputs_are_compared_token_by_token_and_number_by_number() {
        let check = |a: Value, b: Value| row(Unit::PerSecond("x"), rounds(&[1.0], a), rounds(&[1.0], b)).check();
        assert_eq!(check(json!([1, 2]), json!([1, 2, 3])), Some(Check::Agrees));
        assert_eq!(check(json!([1, 2]), json!([1, 3])), Some(Check::Differs { agreeing: 1, of: 2 }));
        let Some(Check::Off { error }) = check(json!([3.0, 0.01, 4.0]), json!([3.0, 0.02, 4.0])) else {
            panic!("not states")
        };
        assert!((error - 0.002).abs() < 1e-5, "a small value's error counts by the size of all: {error}");
        let off = row(Unit::PerSecond("x"), rounds(&[1.0], json!([0.5])), rounds(&[1.0], json!([0.6])));
        assert!(off.failure().is_some() && off.markdown().contains("**off** by 16.7 %"));
        assert_eq!(check(Value::Null, json!([1])), None);
    }

    #[test]
    fn the_table_says_bars_disagreement_and_notes() {
        let text = table(&[row(Unit::PerSecond("tokens"), rounds(&[10.0], json!([1])), rounds(&[10.0], json!([2])))]);
        for words in [
            "prefill-1024",
            "tokens/s",
            "torch 2",
            "**1.00** (1.00–1.00)",
            "≥ 1.5 **missed**",
            "**differs**",
            "ours: positions 7",
        ] {
            assert!(text.contains(words), "{words} in {text}");
        }
    }

    #[test]
    fn a_peer_that_is_absent_is_a_row_that_says_why() {
        let absent = Err(Absent::Unsupported("not installed".into()));
        let row = row(Unit::Milliseconds("to first token"), rounds(&[10.0], json!([1])), absent);
        assert!(row.markdown().contains("unsupported: not installed"));
        assert_eq!(row.json()["peer_absent"], "unsupported: not installed");
        assert_eq!((row.failure(), row.ratio()), (None, None));
    }
}
