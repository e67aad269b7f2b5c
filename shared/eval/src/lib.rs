//! Evaluation: systems that answer the same tasks with the same decoder and encoder, and what their answers are worth.
//!
//! A [`System`] says what of a document the decoder reads: its soft tokens, with raw text or without, or one of the
//! baselines that soft tokens have to beat. An [`Outcome`] is one answer with its [`score`]; a [`Report`] gives means with
//! bootstrap confidence intervals, and the paired difference to the same raw text beside the soft tokens of *another*
//! document: only there can soft tokens earn credit. The crate runs nothing: answers are lent to it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bootstrap;
mod html;
mod outcome;
mod paper;
mod plot;
mod report;
mod system;

pub use bootstrap::Interval;
pub use html::{Page, html};
pub use outcome::{Answer, Asked, Outcome, letters, score};
pub use paper::paper;
pub use plot::{Chart, PlotError, charts};
pub use report::{Documents, Evidence, Report, Row};
pub use system::{Positions, System};
