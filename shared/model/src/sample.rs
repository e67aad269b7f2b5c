//! From logits to the next token, and from text to where it must stop.

use candle_core::{D, DType, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use candle_transformers::utils::apply_repeat_penalty;

use crate::error::{ModelError, Result};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplerOptions {
    /// 0 is greedy; 1 samples the model's own distribution; at most 100.
    pub temperature: f64,
    /// Samples from the smallest set of tokens with at least this probability; 1 is all of them.
    pub top_p: f64,
    /// Divides positive and multiplies negative logits of tokens already seen; 1 is off (CTRL, arXiv 1909.05858).
    pub repetition_penalty: f32,
    /// Same seed, same logits: same tokens.
    pub seed: u64,
}

impl Default for SamplerOptions {
    /// Greedy without penalty.
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Chooses tokens by one request's options, with its own random numbers.
pub struct Sampler {
    processor: Option<LogitsProcessor>,
    repetition_penalty: f32,
}

impl Sampler {
    /// A sampler at the beginning of its random sequence.
    ///
    /// # Errors
    /// [`ModelError::Setting`] for an option outside its range.
    pub fn new(options: SamplerOptions) -> Result<Self> {
        let SamplerOptions { temperature, top_p, repetition_penalty, seed } = options;
        check("temperature", temperature, (0.0..=100.0).contains(&temperature), "0 (greedy) to 100")?;
        check("top-p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0, at most 1")?;
        let penalty = f64::from(repetition_penalty);
        check("repetition-penalty", penalty, (0.01..=100.0).contains(&penalty), "0.01 to 100 (1 is off)")?;

        let sampling =
            if top_p < 1.0 { Sampling::TopP { p: top_p, temperature } } else { Sampling::All { temperature } };
        // Below this, candle counts a temperature as greedy too: dividing by it would overflow.
        let processor = (temperature >= 1e-7).then(|| LogitsProcessor::from_sampling(seed, sampling));
        Ok(Self { processor, repetition_penalty })
    }

    /// The next token from `logits` `[vocab]` (any float type); `seen` are the ids that the repetition penalty applies to.
    ///
    /// Greedy takes the largest logit, and of equal ones the lowest id.
    ///
    /// # Errors
    /// [`ModelError::Candle`] if no logit is a number, or for a tensor of another rank.
    pub fn sample(&mut self, logits: &Tensor, seen: &[u32]) -> Result<u32> {
        let penalised = match self.repetition_penalty {
            1.0 => logits.to_dtype(DType::F32)?,
            penalty => apply_repeat_penalty(logits, penalty, seen)?,
        };
        match &mut self.processor {
            None => greedy(&penalised.to_vec1()?),
            // The largest logit becomes 0, so that a low temperature cannot overflow f32.
            Some(processor) => Ok(processor.sample(&penalised.broadcast_sub(&penalised.max_keepdim(D::Minus1)?)?)?),
        }
    }
}

impl std::fmt::Debug for Sampler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sampler").field("greedy", &self.processor.is_none()).finish_non_exhaustive()
    }
}

fn check(name: &'static str, value: f64, holds: bool, expected: &'static str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(ModelError::Setting { name, value: value.to_string(), expected }),
    }
}

/// Own code, because candle's argmax leaves ties and NaN to the device.
fn greedy(logits: &[f32]) -> Result<u32> {
    let numbers = logits.iter().zip(0u32..).filter(|(logit, _)| !logit.is_nan());
    let best = numbers.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|(_, id)| id).ok_or_else(|| candle_core::Error::Msg("no logit is a number".to_owned()).into())
}

/// Ends a text at the first of several stop strings, although text comes in arbitrary pieces.
///
/// Text that may be the beginning of a stop string is held back until it is known, so no part of one is ever given out.
/// The stop string that is complete first wins; of those complete at the same character, the longest.
#[derive(Debug, Clone, Default)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// A matcher for `stops`; empty strings are ignored.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let stops = stops.into_iter().map(Into::into).filter(|stop: &String| !stop.is_empty()).collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes the next piece and returns what may be shown now. After a stop it returns nothing any more.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(start) = self.first_stop() {
            self.stopped = true;
            self.held.truncate(start);
            return std::mem::take(&mut self.held);
        }
        let keep_from = self.possible_stop();
        let shown = self.held[..keep_from].to_owned();
        self.held.drain(..keep_from);
        shown
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// What was held back when the text ended without a stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Beginning of the stop string that is complete first.
    fn first_stop(&self) -> Option<usize> {
        let found =
            self.stops.iter().filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start)));
        found.min().map(|(_, start)| start)
    }

    /// Beginning of the longest end of `held` that begins a stop string.
    fn possible_stop(&self) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.held.len().saturating_sub(longest);
        let starts = (from..self.held.len()).filter(|start| self.held.is_char_boundary(*start));
        let may_stop = |start: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*start..]));
        starts.into_iter().find(may_stop).unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use proptest::prelude::*;

    use super::*;

    fn logits(values: &[f32]) -> Tensor {
        Tensor::new(values, &Device::Cpu).unwrap()
    }

    fn sampler(options: SamplerOptions) -> Sampler {
        Sampler::new(options).unwrap()
    }

    fn draws(options: SamplerOptions, values: &[f32]) -> Vec<u32> {
        let mut sampler = sampler(options);
        (0..200).map(|_| sampler.sample(&logits(values), &[]).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_logits_and_ignores_nan() {
        let mut greedy = sampler(SamplerOptions::default());
        assert_eq!(greedy.sample(&logits(&[0.0, 2.0, 1.0, 2.0]), &[]).unwrap(), 1);
        assert_eq!(greedy.sample(&logits(&[f32::NAN, 1.0, 3.0]), &[]).unwrap(), 2);
        assert!(greedy.sample(&logits(&[f32::NAN; 3]), &[]).is_err());
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let options = SamplerOptions { temperature: 1.0, seed: 7, ..Default::default() };
        let values = [1.0, 1.1, 0.9, 1.0];
        assert_eq!(draws(options, &values), draws(options, &values));
        assert_ne!(draws(options, &values), draws(SamplerOptions { seed: 8, ..options }, &values));
    }

    #[test]
    fn temperature_sharpens() {
        let share = |temperature| {
            let drawn = draws(SamplerOptions { temperature, ..Default::default() }, &[1.0, 0.0]);
            drawn.iter().filter(|id| **id == 0).count()
        };
        assert_eq!(share(0.001), 200);
        assert!(share(0.5) > share(100.0) + 20);
    }

    #[test]
    fn top_p_leaves_the_tail_out() {
        // Probabilities 0.64, 0.24, 0.09, 0.03.
        let drawn = draws(SamplerOptions { temperature: 1.0, top_p: 0.8, ..Default::default() }, &[3.0, 2.0, 1.0, 0.0]);
        assert!(drawn.contains(&0) && drawn.contains(&1));
        assert!(drawn.iter().all(|id| *id < 2));
    }

    #[test]
    fn the_repetition_penalty_turns_away_from_what_was_seen() {
        let mut penalised = sampler(SamplerOptions { repetition_penalty: 1.5, ..Default::default() });
        assert_eq!(penalised.sample(&logits(&[2.0, 1.5, -1.0]), &[0, 0]).unwrap(), 1);
        assert_eq!(penalised.sample(&logits(&[-1.0, -1.2]), &[0]).unwrap(), 1);
        assert_eq!(penalised.sample(&logits(&[2.0, 1.5]), &[]).unwrap(), 0);
    }

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let base = SamplerOptions::default();
        let refused = |options| Sampler::new(options).unwrap_err().to_string();
        assert!(refused(SamplerOptions { temperature: -1.0, ..base }).contains("temperature = -1"));
        assert!(refused(SamplerOptions { temperature: f64::NAN, ..base }).contains("temperature = NaN"));
        assert!(refused(SamplerOptions { top_p: 0.0, ..base }).contains("top-p = 0"));
        assert!(refused(SamplerOptions { repetition_penalty: 0.0, ..base }).contains("repetition-penalty = 0"));
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        let mut matcher = StopMatcher::new(["\nUser:", "END"]);
        assert_eq!(matcher.push("fine\nUs"), "fine");
        assert_eq!(matcher.push("ers\n"), "\nUsers");
        assert_eq!(matcher.push("User: me"), "");
        assert!(matcher.stopped());
        assert_eq!(matcher.push("more") + &matcher.finish(), "");
    }

    #[test]
    fn held_text_comes_out_at_the_end() {
        let mut matcher = StopMatcher::new(["END"]);
        assert_eq!(matcher.push("the EN"), "the ");
        assert_eq!(matcher.finish(), "EN");
        assert!(!matcher.stopped());
    }

    proptest! {
        #[test]
        fn the_pieces_do_not_matter(
            text in "[abé]{0,30}",
            stops in prop::collection::vec("[abé]{0,4}", 0..4),
            cuts in prop::collection::vec(0usize..60, 0..10),
        ) {
            let run = |pieces: &[&str]| {
                let mut matcher = StopMatcher::new(stops.clone());
                let mut shown: String = pieces.iter().map(|piece| matcher.push(piece)).collect();
                shown.push_str(&matcher.finish());
                (shown, matcher.stopped())
            };
            let mut places: Vec<usize> = cuts.into_iter().filter(|cut| text.is_char_boundary(*cut)).collect();
            places.extend([0, text.len()]);
            places.sort_unstable();
            let pieces: Vec<&str> = places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect();
            let (shown, stopped) = run(&pieces);
            prop_assert_eq!((&shown, stopped), (&run(&[&text]).0, run(&[&text]).1));
            prop_assert!(stops.iter().filter(|stop| !stop.is_empty()).all(|stop| !shown.contains(stop.as_str())));
            prop_assert!(stopped || shown == text);
        }
    }
}
