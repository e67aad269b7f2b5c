//! The encoder service: chunk, encode, adapt, store.
//!
//! A document's text is in the object store (or arrives in pieces and is put there); [`Pipeline`] chunks it, encodes it
//! in segments of at most 4,096 chunks, writes each segment as a verified blob and commits the record to the index.
//! [`EncoderService`] serves that over gRPC, [`EncodeTasks`] does the encode tasks of bulk jobs. Both use one pipeline.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod error;
mod patience;
mod pipeline;
mod service;
mod tasks;
mod training;

pub use error::EncodeError;
pub use pipeline::{Document, Encoded, Pipeline};
pub use service::EncoderService;
pub use tasks::EncodeTasks;
