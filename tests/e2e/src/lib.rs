//! What crosses services: end to end, faults, quality.
//!
//! These tests run the real binary on real models. [`Workplace`] is a directory with a store and runs commands in it;
//! [`Service`] is a process that serves; [`S3`] is object storage. The binary is the one named by `E2LLM_BIN`, or else
//! the one beside the test executables; `cargo xtask test` builds it first.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../../shared/store/tests/support/moto.rs"]
mod moto;
mod service;
mod workplace;

use std::path::PathBuf;

pub use service::{S3, Service, eventually, eventually_true};
pub use workplace::{HARBOUR, Outcome, TEXTS, Workplace, answer, flip_byte};

/// The `e2llm` binary under test.
pub fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os("E2LLM_BIN") {
        return binary.into();
    }
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(|deps| deps.parent()).unwrap().join("e2llm");
    assert!(binary.exists(), "{} is missing; run `cargo build` or `cargo xtask test`", binary.display());
    binary
}
