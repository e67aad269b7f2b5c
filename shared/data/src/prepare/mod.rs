//! Sources of texts turned into data files: `train.jsonl`, `validate.jsonl`, `test.jsonl`, and tasks beside them.
//!
//! | Source | Lines | Split |
//! |---|---|---|
//! | [`rfc()`] | text with abstract, and `summary` tasks | by RFC number |
//! | [`text()`] | text | by a hash of the id |
//! | [`packages()`] | `synopsis` tasks | by a hash of the description's first paragraph, which families share |
//! | [`news()`] | `headline` tasks | by a hash of the article |
//! | [`abbreviations()`] | `qa` tasks of one paragraph | as its lines say |
//! | [`longbench_v2()`], [`quality()`], [`qmsum()`], [`govreport()`], [`triviaqa()`], [`narrativeqa()`], [`squad()`], [`hotpotqa()`] | tasks of published benchmarks | all test |
//!
//! Texts stream: held in memory are one document, about 600 bytes per document to find duplicates with and, for RFCs, eight
//! to twenty bytes per word of the test split. Test claims its documents first, then validation, so that a duplicate is
//! taken out of what is trained on.

mod abbreviations;
mod benchmarks;
mod files;
mod html;
mod layout;
mod news;
mod packages;
mod rfc;
mod text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::duplicates::{Duplicates, Seen};
use crate::error::{DataError, Result};
use crate::io::LineWriter;
use crate::line::{PlainLine, Split, TaskLine};

pub use abbreviations::abbreviations;
pub use benchmarks::{govreport, hotpotqa, longbench_v2, narrativeqa, qmsum, quality, squad, triviaqa};
pub use news::news;
pub use packages::packages;
pub use rfc::rfc;
pub use text::text;

/// What to read and where to write.
pub struct Job<'a> {
    /// Files and directories.
    pub inputs: &'a [PathBuf],
    /// Directory of the data files; made if it is missing.
    pub output: &'a Path,
    /// Changes which documents a hash puts into which split; RFCs are split by number.
    pub seed: u64,
    /// The instruction of a summary.
    pub summarize: &'a str,
    /// The instruction of a question.
    pub question: fn(&str) -> String,
    /// Is told documents read, and how many there are if that is known.
    pub progress: &'a mut dyn FnMut(u64, Option<u64>),
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Documents read.
    pub read: u64,
    /// Lines of text by split.
    pub texts: BTreeMap<Split, u64>,
    /// Task lines by split.
    pub tasks: BTreeMap<Split, u64>,
    /// Documents left out, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// Bytes of text that the test split shares with what is trained on, taken out of the latter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_bytes: Option<u64>,
    /// Bytes of text written to the train split.
    pub train_bytes: u64,
}

impl Report {
    fn drop(&mut self, reason: &'static str) {
        *self.dropped.entry(reason).or_default() += 1;
    }
}

/// The files of a source while they are being written.
struct Files {
    output: PathBuf,
    writers: BTreeMap<(Kind, Split), LineWriter>,
    seen: Duplicates,
    report: Report,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Text,
    Task,
}

impl Files {
    fn create(output: &Path) -> Result<Self> {
        std::fs::create_dir_all(output).map_err(DataError::io(output))?;
        let output = output.to_owned();
        Ok(Self { output, writers: BTreeMap::new(), seen: Duplicates::default(), report: Report::default() })
    }

    /// Whether a text is new; if not, it is counted as dropped.
    fn is_new(&mut self, text: &str) -> bool {
        match self.seen.see(text) {
            Seen::New => return true,
            Seen::Exact => self.report.drop("duplicate"),
            Seen::Near => self.report.drop("near duplicate"),
        }
        false
    }

    fn text(&mut self, split: Split, mut line: PlainLine) -> Result<()> {
        line.split = (split == Split::Test).then_some(split);
        if split == Split::Train {
            self.report.train_bytes += line.text.len() as u64;
        }
        *self.report.texts.entry(split).or_default() += 1;
        self.writer(Kind::Text, split)?.write(&line)
    }

    fn task(&mut self, split: Split, mut line: TaskLine) -> Result<()> {
        line.split = (split == Split::Test).then_some(split);
        *self.report.tasks.entry(split).or_default() += 1;
        self.writer(Kind::Task, split)?.write(&line)
    }

    fn writer(&mut self, kind: Kind, split: Split) -> Result<&mut LineWriter> {
        use std::collections::btree_map::Entry;
        match self.writers.entry((kind, split)) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let suffix = if kind == Kind::Task { "-tasks" } else { "" };
                let path = self.output.join(format!("{}{suffix}.jsonl", split.name()));
                Ok(entry.insert(LineWriter::create(&path)?))
            }
        }
    }

    /// Makes all files visible.
    fn commit(self) -> Result<Report> {
        self.writers.into_values().try_for_each(LineWriter::commit)?;
        Ok(self.report)
    }
}

/// Inputs as an error shows them.
fn shown(inputs: &[PathBuf]) -> String {
    inputs.iter().map(|input| input.display().to_string()).collect::<Vec<_>>().join(", ")
}
