//! Training: objectives, optimizer, checkpoints and held-out losses.
//!
//! The decoder side drives: it sends chunk texts through an [`EncoderSession`], gets soft tokens back, computes the
//! loss and returns the gradient of the soft tokens; the encoder side keeps the graph and owns the adapter. Here both
//! live in one process; the same trait is what the encoder's `TrainSession` RPC serves.
//!
//! Stages (after the measured recipe): [`pretrain`] fits the adapter to the decoder's embedding space without the
//! decoder; [`Trainer`] then trains adapter, encoder LoRA and decoder (LoRA, its linears, or nothing) on a mix of the two
//! objectives of E2LLM (arXiv 2409.06679): understanding (from soft tokens, regenerate the source text or continue it) and
//! reasoning (summaries and answers, with some chunks as raw text), and on the distribution of the untrained decoder that
//! reads the full text. A [`Recipe`] says which, in which order; [`run`] carries it out.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod batch;
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
mod warm;
pub mod wire;
mod workers;

pub use checkpoint::{Checkpoint, Checkpoints};
pub use corpus::{Corpus, Document, Task};
pub use error::{Result, TrainError};
pub use evaluate::{Evaluation, Losses, PassageLosses, evaluate};
pub use export::{BundleFiles, BundleParts, Names, write_bundle};
pub use learned::Learned;
pub use optimizer::{AdamW, AdamWConfig, Parameters};
pub use recipe::{DecoderMode, Features, PretrainStage, Recipe, Stage, Start};
pub use sample::{Objective, Part, Sample, Sampler};
pub use session::{EncoderSession, LocalSession, SoftBatch, initial_adapter, initial_lora, order_heads};
pub use share::{Round, Share, overlay, rounds};
pub use sides::{Target, decoder_side, deserialize, encoder_side, parameters_of, serialize};
pub use table::word_piece_table;
pub use trainer::{ObjectiveLoss, Progress, Trainer};
