//! Conditions on metadata.
//!
//! ```text
//! key=value  key!=value  key>=n  key>n  key<=n  key<n   key (present)   !key (absent)
//! ```
//!
//! Dots in a key lead into nested objects, unless there is a member of exactly that name. A number in the metadata and a
//! number in the condition compare as numbers, anything else as text. What is absent or null passes only `!key` and
//! `key!=value`.

use std::cmp::Ordering;

use e2llm_api::Metadata;
use serde_json::{Map, Number, Value};

use crate::IndexError;

/// Most conditions of one request.
const MAX_CONDITIONS: usize = 64;

/// Longest condition, in bytes.
const MAX_BYTES: usize = 1 << 10;

/// Longest first: `>=` is not `>` followed by `=`.
const OPERATORS: [(&str, Operator); 6] = [
    ("!=", Operator::Differs),
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("=", Operator::Is),
    (">", Operator::Above),
    ("<", Operator::Below),
];

/// What metadata must fulfil, all of it. The default lets everything pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filter {
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq)]
enum Test {
    Present,
    Absent,
    Compare(Operator, Operand),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Is,
    Differs,
    AtLeast,
    AtMost,
    Above,
    Below,
}

/// The right side of a comparison.
#[derive(Debug, Clone, PartialEq)]
struct Operand {
    text: String,
    number: Option<Number>,
}

impl Filter {
    /// Reads conditions.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` with the condition and how to write one.
    pub fn parse(conditions: &[String]) -> Result<Self, IndexError> {
        if conditions.len() > MAX_CONDITIONS {
            let count = conditions.len();
            return Err(IndexError::invalid(format!("{count} conditions; at most {MAX_CONDITIONS} are allowed")));
        }
        let conditions = conditions.iter().map(|text| Condition::parse(text)).collect::<Result<_, _>>()?;
        Ok(Self { conditions })
    }

    /// Whether a record's metadata fulfil all conditions.
    pub fn passes(&self, metadata: &str) -> bool {
        if self.conditions.is_empty() {
            return true;
        }
        // Metadata were checked before they were stored; what cannot be read all the same has no members.
        let metadata = Metadata::parse(metadata).unwrap_or_default();
        self.conditions.iter().all(|condition| condition.holds(metadata.members()))
    }
}

impl Condition {
    fn parse(text: &str) -> Result<Self, IndexError> {
        if text.len() > MAX_BYTES {
            return Err(wrong(text, "is longer than 1,024 bytes"));
        }
        let operator =
            |at: usize| OPERATORS.iter().find(|(sign, _)| text[at..].starts_with(sign)).map(|found| (at, found));
        let (key, test) = match text.strip_prefix('!') {
            Some(key) => (key, Test::Absent),
            None => match text.char_indices().find_map(|(at, _)| operator(at)) {
                Some((at, (sign, operator))) => {
                    let value = text[at + sign.len()..].trim();
                    let operand = Operand { text: value.to_owned(), number: serde_json::from_str(value).ok() };
                    (&text[..at], Test::Compare(*operator, operand))
                }
                None => (text, Test::Present),
            },
        };
        let key = key.trim();
        if key.is_empty() || key.split('.').any(str::is_empty) {
            return Err(wrong(text, "names no key"));
        }
        if test == Test::Absent && key.contains(['=', '<', '>', '!']) {
            return Err(wrong(text, "negates a comparison"));
        }
        Ok(Self { key: key.to_owned(), test })
    }

    fn holds(&self, members: &Map<String, Value>) -> bool {
        let value = find(members, &self.key).filter(|value| !value.is_null());
        match (&self.test, value) {
            (Test::Present, value) => value.is_some(),
            (Test::Absent, value) => value.is_none(),
            (Test::Compare(operator, _), None) => *operator == Operator::Differs,
            (Test::Compare(operator, operand), Some(value)) => operator.allows(operand.compared_with(value)),
        }
    }
}

impl Operator {
    fn allows(self, order: Ordering) -> bool {
        match self {
            Self::Is => order.is_eq(),
            Self::Differs => order.is_ne(),
            Self::AtLeast => order.is_ge(),
            Self::AtMost => order.is_le(),
            Self::Above => order.is_gt(),
            Self::Below => order.is_lt(),
        }
    }
}

impl Operand {
    /// How `value` stands to it.
    fn compared_with(&self, value: &Value) -> Ordering {
        match (value, &self.number) {
            (Value::Number(value), Some(number)) => compare(value, number),
            (Value::String(value), _) => value.as_str().cmp(&self.text),
            (value, _) => value.to_string().cmp(&self.text),
        }
    }
}

/// Whole numbers exactly, others as floats.
fn compare(a: &Number, b: &Number) -> Ordering {
    let whole = |number: &Number| number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
    }
}

fn find<'a>(members: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    if let Some(value) = members.get(key) {
        return Some(value);
    }
    key.match_indices('.').find_map(|(dot, _)| find(members.get(&key[..dot])?.as_object()?, &key[dot + 1..]))
}

fn wrong(text: &str, problem: &str) -> IndexError {
    let start: String = text.chars().take(40).collect();
    IndexError::invalid(format!(
        "condition {start:?} {problem}; write key=value, key!=value, key>=n, key>n, key<=n, key<n, key or !key"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const METADATA: &str = r#"{"year": 2021, "lang": "en", "draft": false, "score": 0.5, "tag": ["a"], "none": null,
        "by": {"name": "Ada", "a.b": 1}, "x.y": "dot", "code": "007", "big": 9007199254740993}"#;

    fn passes(conditions: &[&str]) -> bool {
        let conditions: Vec<String> = conditions.iter().map(|text| (*text).to_owned()).collect();
        Filter::parse(&conditions).unwrap().passes(METADATA)
    }

    #[test]
    fn conditions_that_hold_let_a_record_pass() {
        for condition in [
            "year=2021",
            "year=2021.0",
            "year>=2021",
            "year > 2020",
            "year<=2021",
            "year<3e3",
            "year!=2020",
            "lang=en",
            "lang!=de",
            "lang>=ab",
            "draft=false",
            "score=0.5",
            "score<1",
            "tag=[\"a\"]",
            "lang",
            "draft",
            "!absent",
            "absent!=x",
            "!none",
            "none!=1",
            "by.name=Ada",
            "by.a.b=1",
            "x.y=dot",
            "!by.name.more",
            "code=007",
            "code<01",
            "big=9007199254740993",
            "big>9007199254740992",
        ] {
            assert!(passes(&[condition]), "{condition}");
        }
    }

    #[test]
    fn conditions_that_do_not_hold_hold_it_back() {
        for condition in [
            "year=2022",
            "year>2021",
            "year<2021",
            "year=",
            "lang=EN",
            "!lang",
            "absent",
            "absent=x",
            "absent<1",
            "none",
            "none=null",
            "by.nam=Ada",
            "by=Ada",
            "code=7",
            "code>7",
            "big=9007199254740992",
        ] {
            assert!(!passes(&[condition]), "{condition}");
        }
    }

    #[test]
    fn all_conditions_must_hold() {
        assert!(passes(&["year>=2020", "lang=en"]));
        assert!(!passes(&["year>=2020", "lang=de"]));
        assert!(passes(&[]));
    }

    #[test]
    fn a_record_without_metadata_passes_what_asks_for_absence() {
        let filter = |text: &str| Filter::parse(&[text.to_owned()]).unwrap();
        assert!(filter("!year").passes("") && filter("year!=1").passes(""));
        assert!(!filter("year").passes("") && !filter("year=1").passes("not json"));
    }

    #[test]
    fn a_wrong_condition_is_refused_with_what_could_be_written() {
        let long = "k".repeat(1025);
        for text in ["", " ", "=1", "!=1", "!", "a..b=1", ".a", "a.", "!a=1", ">", long.as_str()] {
            let error = Filter::parse(&[text.to_owned()]).unwrap_err().to_string();
            assert!(error.contains("write key=value"), "{text:?}: {error}");
        }
        assert!(Filter::parse(&vec!["a".to_owned(); 65]).is_err());
    }
}
