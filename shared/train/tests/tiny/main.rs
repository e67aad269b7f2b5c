//! Training of tiny models that the test writes itself: what moves, what stays, and what a resumed run repeats.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../../../tests/golden/golden.rs"]
mod golden;
mod models;
mod runs;
mod samples;
mod sessions;
