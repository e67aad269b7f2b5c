//! What to train, in which order, how long: a YAML file.

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::optimizer::AdamWConfig;
use crate::sample::Objective;

/// A whole training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Seed of parameters and data order.
    pub seed: u64,
    /// Word pieces per soft token.
    pub ratio: usize,
    /// Most word pieces per chunk.
    pub chunk_tokens: usize,
    /// What the adapter is built from.
    #[serde(default)]
    pub features: Features,
    /// LoRA rank on all seven linears of every decoder block.
    pub lora_rank: usize,
    /// alpha / rank.
    pub lora_scale: f64,
    /// Adapter alone, without the decoder in the loop.
    pub pretrain: Option<PretrainStage>,
    /// Adapter and LoRA together, stage after stage.
    pub stages: Vec<Stage>,
}

/// What speaks through the soft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Features {
    /// The encoder's states: the method.
    #[default]
    Encoder,
    /// The encoder's states with the word-piece table added.
    Bridge,
    /// The word-piece table alone: the control that shows what the encoder contributes.
    TableOnly,
}

/// Fits the adapter's values to decoder embeddings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainStage {
    /// Optimizer steps.
    pub steps: usize,
    /// Chunks per step.
    pub batch: usize,
    /// Passages drawn from the corpus and encoded once; batches are drawn from them.
    #[serde(default = "default_passages")]
    pub passages: usize,
    /// Vocabulary entries in the sampled softmax, the batch's own targets included.
    pub negatives: usize,
    /// Of the adapter.
    pub adapter: AdamWConfig,
}

fn default_passages() -> usize {
    3_000
}

/// Adapter and decoder LoRA on the objectives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Optimizer steps.
    pub steps: usize,
    /// Samples per step.
    pub batch: usize,
    /// Most target tokens of a sample.
    pub max_target: usize,
    /// Fewest and most consecutive chunks of a sample.
    pub chunks: (usize, usize),
    /// Shares of the objectives.
    pub mix: Vec<(Objective, f64)>,
    /// Steps of linear warm-up.
    pub warm_up: usize,
    /// Share of the peak rate at the stage's end (cosine between).
    pub final_rate: f64,
    /// Of the adapter.
    pub adapter: AdamWConfig,
    /// Of the LoRA.
    pub lora: AdamWConfig,
}

impl Recipe {
    /// Parses YAML and checks every number.
    pub fn parse(text: &str) -> Result<Self> {
        let recipe: Self = serde_yaml_ng::from_str(text).map_err(|e| TrainError::Invalid(format!("recipe: {e}")))?;
        let problem = if recipe.ratio == 0 || recipe.chunk_tokens == 0 || recipe.lora_rank == 0 {
            "ratio, chunk_tokens and lora_rank must be at least 1"
        } else if recipe
            .stages
            .iter()
            .any(|s| s.batch == 0 || s.chunks.0 == 0 || s.chunks.0 > s.chunks.1 || s.mix.is_empty())
        {
            "every stage needs a batch, a range of chunks and a mix of objectives"
        } else if recipe.pretrain.as_ref().is_some_and(|p| p.batch == 0 || p.passages == 0 || p.negatives == 0) {
            "pretrain needs a batch, passages and negatives of at least 1"
        } else {
            return Ok(recipe);
        };
        Err(TrainError::Invalid(format!("recipe: {problem}")))
    }
}

impl Stage {
    /// Share of the peak rate at `step` (0-based): linear warm-up, then cosine.
    pub fn schedule(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return (step + 1) as f64 / self.warm_up as f64;
        }
        let span = self.steps.saturating_sub(self.warm_up).max(1) as f64;
        let done = (step - self.warm_up) as f64 / span;
        self.final_rate + (1.0 - self.final_rate) * 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
    }
}
