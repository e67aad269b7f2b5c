//! Training: objectives, optimizer, checkpoints and held-out losses.
//!
//! The decoder side drives: it sends chunk texts through an [`EncoderSession`], gets soft tokens back, computes the
//! loss and returns the gradient of the soft tokens; the encoder side keeps the graph and owns the adapter. Here both
//! live in one process; the same trait is what the encoder's `TrainSession` RPC serves.
//!
//! Stages (after the measured recipe): [`pretrain`] fits the adapter to the decoder's embedding space without the
//! decoder; [`Trainer`] then trains adapter and decoder LoRA together on the understanding objective of E2LLM
//! (arXiv 2409.06679): from soft tokens, regenerate the source text, or continue it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod checkpoint;
mod corpus;
mod error;
mod evaluate;
mod export;
mod learned;
mod optimizer;
pub mod pretrain;
mod recipe;
pub mod run;
mod sample;
mod session;
mod share;
mod sides;
mod table;
mod trainer;
mod workers;

pub use checkpoint::{Checkpoint, Checkpoints};
pub use corpus::{Corpus, Document};
pub use error::{Result, TrainError};
pub use evaluate::{Evaluation, Losses, evaluate};
pub use export::{BundleFiles, Names};
pub use learned::Learned;
pub use optimizer::{AdamW, AdamWConfig, Parameters};
pub use recipe::{Features, PretrainStage, Recipe, Stage};
pub use sample::{Objective, Part, Sample, Sampler};
pub use session::{EncoderSession, LocalSession, SoftBatch, initial_adapter, initial_lora};
pub use share::{Round, Share, overlay, rounds};
pub use sides::{Target, adapter_config, decoder_side, deserialize, encoder_side, parameters_of, serialize};
pub use table::word_piece_table;
pub use trainer::{Progress, Trainer};
