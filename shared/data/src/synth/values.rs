//! Keys and values that are found nowhere else.

use std::collections::HashSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Haystack;

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Seven digits.
    Number,
    /// As `6f1c…-…`.
    Uuid,
    /// Two words with a hyphen.
    Words,
}

impl Form {
    /// One of the three.
    pub(super) fn any(rng: &mut ChaCha8Rng) -> Self {
        [Self::Number, Self::Uuid, Self::Words][rng.random_range(0..3)]
    }

    /// What something of this form is called, in the singular.
    pub(super) fn nouns(self) -> &'static [&'static str] {
        match self {
            Self::Number => &["magic number", "access code", "serial number", "badge number"],
            Self::Uuid => &["magic identifier", "session key", "device identifier"],
            Self::Words => &["magic word", "password", "call sign"],
        }
    }
}

/// Draws texts that differ from each other.
#[derive(Clone)]
pub(super) struct Unique<'a> {
    haystack: &'a Haystack,
    drawn: HashSet<String>,
}

impl<'a> Unique<'a> {
    pub(super) fn new(haystack: &'a Haystack) -> Self {
        Self { haystack, drawn: HashSet::new() }
    }

    /// Two words with a hyphen.
    pub(super) fn key(&mut self, rng: &mut ChaCha8Rng) -> String {
        self.value(Form::Words, rng)
    }

    /// A value of a form.
    pub(super) fn value(&mut self, form: Form, rng: &mut ChaCha8Rng) -> String {
        loop {
            let value = match form {
                Form::Number => rng.random_range(1_000_000..10_000_000_u32).to_string(),
                Form::Uuid => uuid(rng),
                Form::Words => self.words(rng),
            };
            if self.drawn.insert(value.clone()) {
                return value;
            }
        }
    }
}

impl Unique<'_> {
    /// Two words, and three once half of the pairs may be used up: then some are always left.
    fn words(&self, rng: &mut ChaCha8Rng) -> String {
        let pairs = self.haystack.words.len().pow(2);
        let count = if self.drawn.len() < pairs / 2 { 2 } else { 3 };
        (0..count).map(|_| word(self.haystack, rng)).collect::<Vec<_>>().join("-")
    }
}

fn word<'a>(haystack: &'a Haystack, rng: &mut ChaCha8Rng) -> &'a str {
    &haystack.words[rng.random_range(0..haystack.words.len())]
}

/// A random (version 4) UUID.
fn uuid(rng: &mut ChaCha8Rng) -> String {
    let (a, b, c): (u32, u16, u16) = (rng.random(), rng.random(), rng.random());
    let (d, e): (u16, u64) = (rng.random(), rng.random());
    format!("{a:08x}-{b:04x}-4{:03x}-{:04x}-{:012x}", c & 0xfff, d & 0x3fff | 0x8000, e & 0xffff_ffff_ffff)
}
