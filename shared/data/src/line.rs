//! The two shapes of a data line, and the splits.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// RFC numbers from here on are test, here as in every figure that this project gives.
pub const TEST_FROM: u32 = 9000;
/// RFC numbers from here to [`TEST_FROM`] validate.
pub const VALIDATE_FROM: u32 = 8500;

/// What a line may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// To train on.
    Train,
    /// To choose by.
    Validate,
    /// To judge by: never trained on, never chosen by.
    Test,
}

impl Split {
    /// All, in the order in which they claim documents: what is test stays test.
    pub const ALL: [Self; 3] = [Self::Test, Self::Validate, Self::Train];

    /// The split of an RFC.
    pub fn of_rfc(number: u32) -> Self {
        match number {
            TEST_FROM.. => Self::Test,
            VALIDATE_FROM.. => Self::Validate,
            _ => Self::Train,
        }
    }

    /// The split of everything else, by a hash: 98 % train, 1 % validate, 1 % test.
    pub fn of_hash(hash: u64) -> Self {
        match hash % 100 {
            0 => Self::Test,
            1 => Self::Validate,
            _ => Self::Train,
        }
    }

    /// Name in files and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validate => "validate",
            Self::Test => "test",
        }
    }
}

/// Text: `{"id", "text", "abstract"?, "split"?}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlainLine {
    /// Its name.
    pub id: String,
    /// The body; its abstract is not in it.
    pub text: String,
    /// A reference summary, where the source has one.
    #[serde(default, rename = "abstract", skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Written on lines of the test split, so that no tool trains on them by mistake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

/// Something to do with a text: `{"id", "task", "context", "prompt", "answer"?, "answers"?, …}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLine {
    /// Its name.
    pub id: String,
    /// What kind of task, such as `summary`, `headline`, `synopsis`, `qa` or one of [`crate::TaskKind`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub task: String,
    /// The document.
    pub context: String,
    /// The whole instruction, as it stands after the document in the user's turn.
    pub prompt: String,
    /// What the decoder shall write; absent until a teacher has answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// The strings that a right answer contains, where that can be checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
    /// What there is to choose from, in order; `answer` is the letter of the right one, from A on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// What a benchmark says of the task, such as its difficulty: reported apart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What was asked for: the keys of needles, the value of variables, the label of a question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// Byte ranges of `context` that hold the answers, in text order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Range<usize>>,
    /// Decoder tokens of `context`, where they were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Most tokens of an answer, where its benchmark sets them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// As [`PlainLine::split`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Split>,
}

impl TaskLine {
    /// Whether a text is asked for, about the document as a whole, and not a fact in it.
    pub fn asks_for_text(&self) -> bool {
        matches!(self.task.as_str(), "summary" | "headline" | "synopsis")
    }

    /// The kind of task, and the power of two that its tokens, where they were counted, do not exceed: what is sampled and
    /// reported together.
    pub fn group(&self) -> (String, Option<usize>) {
        (self.task.clone(), self.tokens.and_then(usize::checked_next_power_of_two))
    }
}

/// One line of a data file; a line with a `context` is a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// Something to do with a text.
    Task(TaskLine),
    /// Text.
    Plain(PlainLine),
}

impl Line {
    /// Its name.
    pub fn id(&self) -> &str {
        match self {
            Self::Task(line) => &line.id,
            Self::Plain(line) => &line.id,
        }
    }

    /// The document.
    pub fn text(&self) -> &str {
        match self {
            Self::Task(line) => &line.context,
            Self::Plain(line) => &line.text,
        }
    }

    /// Whether nothing may be trained on it: it says so, or its id is that of an RFC of the test split.
    pub fn is_test(&self) -> bool {
        let split = match self {
            Self::Task(line) => line.split,
            Self::Plain(line) => line.split,
        };
        split == Some(Split::Test) || rfc_number(self.id()).is_some_and(|n| Split::of_rfc(n) == Split::Test)
    }
}

/// The number in `rfc9116` or `rfc9116-summary`.
fn rfc_number(id: &str) -> Option<u32> {
    let digits = id.get(..3).filter(|head| head.eq_ignore_ascii_case("rfc")).map(|_| &id[3..])?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: &str) -> Line {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_line_with_a_context_is_a_task_and_others_are_text() {
        assert!(matches!(line(r#"{"id":"a","text":"t","abstract":null}"#), Line::Plain(p) if p.summary.is_none()));
        let task = line(r#"{"id":"a","context":"c","prompt":"p","answer":"x","evidence":[{"start":1,"end":2}]}"#);
        assert!(matches!(task, Line::Task(t) if t.answer.as_deref() == Some("x") && t.evidence.iter().eq([&(1..2)])));
        assert!(serde_json::from_str::<Line>(r#"{"id":"a"}"#).is_err());
    }

    #[test]
    fn lines_of_the_test_split_are_known_by_number_and_by_mark() {
        let test = |id: &str| line(&format!(r#"{{"id":"{id}","text":"t"}}"#)).is_test();
        assert!(test("rfc9000") && test("rfc9116-summary") && test("RFC9999"));
        assert!(!test("rfc8999") && !test("rfc") && !test("é9000") && !test("faq9000"));
        assert!(line(r#"{"id":"a","text":"t","split":"test"}"#).is_test());
    }

    #[test]
    fn a_plain_line_without_extras_has_two_fields() {
        let plain = PlainLine { id: "a".into(), text: "t".into(), summary: None, split: None };
        assert_eq!(serde_json::to_string(&plain).unwrap(), r#"{"id":"a","text":"t"}"#);
    }
}
