//! What is measured, against whom, and the bars of each.

/// What the figures of a work are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// So many per second.
    PerSecond(&'static str),
    /// So many per hour.
    PerHour(&'static str),
    /// Milliseconds of one.
    Milliseconds(&'static str),
}

impl Unit {
    /// A figure from how long how many units took.
    pub(crate) fn figure(self, seconds: f64, units: f64) -> f64 {
        match self {
            Self::PerSecond(_) => units / seconds,
            Self::PerHour(_) => 3600.0 * units / seconds,
            Self::Milliseconds(_) => 1000.0 * seconds / units,
        }
    }

    /// How many times as fast the first is as the second.
    pub(crate) fn ratio(self, ours: f64, peer: f64) -> f64 {
        if matches!(self, Self::Milliseconds(_)) { peer / ours } else { ours / peer }
    }

    pub(crate) fn name(self) -> String {
        match self {
            Self::PerSecond(what) => format!("{what}/s"),
            Self::PerHour(what) => format!("{what}/h"),
            Self::Milliseconds(what) => format!("ms {what}"),
        }
    }
}

/// A contestant and the ratio that is asked for, if one is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Against {
    pub(crate) peer: &'static str,
    pub(crate) bar: Option<f64>,
}

/// Our program that has the models alone.
pub(crate) const MODEL: &str = "model alone";
/// Ours as users run it: four processes that are asked over gRPC.
pub(crate) const SERVICES: &str = "services";

/// One line of the table per peer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Work {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    /// Which of our contestants is compared.
    pub(crate) ours: &'static str,
    /// Name of the inputs' file without its ending.
    pub(crate) inputs: &'static str,
    /// Whether each round has inputs of its own: `NAME-ROUND.json`.
    pub(crate) parts: bool,
    pub(crate) against: Vec<Against>,
    /// Word pieces per soft token.
    pub(crate) ratio: u32,
    /// Most decoder positions of a document.
    pub(crate) budget: Option<u32>,
    /// Whether the stored soft prompt is put out of the page cache before each round.
    pub(crate) cold: bool,
}

impl Work {
    fn new(name: &'static str, unit: Unit, inputs: &'static str, against: &[(&'static str, f64)]) -> Self {
        let against = against.iter().map(|(peer, bar)| Against { peer, bar: (*bar > 0.0).then_some(*bar) }).collect();
        Self { name, unit, ours: MODEL, inputs, parts: false, against, ratio: 4, budget: None, cold: false }
    }

    /// The file of a round.
    pub(crate) fn file(&self, round: u32) -> String {
        if self.parts { format!("{}-{round}.json", self.inputs) } else { format!("{}.json", self.inputs) }
    }
}

/// A bar of a peer that is measured without one.
const NO_BAR: f64 = 0.0;

/// All works, with the bars of `tests/bench/PEERS.md`.
pub(crate) fn all() -> Vec<Work> {
    let tokens = Unit::PerSecond("tokens");
    let encode = |name, bars: [f64; 2]| {
        let against = [("onnxruntime", bars[0]), ("sentence-transformers", bars[1])];
        Work::new(name, Unit::PerSecond("chunks"), name, &against)
    };
    let torch_and_llama =
        |name, bars: [f64; 2]| Work::new(name, tokens, name, &[("torch", bars[0]), ("llama.cpp", bars[1])]);
    let mut works = vec![
        encode("encode-512", [1.25, 1.5]),
        encode("encode-mixed", [1.5, 1.5]),
        torch_and_llama("prefill-1024", [1.0, 2.0]),
        torch_and_llama("decode-short", [NO_BAR, 1.0]),
        torch_and_llama("decode-1024", [NO_BAR, 1.0]),
        torch_and_llama("decode-16", [NO_BAR, 1.5]),
    ];
    works.extend(questions());
    let against = [("llama.cpp", 5.0), (MODEL, NO_BAR)];
    let summarize = Work::new("summarize-100", Unit::PerHour("documents"), "summarize", &against);
    works.push(Work { ours: SERVICES, parts: true, ..summarize });
    works
}

fn questions() -> Vec<Work> {
    let unit = Unit::Milliseconds("to first token");
    let served = |name, inputs, bar| {
        let work = Work::new(name, unit, inputs, &[("llama.cpp", bar), (MODEL, NO_BAR)]);
        Work { ours: SERVICES, ..work }
    };
    // The bundle has one ratio, so that services have no soft prompts at another.
    let at_16 = |name| Work { ratio: 16, ..Work::new(name, unit, "question-6k", &[("llama.cpp", 20.0)]) };
    let (short, long) = ("question-6k", "question-60k");
    vec![
        served("first-question-6k-4-warm", short, 8.0),
        Work { cold: true, ..served("first-question-6k-4-cold", short, 8.0) },
        at_16("first-question-6k-16-warm"),
        Work { cold: true, ..at_16("first-question-6k-16-cold") },
        Work { budget: Some(2_048), ..served("first-question-60k", long, 15.0) },
        served("second-question-expanded", short, 1.0),
        served("second-question-soft", short, 1.0),
    ]
}

/// Those whose names begin with one of `only`, or all of them; names that fit none are an error.
pub(crate) fn chosen(only: &[String]) -> anyhow::Result<Vec<Work>> {
    let works = all();
    let fits = |work: &Work, name: &String| work.name.starts_with(name.as_str());
    if let Some(unknown) = only.iter().find(|name| !works.iter().any(|work| fits(work, name))) {
        let names: Vec<&str> = works.iter().map(|work| work.name).collect();
        anyhow::bail!("no work is called `{unknown}`: --only takes names or their beginnings, of {}", names.join(", "));
    }
    Ok(works.into_iter().filter(|work| only.is_empty() || only.iter().any(|name| fits(work, name))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_and_a_time_are_compared_so_that_more_than_one_is_faster() {
        let rate = Unit::PerSecond("tokens");
        assert_eq!(rate.ratio(rate.figure(1.0, 100.0), rate.figure(2.0, 100.0)), 2.0);
        let time = Unit::Milliseconds("to first token");
        assert_eq!(time.ratio(time.figure(1.0, 1.0), time.figure(2.0, 1.0)), 2.0);
        assert_eq!(Unit::PerHour("documents").figure(1800.0, 10.0), 20.0);
    }

    #[test]
    fn works_are_chosen_by_the_beginning_of_their_names() {
        let names = |only: &[&str]| -> Vec<&str> {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            chosen(&only).unwrap().iter().map(|work| work.name).collect()
        };
        assert_eq!(names(&["decode"]), ["decode-short", "decode-1024", "decode-16"]);
        assert_eq!(names(&["second-question-s", "encode-512"]), ["encode-512", "second-question-soft"]);
        assert_eq!(names(&[]).len(), all().len());
    }

    #[test]
    fn a_name_that_fits_nothing_is_an_error_that_lists_the_names() {
        let error = chosen(&["prefil".into(), "train".into()]).unwrap_err().to_string();
        assert!(error.contains("`train`") && error.contains("prefill-1024"), "{error}");
    }

    #[test]
    fn a_work_of_parts_has_inputs_for_each_round() {
        let works = all();
        let file = |name: &str| works.iter().find(|work| work.name == name).unwrap().file(3);
        assert_eq!(file("summarize-100"), "summarize-3.json");
        assert_eq!(file("prefill-1024"), "prefill-1024.json");
    }
}
