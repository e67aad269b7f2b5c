//! Shape of a Llama-family decoder, read from `config.json` or GGUF metadata.

use serde::Deserialize;

use crate::error::{ModelError, Result};
use crate::ops::{RopePairs, RopeTable};

/// Everything the forward pass needs to know besides the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Number of blocks.
    pub layers: usize,
    /// Width of embeddings and residual stream.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head; not always `d_model / heads` (Qwen3).
    pub head_dim: usize,
    /// RMSNorm epsilon.
    pub rms_eps: f32,
    /// Most positions the model was trained for: its window.
    pub context: usize,
    /// Sliding attention window (Mistral), in positions.
    pub sliding_window: Option<usize>,
    /// Rotary frequencies `[head_dim / 2]`, scaling applied.
    pub rope_frequencies: Vec<f64>,
    /// Which dimensions rotate together.
    pub rope_pairs: RopePairs,
    /// Token ids that end a turn.
    pub eos: Vec<u32>,
}

/// Architectures whose blocks this decoder computes.
pub const ARCHITECTURES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

impl DecoderConfig {
    /// From the text of a Hugging Face `config.json`.
    pub fn from_json(text: &str) -> Result<Self> {
        let bad = |problem: String| ModelError::Config { problem };
        let json: HfConfig = serde_json::from_str(text).map_err(|e| bad(format!("config.json: {e}")))?;
        if !ARCHITECTURES.contains(&json.model_type.as_str()) {
            return Err(bad(format!(
                "model_type {:?} is not one of {ARCHITECTURES:?}; use a Llama, Mistral or Qwen decoder",
                json.model_type
            )));
        }
        let head_dim = json.head_dim.unwrap_or(json.hidden_size / json.num_attention_heads.max(1));
        let sliding = json.use_sliding_window.unwrap_or(json.model_type == "mistral");
        let config = Self {
            layers: json.num_hidden_layers,
            d_model: json.hidden_size,
            heads: json.num_attention_heads,
            kv_heads: json.num_key_value_heads.unwrap_or(json.num_attention_heads),
            head_dim,
            rms_eps: json.rms_norm_eps,
            context: json.max_position_embeddings,
            sliding_window: json.sliding_window.filter(|_| sliding),
            rope_frequencies: json.frequencies(head_dim)?,
            rope_pairs: RopePairs::Halves,
            eos: json.eos_token_id.map(OneOrMany::into_vec).unwrap_or_default(),
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses shapes the forward pass cannot compute.
    pub(crate) fn check(&self) -> Result<()> {
        let problem = if self.heads == 0 || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            format!("{} attention heads cannot be shared by {} key-value heads", self.heads, self.kv_heads)
        } else if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            format!("head width {} is not an even number above zero", self.head_dim)
        } else if self.layers == 0 || self.layers > 1_000 || self.context == 0 || self.d_model == 0 {
            format!("{} layers of width {} with a window of {} is not a model", self.layers, self.d_model, self.context)
        } else {
            return Ok(());
        };
        Err(ModelError::Config { problem })
    }

    /// Angles for every position of the window.
    pub(crate) fn rope_table(&self) -> RopeTable {
        RopeTable::new(&self.rope_frequencies, self.context, self.rope_pairs)
    }
}

/// `base^(−2i/head_dim)`.
pub(crate) fn plain_frequencies(base: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| base.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    num_hidden_layers: usize,
    hidden_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: f32,
    max_position_embeddings: usize,
    sliding_window: Option<usize>,
    use_sliding_window: Option<bool>,
    rope_theta: Option<f64>,
    #[serde(alias = "rope_parameters")]
    rope_scaling: Option<RopeScaling>,
    eos_token_id: Option<OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<u32> {
        match self {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

#[derive(Deserialize)]
struct RopeScaling {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl HfConfig {
    fn frequencies(&self, head_dim: usize) -> Result<Vec<f64>> {
        let nested = self.rope_scaling.as_ref().and_then(|s| s.rope_theta);
        let plain = plain_frequencies(self.rope_theta.or(nested).unwrap_or(10_000.0), head_dim);
        let Some(scaling) = &self.rope_scaling else { return Ok(plain) };
        match scaling.rope_type.as_deref() {
            None | Some("default") => Ok(plain),
            Some("linear") => Ok(plain.iter().map(|f| f / scaling.factor.unwrap_or(1.0)).collect()),
            Some("llama3") => Ok(plain.iter().map(|f| scaling.llama3(*f)).collect()),
            Some(other) => Err(ModelError::Config {
                problem: format!("rope scaling {other:?} is not supported; known are default, linear and llama3"),
            }),
        }
    }
}

impl RopeScaling {
    /// Llama 3.1's piecewise scaling: long waves slowed by `factor`, short ones kept, a ramp between.
    fn llama3(&self, frequency: f64) -> f64 {
        let (factor, low, high) =
            (self.factor.unwrap_or(8.0), self.low_freq_factor.unwrap_or(1.0), self.high_freq_factor.unwrap_or(4.0));
        let original = self.original_max_position_embeddings.unwrap_or(8_192.0);
        let wavelength = 2.0 * std::f64::consts::PI / frequency;
        if wavelength < original / high {
            frequency
        } else if wavelength > original / low {
            frequency / factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }
}
