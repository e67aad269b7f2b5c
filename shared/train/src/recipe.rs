//! What to train, in which order, how long: a YAML file.

mod check;

use e2llm_model::{AdapterForm, LoraConfig};
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
    /// Word pieces per soft token; a stage may have its own.
    pub ratio: usize,
    /// Most word pieces per chunk.
    pub chunk_tokens: usize,
    /// What the parameters start from.
    #[serde(default)]
    pub start: Start,
    /// What the adapter is built from.
    #[serde(default)]
    pub features: Features,
    /// How chunks become soft tokens: `gated_segments`, `one_vector` or `{attention_pooling: {queries: 8, heads: 4}}`.
    #[serde(default = "gated_segments", with = "serde_yaml_ng::with::singleton_map")]
    pub form: AdapterForm,
    /// Heads of the gate of `gated_segments`, with a learned bias per slot; none: one gate without slot bias.
    #[serde(default)]
    pub gate_heads: Option<usize>,
    /// Whether gate heads start out each preferring a slot of its own, in order.
    #[serde(default)]
    pub ordered_heads: bool,
    /// What of the decoder is trained.
    #[serde(default)]
    pub decoder: DecoderMode,
    /// LoRA rank on all seven linears of every decoder block.
    #[serde(default = "default_rank")]
    pub lora_rank: usize,
    /// alpha / rank.
    #[serde(default = "default_scale")]
    pub lora_scale: f64,
    /// LoRA on the linears of every encoder layer; none: the encoder stays as it is.
    #[serde(default)]
    pub encoder_lora: Option<LoraConfig>,
    /// Adapter alone, without the decoder in the loop. Without it the adapter starts at random (or from the table, by `features`).
    pub pretrain: Option<PretrainStage>,
    /// All parts together, stage after stage.
    pub stages: Vec<Stage>,
}

fn gated_segments() -> AdapterForm {
    AdapterForm::GatedSegments
}

fn default_rank() -> usize {
    16
}

fn default_scale() -> f64 {
    2.0
}

/// What adapter and LoRA start from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Nothing: at random, the adapter pretrained where the recipe says so.
    #[default]
    Fresh,
    /// Those of the bundle in use.
    Bundle,
}

/// What speaks through the soft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Features {
    /// The encoder's states: the method.
    #[default]
    Encoder,
    /// The encoder's states with the word-piece table added: the *table* start.
    Bridge,
    /// The word-piece table alone: the control that shows what the encoder contributes.
    TableOnly,
}

/// What of the decoder is trained. Its embeddings and its head never are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecoderMode {
    /// LoRA on all seven linears of every block.
    #[default]
    Lora,
    /// Nothing.
    Frozen,
    /// The seven linears themselves. Never a bundle: measured from its checkpoints.
    Full,
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
    /// Word pieces per soft token here; the recipe's where absent. A curriculum that begins at 1 has nothing to gate there, so
    /// its gate is pretrained at a higher ratio.
    #[serde(default)]
    pub ratio: Option<usize>,
    /// Of the adapter.
    pub adapter: AdamWConfig,
}

fn default_passages() -> usize {
    3_000
}

/// Adapter, encoder LoRA and decoder on the objectives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Optimizer steps.
    pub steps: usize,
    /// Samples per step.
    pub batch: usize,
    /// Most target tokens of a sample.
    pub max_target: usize,
    /// Word pieces per soft token from this stage on; the adapter is warm-started where it changes.
    #[serde(default)]
    pub ratio: Option<usize>,
    /// `bridge`: from this stage on the encoder's states are heard beside the table that was alone before. Where they come in
    /// they change no soft token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Features>,
    /// Fewest and most consecutive chunks of a sample to reconstruct or continue.
    pub chunks: (usize, usize),
    /// Fewest and most chunks of a document to summarize or to answer from.
    #[serde(default = "default_window")]
    pub window: (usize, usize),
    /// Share of those samples that have raw text behind the soft tokens.
    #[serde(default = "default_expand")]
    pub expand: f64,
    /// Fewest and most chunks of that raw text.
    #[serde(default = "default_excerpts")]
    pub excerpts: (usize, usize),
    /// Shares of the objectives.
    pub mix: Vec<(Objective, f64)>,
    /// Share of the loss that is the divergence from the untrained decoder reading the full text (xRAG); the rest is cross-entropy.
    #[serde(default)]
    pub distill: f64,
    /// Steps of linear warm-up.
    pub warm_up: usize,
    /// Share of the peak rate at the stage's end (cosine between).
    pub final_rate: f64,
    /// Of the adapter.
    pub adapter: AdamWConfig,
    /// Of the encoder LoRA; none: it rests in this stage.
    #[serde(default)]
    pub encoder: Option<AdamWConfig>,
    /// Of the decoder's LoRA, or of its linears when they are trained in full.
    #[serde(default, alias = "decoder")]
    pub lora: AdamWConfig,
}

fn default_window() -> (usize, usize) {
    (3, 8)
}

fn default_expand() -> f64 {
    0.8
}

fn default_excerpts() -> (usize, usize) {
    (1, 6)
}

impl Recipe {
    /// Parses YAML and checks every number.
    pub fn parse(text: &str) -> Result<Self> {
        let recipe: Self = serde_yaml_ng::from_str(text).map_err(|e| TrainError::Invalid(format!("recipe: {e}")))?;
        match recipe.problem() {
            Some(problem) => Err(TrainError::Invalid(format!("recipe: {problem}"))),
            None => Ok(recipe),
        }
    }

    /// Word pieces per soft token in stage `index`; after the last stage that of the last.
    pub fn ratio_at(&self, index: usize) -> usize {
        self.stages.iter().take(index + 1).filter_map(|stage| stage.ratio).next_back().unwrap_or(self.ratio)
    }

    /// What the adapter is built from in stage `index`; after the last stage as in the last.
    pub fn features_at(&self, index: usize) -> Features {
        self.stages.iter().take(index + 1).filter_map(|stage| stage.features).next_back().unwrap_or(self.features)
    }

    /// Whether a run of it can become a bundle: a control needs its table beside the adapter, and a decoder trained in full is
    /// no LoRA.
    pub fn makes_bundle(&self) -> bool {
        self.features == Features::Encoder && self.decoder != DecoderMode::Full
    }

    /// Shape of the decoder's LoRA, where there is one.
    pub fn lora(&self) -> Option<LoraConfig> {
        (self.decoder == DecoderMode::Lora).then_some(LoraConfig { rank: self.lora_rank, scale: self.lora_scale })
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
