//! Common words: a numbered list in which ten words come ten times as often as all others.

use rand_chacha::ChaCha8Rng;

use super::Synthesizer;
use super::draft::{Draft, any, fitted, shuffled};
use crate::error::Result;

/// Words asked for.
const COMMON: usize = 10;
/// How many times as often they come.
const TIMES: usize = 10;
/// How often others come, where the list is long enough.
const OFTEN: usize = 3;

const QUESTIONS: [&str; 2] =
    ["What are the 10 most common words in the list above?", "Which 10 words appear most often in the list above?"];

pub(super) fn draft(synthesizer: &Synthesizer<'_>, tokens: usize, rng: &mut ChaCha8Rng) -> Result<(Draft, usize)> {
    let base = rng.clone();
    // Numbers, full stops and words together take about four tokens; `fitted` corrects that.
    fitted(synthesizer, tokens, |aim| Ok(list(synthesizer, aim / 4, &mut base.clone())))
}

fn list(synthesizer: &Synthesizer<'_>, slots: usize, rng: &mut ChaCha8Rng) -> Draft {
    let question = any(&QUESTIONS, rng).to_owned();
    let words = shuffled(synthesizer.haystack.words.iter().collect(), rng);
    let (common, others) = words.split_at(COMMON.min(words.len()));
    let shares = COMMON * TIMES;
    // Every word `often` times, the common ones ten times that; in a short list once, in a very long one more often, for
    // there are only so many words.
    let least = if slots < OFTEN * (shares + 20) { 1 } else { OFTEN };
    let often = slots.div_ceil(shares + others.len()).max(least);
    let used = (slots / often).saturating_sub(shares).clamp(1, others.len());
    let mut entries: Vec<&str> = Vec::with_capacity(slots);
    common.iter().for_each(|word| entries.extend(std::iter::repeat_n(word.as_str(), often * TIMES)));
    others[..used].iter().for_each(|word| entries.extend(std::iter::repeat_n(word.as_str(), often)));
    let entries = shuffled(entries, rng);
    let numbered: Vec<String> = entries.iter().enumerate().map(|(n, word)| format!("{}. {word}", n + 1)).collect();
    let answers = common.iter().map(|word| (*word).clone()).collect();
    Draft { context: numbered.join(" "), question, answers, ..Draft::default() }
}
