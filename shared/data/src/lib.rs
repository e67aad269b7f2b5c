//! Training and evaluation data: sources prepared, tasks synthesised, answers taught and scored.
//!
//! Everything is JSON Lines of two shapes ([`Line`]): text with an optional abstract, and tasks of a context, a prompt and an
//! answer. [`prepare`] makes both of packaged texts and splits them; [`Synthesizer`] makes tasks of any length whose answers
//! are known; [`teach`] has the full-text decoder answer what has no label (sequence-level distillation); [`score`] judges.
//! The crate knows no models: counting tokens and answering are lent to it ([`Synthesizer::count`], [`Teacher`]).
//!
//! ```
//! use e2llm_data::{Haystack, Line, Synthesizer, TaskKind, score};
//!
//! # let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
//! # let word = |n: usize| [letter(n), letter(n / 26), letter(n), letter(n / 26)].iter().collect::<String>();
//! # let text: String = (0..3000).map(|n| format!("The {} waits here for its {}. ", word(n), word(7 * n))).collect();
//! # let lines = vec![serde_json::from_value::<Line>(serde_json::json!({"id": "a", "text": text})).unwrap()];
//! let haystack = Haystack::new(lines)?;
//! let tasks = Synthesizer {
//!     haystack: &haystack,
//!     count: &|text| Ok(text.split_whitespace().count()),
//!     question: |question| format!("Question: {question}"),
//! };
//! let task = tasks.line(TaskKind::NiahSingle, 1024, 7)?;
//! assert_eq!(task, tasks.line(TaskKind::NiahSingle, 1024, 7)?);
//! assert!(task.context[task.evidence[0].clone()].contains(&task.answers[0]));
//! assert_eq!(score::string_match(&format!("It is {}.", task.answers[0]), &task.answers), 1.0);
//! # Ok::<(), e2llm_data::DataError>(())
//! ```
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod cut;
mod duplicates;
mod error;
mod hash;
mod io;
mod line;
pub mod prepare;
pub mod score;
mod synth;
mod teach;

pub use duplicates::{Duplicates, Seen};
pub use error::{DataError, Result};
pub use io::{LineWriter, Lines, open};
pub use line::{Line, PlainLine, Split, TEST_FROM, TaskLine, VALIDATE_FROM};
pub use synth::{Haystack, MAX_BYTES, MIN_TOKENS, RulerSources, RulerTask, Synthesizer, TaskKind};
pub use teach::{Taught, TeachReport, Teacher, Teaching, teach};
