//! Keys and values that are found nowhere else.

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
pub(super) struct Unique<'a> {
    haystack: &'a Haystack,
    drawn: Vec<String>,
}

impl<'a> Unique<'a> {
    pub(super) fn new(haystack: &'a Haystack) -> Self {
        Self { haystack, drawn: Vec::new() }
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
                Form::Words => format!("{}-{}", word(self.haystack, rng), word(self.haystack, rng)),
            };
            // At least 100 words make 10,000 pairs, of which a task takes a dozen: this ends.
            if !self.drawn.contains(&value) {
                self.drawn.push(value.clone());
                return value;
            }
        }
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
