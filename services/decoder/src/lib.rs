//! The decoder service: answers and summaries from soft prompts.
//!
//! [`Answering`] fetches records from the index and blobs from the store, lays soft tokens and the raw text of a few
//! chunks out inside the position budget (`e2llm_model::expand`), and runs them on the [`Engine`], one thread that owns
//! the decoder and serves interactive requests before bulk ones. [`DecoderService`] is its gRPC face, [`DecodeTasks`]
//! does the decode tasks of bulk jobs, [`TrainTasks`] the shares of training jobs.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod answering;
mod document;
mod engine;
mod error;
mod healing;
mod keeping;
mod layout;
mod service;
mod summarizing;
mod tasks;
mod training;

pub use answering::{Answering, Request, Task};
pub use engine::{Engine, Priority};
pub use error::DecodeError;
pub use service::DecoderService;
pub use tasks::DecodeTasks;
pub use training::{BaseWeights, DecoderSide, LoadDecoderSide, TrainTasks, Words};
