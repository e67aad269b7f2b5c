//! The decoder side of training: shares of rounds, as tasks.
//!
//! A share fetches what it starts from, opens a session with an encoder, takes its steps, and leaves the state of both
//! sides in the store, each written by the side that owns it. This process holds no encoder and no adapter.

mod corpus;
mod error;
mod export;
mod models;
mod remote;
mod tasks;
mod totals;

pub use models::{BaseWeights, DecoderSide, LoadDecoderSide, Words};
pub use tasks::TrainTasks;
