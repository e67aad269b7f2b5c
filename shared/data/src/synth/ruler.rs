//! RULER's thirteen configurations (arXiv 2404.06654, table 2 and appendix B), with its parameters.
//!
//! | [`RulerTask`] | haystack | hidden | asked for |
//! |---|---|---|---|
//! | `niah_single_1` | noise | one word key, a number | the number |
//! | `niah_single_2` | texts | one word key, a number | the number |
//! | `niah_single_3` | texts | one word key, a UUID | the UUID |
//! | `niah_multikey_1` | texts | four word keys, numbers | one number |
//! | `niah_multikey_2` | needles, word keys and numbers | one more | its number |
//! | `niah_multikey_3` | needles, UUID keys and UUIDs | one more | its UUID |
//! | `niah_multivalue` | texts | one word key, four numbers | all four |
//! | `niah_multiquery` | texts | four word keys, numbers | all four |
//! | `vt` | noise | a chain of five variables | all five |
//! | `cwe` | — | ten words 30 times, others 3 times | the ten |
//! | `fwe` | — | coded words, frequencies by Zeta(2), the most frequent one being dots | the next three |
//! | `qa_1` | passages | the one that answers a question | the answer |
//! | `qa_2` | passages | the two that answer a question together | the answer |
//!
//! It differs from the published one in this:
//!
//! - Texts and words are the haystack's. Instructions stand after the document and are in the form that the decoder is asked in; there
//!   is no beginning of the answer, and no worked example before `vt` and `cwe`. Lengths are the document's, without prompt and
//!   answer.
//! - Common words come 30 times to 3 where the list is long enough, 10 times to 1 in short ones, and more often in proportion
//!   where it is longer than the haystack has words for.
//! - Questions are SQuAD's and HotpotQA's only where these are given ([`Haystack::of_questions`]), among paragraphs drawn from the
//!   whole file, and not first those of the same article, which makes them easier. Without them, they are about made-up names of
//!   passages (`qa_1`), and about shelves that sentences give for these names (`qa_2`).

mod coded;
mod needles;
mod variables;

use rand_chacha::ChaCha8Rng;

use super::draft::Draft;
use super::questions::{self, Hops};
use super::values::Form;
use super::{Haystack, Synthesizer, words};
use crate::error::{DataError, Result};
use crate::line::TaskLine;
use needles::{Hay, Needles};

/// One of RULER's configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum RulerTask {
    NiahSingle1,
    NiahSingle2,
    NiahSingle3,
    NiahMultikey1,
    NiahMultikey2,
    NiahMultikey3,
    NiahMultivalue,
    NiahMultiquery,
    Vt,
    Cwe,
    Fwe,
    Qa1,
    Qa2,
}

/// Where the configurations' texts come from.
#[derive(Debug, Clone, Copy)]
pub struct RulerSources<'a> {
    /// For needles, variables and words; and for questions that nothing else is given for.
    pub texts: &'a Haystack,
    /// Questions that one passage answers, such as SQuAD's.
    pub one_hop: Option<&'a Haystack>,
    /// Questions that two passages answer, such as HotpotQA's.
    pub two_hops: Option<&'a Haystack>,
}

impl RulerTask {
    /// All of them, in the order of the paper.
    pub const ALL: [Self; 13] = [
        Self::NiahSingle1,
        Self::NiahSingle2,
        Self::NiahSingle3,
        Self::NiahMultikey1,
        Self::NiahMultikey2,
        Self::NiahMultikey3,
        Self::NiahMultivalue,
        Self::NiahMultiquery,
        Self::Vt,
        Self::Cwe,
        Self::Fwe,
        Self::Qa1,
        Self::Qa2,
    ];

    /// As its authors call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::NiahSingle1 => "niah_single_1",
            Self::NiahSingle2 => "niah_single_2",
            Self::NiahSingle3 => "niah_single_3",
            Self::NiahMultikey1 => "niah_multikey_1",
            Self::NiahMultikey2 => "niah_multikey_2",
            Self::NiahMultikey3 => "niah_multikey_3",
            Self::NiahMultivalue => "niah_multivalue",
            Self::NiahMultiquery => "niah_multiquery",
            Self::Vt => "vt",
            Self::Cwe => "cwe",
            Self::Fwe => "fwe",
            Self::Qa1 => "qa_1",
            Self::Qa2 => "qa_2",
        }
    }

    /// Most tokens of an answer, as its authors set it.
    pub fn max_tokens(self) -> u32 {
        match self {
            Self::Vt => 30,
            Self::Cwe => 120,
            Self::Fwe => 50,
            Self::Qa1 | Self::Qa2 => 32,
            _ => 128,
        }
    }

    /// One task of at most `tokens` decoder tokens and at least 95 % of that; its id is `NAME-TOKENS-SEED`. The same sources,
    /// tokens and seed give the same bytes.
    ///
    /// # Errors
    /// As [`Synthesizer::line`].
    pub fn line(
        self,
        sources: &RulerSources<'_>,
        synthesizer: &Synthesizer<'_>,
        tokens: usize,
        seed: u64,
    ) -> Result<TaskLine> {
        let haystack = match self {
            Self::Qa1 => sources.one_hop.unwrap_or(sources.texts),
            Self::Qa2 => sources.two_hops.unwrap_or(sources.texts),
            _ => sources.texts,
        };
        let synthesizer = Synthesizer { haystack, ..*synthesizer };
        let alternatives = matches!(self, Self::Qa1 | Self::Qa2);
        let line =
            synthesizer.made(self.name(), alternatives, tokens, seed, |rng| self.draft(&synthesizer, tokens, rng))?;
        Ok(TaskLine { max_tokens: Some(self.max_tokens()), ..line })
    }

    fn draft(self, synthesizer: &Synthesizer<'_>, tokens: usize, rng: &mut ChaCha8Rng) -> Result<(Draft, usize)> {
        match self {
            Self::Vt => variables::draft(synthesizer, tokens, rng),
            Self::Cwe => words::draft(synthesizer, tokens, rng),
            Self::Fwe => coded::draft(synthesizer, tokens, rng),
            Self::Qa1 => questions::draft(synthesizer, tokens, Hops::One, rng),
            Self::Qa2 => questions::draft(synthesizer, tokens, Hops::Two, rng),
            niah => needles::draft(synthesizer, niah.needles(), tokens, rng),
        }
    }

    fn needles(self) -> Needles {
        let one = Needles { hay: Hay::Texts, key: Form::Words, value: Form::Number, keys: 1, values: 1, queries: 1 };
        match self {
            Self::NiahSingle1 => Needles { hay: Hay::Noise, ..one },
            Self::NiahSingle3 => Needles { value: Form::Uuid, ..one },
            Self::NiahMultikey1 => Needles { keys: 4, ..one },
            Self::NiahMultikey2 => Needles { hay: Hay::Needles, ..one },
            Self::NiahMultikey3 => Needles { hay: Hay::Needles, key: Form::Uuid, value: Form::Uuid, ..one },
            Self::NiahMultivalue => Needles { values: 4, ..one },
            Self::NiahMultiquery => Needles { keys: 4, queries: 4, ..one },
            _ => one,
        }
    }
}

impl std::str::FromStr for RulerTask {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|task| task.name() == name).ok_or_else(|| DataError::Setting {
            name: "task",
            value: name.to_owned(),
            expected: "one of niah_single_1 to _3, niah_multikey_1 to _3, niah_multivalue, niah_multiquery, vt, cwe, fwe, qa_1, qa_2",
        })
    }
}

#[cfg(test)]
mod tests;
