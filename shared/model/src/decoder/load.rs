//! Reading decoder weights from GGUF and safetensors.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::quantized::QTensor;
use candle_core::{DType, Device, Tensor};

use super::config::plain_frequencies;
use super::{ARCHITECTURES, Block, Decoder, DecoderConfig, LORA_TARGETS, Linear, Weight};
use crate::error::Result;
use crate::gguf::GgufFile;
use crate::ops::RopePairs;
use crate::safetensors::TensorFile;

/// Where tensors come from, under the two naming schemes.
enum Source {
    Gguf { file: RefCell<GgufFile>, device: Device },
    Safetensors(TensorFile),
}

/// Tensor names of a block: GGUF, Hugging Face.
const BLOCK_NAMES: [(&str, &str); 11] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

impl Source {
    fn name(&self, layer: Option<usize>, gguf: &str, suffix: &str) -> String {
        let hugging_face = BLOCK_NAMES.iter().find(|(g, _)| *g == gguf).map_or(gguf, |(_, h)| h);
        match (self, layer) {
            (Source::Gguf { .. }, Some(layer)) => format!("blk.{layer}.{gguf}.{suffix}"),
            (Source::Gguf { .. }, None) => format!("{gguf}.{suffix}"),
            (Source::Safetensors(_), Some(layer)) => format!("model.layers.{layer}.{hugging_face}.{suffix}"),
            (Source::Safetensors(_), None) => match gguf {
                "token_embd" => "model.embed_tokens.weight".to_owned(),
                "output_norm" => "model.norm.weight".to_owned(),
                _ => "lm_head.weight".to_owned(),
            },
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Source::Gguf { file, .. } => file.borrow().has_tensor(name),
            Source::Safetensors(file) => file.has(name),
        }
    }

    fn rows(&self, name: &str) -> Result<usize> {
        match self {
            Source::Gguf { file, .. } => {
                let file = file.borrow();
                let rows = file.shape(name).and_then(|shape| shape.first().copied());
                rows.ok_or_else(|| file.metadata().bad(format!("tensor {name} is missing or has no rows")))
            }
            Source::Safetensors(file) => file.rows(name),
        }
    }

    fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<Weight> {
        match self {
            Source::Gguf { file, device } => {
                let tensor = checked_tensor(&mut file.borrow_mut(), name, &shape, device)?;
                Ok(match tensor.dtype() {
                    candle_core::quantized::GgmlDType::F32
                    | candle_core::quantized::GgmlDType::F16
                    | candle_core::quantized::GgmlDType::BF16 => Weight::Dense(tensor.dequantize(device)?),
                    _ => Weight::Quantized(Arc::new(tensor)),
                })
            }
            Source::Safetensors(file) => Ok(Weight::Dense(file.f32(name, &shape)?)),
        }
    }

    fn vector(&self, name: &str, width: usize) -> Result<Tensor> {
        match self {
            Source::Gguf { file, device } => {
                Ok(checked_tensor(&mut file.borrow_mut(), name, &[width], device)?.dequantize(device)?)
            }
            Source::Safetensors(file) => file.f32(name, &[width]),
        }
    }

    fn optional_vector(&self, name: &str, width: usize) -> Result<Option<Tensor>> {
        self.has(name).then(|| self.vector(name, width)).transpose()
    }
}

/// A tensor of exactly this shape.
fn checked_tensor(file: &mut GgufFile, name: &str, shape: &[usize], device: &Device) -> Result<QTensor> {
    match file.shape(name) {
        Some(found) if found == shape => file.tensor(name, device),
        Some(found) => {
            Err(file.metadata().bad(format!("tensor {name} has shape {found:?}, the metadata asks for {shape:?}")))
        }
        None => Err(file.metadata().bad(format!("tensor {name} is missing"))),
    }
}

impl DecoderConfig {
    /// From GGUF metadata.
    pub fn from_gguf(file: &mut GgufFile) -> Result<Self> {
        let metadata = file.metadata();
        let arch = metadata.str("general.architecture")?.to_owned();
        if !ARCHITECTURES.contains(&arch.as_str()) {
            return Err(metadata.bad(format!("architecture {arch:?} is not one of {ARCHITECTURES:?}")));
        }
        let key = |name: &str| format!("{arch}.{name}");
        let number = |name: &str| metadata.u32(&key(name)).map(|v| v as usize);
        let optional = |name: &str| metadata.opt_u32(&key(name)).map(|v| v as usize);
        let (d_model, heads) = (number("embedding_length")?, number("attention.head_count")?);
        let head_dim = optional("attention.key_length").unwrap_or(d_model / heads.max(1));
        let base = metadata.opt_f32(&key("rope.freq_base")).unwrap_or(10_000.0);
        let mut config = Self {
            layers: number("block_count")?,
            d_model,
            heads,
            kv_heads: optional("attention.head_count_kv").unwrap_or(heads),
            head_dim,
            rms_eps: metadata.f32(&key("attention.layer_norm_rms_epsilon"))?,
            context: number("context_length")?,
            sliding_window: optional("attention.sliding_window"),
            rope_frequencies: plain_frequencies(f64::from(base), head_dim),
            rope_pairs: if arch == "llama" || arch == "mistral" { RopePairs::Neighbours } else { RopePairs::Halves },
            eos: metadata.opt_u32("tokenizer.ggml.eos_token_id").into_iter().collect(),
        };
        if file.has_tensor("rope_freqs.weight") {
            // Llama 3.1 files carry their scaling as a divisor per frequency.
            let divisors =
                checked_tensor(file, "rope_freqs.weight", &[head_dim / 2], &Device::Cpu)?.dequantize(&Device::Cpu)?;
            for (frequency, divisor) in config.rope_frequencies.iter_mut().zip(divisors.to_vec1::<f32>()?) {
                *frequency /= f64::from(divisor);
            }
        }
        config.check()?;
        Ok(config)
    }
}

impl Decoder {
    /// Reads a GGUF file; quantised weights stay quantised.
    pub fn from_gguf(path: &Path, device: &Device) -> Result<Self> {
        let mut file = GgufFile::open(path)?;
        let config = DecoderConfig::from_gguf(&mut file)?;
        Self::build(config, &Source::Gguf { file: RefCell::new(file), device: device.clone() }, device)
    }

    /// Reads safetensors (all shards) with the text of `config.json`.
    pub fn from_safetensors(weights: &[PathBuf], config: &str, device: &Device) -> Result<Self> {
        let config = DecoderConfig::from_json(config)?;
        Self::build(config, &Source::Safetensors(TensorFile::open_all(weights, device)?), device)
    }

    fn build(config: DecoderConfig, source: &Source, device: &Device) -> Result<Self> {
        let embeddings = source.name(None, "token_embd", "weight");
        let vocabulary = source.rows(&embeddings)?;
        let head = source.name(None, "output", "weight");
        let shape = [vocabulary, config.d_model];
        Ok(Self {
            embeddings: source.matrix(&embeddings, shape)?,
            head: source.has(&head).then(|| source.matrix(&head, shape)).transpose()?,
            blocks: (0..config.layers).map(|layer| Block::load(layer, &config, source)).collect::<Result<_>>()?,
            final_norm: source.vector(&source.name(None, "output_norm", "weight"), config.d_model)?,
            rope: Arc::new(config.rope_table()),
            device: device.clone(),
            dtype: DType::F32,
            config,
        })
    }

    /// Expands every quantised weight, once: what training wants. The blocks compute in `dtype` from then on, norms and losses
    /// in f32.
    pub fn into_dense(mut self, dtype: DType) -> Result<Self> {
        let device = self.device.clone();
        self.dtype = dtype;
        let dense = |weight: &mut Weight| -> Result<()> {
            *weight = Weight::Dense(weight.to_dense(&device)?.to_dtype(dtype)?);
            Ok(())
        };
        dense(&mut self.embeddings)?;
        self.head.as_mut().map(dense).transpose()?;
        for block in &mut self.blocks {
            for (target, _) in LORA_TARGETS {
                dense(&mut block.linear_mut(target).weight)?;
            }
        }
        Ok(self)
    }
}

impl Block {
    fn load(layer: usize, config: &DecoderConfig, source: &Source) -> Result<Self> {
        let (d, q_width, kv_width) =
            (config.d_model, config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let name = |part: &str, suffix: &str| source.name(Some(layer), part, suffix);
        let inner = source.rows(&name("ffn_gate", "weight"))?;
        let linear = |part: &str, outputs: usize, inputs: usize| -> Result<Linear> {
            let weight = source.matrix(&name(part, "weight"), [outputs, inputs])?;
            Ok(Linear::new(weight, source.optional_vector(&name(part, "bias"), outputs)?))
        };
        Ok(Self {
            attention_norm: source.vector(&name("attn_norm", "weight"), d)?,
            q: linear("attn_q", q_width, d)?,
            k: linear("attn_k", kv_width, d)?,
            v: linear("attn_v", kv_width, d)?,
            o: linear("attn_output", d, q_width)?,
            q_norm: source.optional_vector(&name("attn_q_norm", "weight"), config.head_dim)?,
            k_norm: source.optional_vector(&name("attn_k_norm", "weight"), config.head_dim)?,
            ffn_norm: source.vector(&name("ffn_norm", "weight"), d)?,
            gate: linear("ffn_gate", inner, d)?,
            up: linear("ffn_up", inner, d)?,
            down: linear("ffn_down", d, inner)?,
        })
    }
}
