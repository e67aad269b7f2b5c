//! Long-context tasks with known answers, after RULER (arXiv 2404.06654), from any seed.
//!
//! | [`TaskKind`] | hidden in the text | asked for |
//! |---|---|---|
//! | `niah_single` | one needle | its value |
//! | `niah_multikey` | four to eight needles with different keys | the value of one key |
//! | `niah_multivalue` | four needles with one key, two with others | all values of that key |
//! | `niah_multiquery` | four needles with different keys, two others | all four values |
//! | `unanswerable` | four to eight needles | the value of a key that is not among them: that the text does not say |
//! | `variable_tracking` | two chains of assignments, three to five variables each | all variables with a value |
//! | `common_words` | a list in which ten words come ten times as often as all others | these ten |
//! | `qa` | passages of several documents under made-up names | the name of the one whose abstract is given; or, for `qa` lines of the haystack, their answers |
//!
//! A needle is a sentence between two sentences; keys and values are numbers, UUIDs or words of the haystack that are
//! nowhere else in the context. The `qa` task needs lines with an abstract: bodies do not contain theirs, so that the document
//! must be known by what it says. Everything can be scored by string match ([`crate::score::string_match`]).
//!
//! The same haystack, task, tokens and seed give the same bytes.

mod draft;
mod haystack;
mod needles;
mod questions;
mod ruler;
mod values;
mod variables;
mod words;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::hash;
use crate::line::TaskLine;
use draft::Draft;
use questions::Hops;

pub use haystack::{Haystack, MAX_BYTES};
pub use ruler::{RulerSources, RulerTask};

/// Fewest tokens of a context.
pub const MIN_TOKENS: usize = 512;

/// What is hidden and asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// One needle.
    NiahSingle,
    /// Several needles of which one is asked for.
    NiahMultikey,
    /// One key with several values.
    NiahMultivalue,
    /// Several keys asked for at once.
    NiahMultiquery,
    /// A key that no needle has.
    Unanswerable,
    /// Chains of assignments.
    VariableTracking,
    /// The most frequent words of a list.
    CommonWords,
    /// A question about one of several documents.
    Qa,
}

impl TaskKind {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NiahSingle,
        Self::NiahMultikey,
        Self::NiahMultivalue,
        Self::NiahMultiquery,
        Self::Unanswerable,
        Self::VariableTracking,
        Self::CommonWords,
        Self::Qa,
    ];

    /// As it is written in data files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::NiahSingle => "niah_single",
            Self::NiahMultikey => "niah_multikey",
            Self::NiahMultivalue => "niah_multivalue",
            Self::NiahMultiquery => "niah_multiquery",
            Self::Unanswerable => "unanswerable",
            Self::VariableTracking => "variable_tracking",
            Self::CommonWords => "common_words",
            Self::Qa => "qa",
        }
    }
}

impl std::str::FromStr for TaskKind {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| DataError::Setting {
            name: "task",
            value: name.to_owned(),
            expected: "niah_single, niah_multikey, niah_multivalue, niah_multiquery, unanswerable, variable_tracking, common_words, qa or one of RULER's",
        })
    }
}

/// Makes tasks.
#[derive(Clone, Copy)]
pub struct Synthesizer<'a> {
    /// Where texts and words come from.
    pub haystack: &'a Haystack,
    /// Number of decoder tokens of a text.
    pub count: &'a (dyn Fn(&str) -> Result<usize> + Sync),
    /// The whole instruction around a question.
    pub question: fn(&str) -> String,
}

impl Synthesizer<'_> {
    /// One task whose context has at most `tokens` decoder tokens and at least 95 % of that. Its id is
    /// `TASK-TOKENS-SEED`.
    ///
    /// # Errors
    /// [`DataError::Setting`] below [`MIN_TOKENS`]; [`DataError::Haystack`] if the haystack has too little text, or no
    /// abstracts for `qa`; what `count` returns.
    pub fn line(&self, task: TaskKind, tokens: usize, seed: u64) -> Result<TaskLine> {
        self.made(task.name(), task == TaskKind::Qa, tokens, seed, |rng| match task {
            TaskKind::VariableTracking => variables::draft(self, tokens, rng),
            TaskKind::CommonWords => words::draft(self, tokens, rng),
            TaskKind::Qa => questions::draft(self, tokens, Hops::One, rng),
            niah => needles::draft(self, niah, tokens, rng),
        })
    }

    /// A task of a draft. Several answers are all wanted, unless they are `alternatives`.
    fn made(
        &self,
        name: &str,
        alternatives: bool,
        tokens: usize,
        seed: u64,
        draft: impl FnOnce(&mut ChaCha8Rng) -> Result<(Draft, usize)>,
    ) -> Result<TaskLine> {
        if tokens < MIN_TOKENS {
            return Err(DataError::Setting { name: "tokens", value: tokens.to_string(), expected: "512 or more" });
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(hash::sequence(&[hash::text(name), tokens as u64]));
        let (Draft { context, evidence, question, keys, answers }, tokens_used) = draft(&mut rng)?;
        Ok(TaskLine {
            id: format!("{name}-{tokens}-{seed}"),
            task: name.to_owned(),
            context,
            prompt: (self.question)(&question),
            answer: if alternatives { answers.first().cloned() } else { Some(answers.join(", ")) },
            answers,
            keys,
            evidence,
            tokens: Some(tokens_used),
            ..TaskLine::default()
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
