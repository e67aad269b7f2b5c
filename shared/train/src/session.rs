//! The encoder side of training: soft tokens out, their gradient in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use e2llm_model::{Adapter, AdapterConfig, Bridge, ContentRows, TextEncoder, TextTokenizer};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, AdamWConfig, Parameters};
use crate::pretrain::{Passage, Pool, TokenEmbeddings, pretrain};
use crate::recipe::Recipe;
use crate::run::Report;

/// Soft tokens of several chunks, one after the other.
#[derive(Debug, Clone)]
pub struct SoftBatch {
    /// `[Σ counts, d_model]`, f32, detached from the encoder's graph.
    pub values: Tensor,
    /// Soft tokens of each chunk.
    pub counts: Vec<usize>,
}

/// The side that owns the adapter. Calls come in the order `encode`, `backward`, …, `step`.
pub trait EncoderSession {
    /// Soft tokens of the chunks; the graph is kept for the next `backward`.
    fn encode(&mut self, chunks: &[&str]) -> Result<SoftBatch>;
    /// Takes the gradient of the last batch's soft tokens, `[Σ counts, d_model]`, and accumulates the parameters'.
    fn backward(&mut self, gradient: &Tensor) -> Result<()>;
    /// One optimizer step at `schedule` times the peak rate. Returns the gradient's norm.
    fn step(&mut self, schedule: f64) -> Result<f64>;
    /// Optimizer settings from now on; moments stay.
    fn configure(&mut self, optimizer: AdamWConfig);
    /// Adds parameters and optimizer state to a checkpoint.
    fn save(&self, into: &mut BTreeMap<String, Tensor>) -> Result<()>;
    /// Restores what `save` wrote.
    fn restore(&mut self, from: &HashMap<String, Tensor>) -> Result<()>;
}

/// An encoder session in this process: frozen encoder, trainable adapter.
pub struct LocalSession {
    encoder: Arc<TextEncoder>,
    tokenizer: Arc<TextTokenizer>,
    adapter: Adapter,
    optimizer: AdamW,
    bridge: Option<Bridge>,
    /// Soft tokens of the last `encode`, still attached to the adapter.
    pending: Option<Tensor>,
}

/// Word pieces of chunks: id sequences with special tokens, packed content rows, and the content ids.
pub(crate) struct Tokenized {
    pub(crate) sequences: Vec<Vec<u32>>,
    pub(crate) content: ContentRows,
    pub(crate) ids: Vec<u32>,
}

/// Tokenises chunks the way the encoder reads them.
pub(crate) fn tokenize(tokenizer: &TextTokenizer, chunks: &[&str]) -> Result<Tokenized> {
    let sequences = chunks.iter().map(|c| Ok(tokenizer.encode_framed(c)?)).collect::<Result<Vec<_>>>()?;
    let content = ContentRows::inside_specials(&sequences.iter().map(Vec::len).collect::<Vec<_>>());
    let ids = sequences.iter().flat_map(|s| &s[1..s.len() - 1]).copied().collect();
    Ok(Tokenized { sequences, content, ids })
}

impl LocalSession {
    /// A session over a frozen encoder.
    pub fn new(
        encoder: Arc<TextEncoder>,
        tokenizer: Arc<TextTokenizer>,
        config: AdapterConfig,
        parameters: Parameters,
        optimizer: AdamWConfig,
        bridge: Option<Bridge>,
    ) -> Result<Self> {
        let adapter = Adapter::new(config, parameters.tensors(), &Device::Cpu)?;
        Ok(Self { encoder, tokenizer, adapter, optimizer: AdamW::new(parameters, optimizer), bridge, pending: None })
    }

    /// A session that only encodes, with a finished adapter.
    pub fn frozen(encoder: Arc<TextEncoder>, tokenizer: Arc<TextTokenizer>, adapter: Adapter) -> Self {
        let optimizer = AdamW::new(Parameters::default(), AdamWConfig::default());
        Self { encoder, tokenizer, adapter, optimizer, bridge: None, pending: None }
    }

    /// Fits the adapter to the decoder's embeddings, by the recipe's pretraining; nothing without one. `report` hears of
    /// every step and says whether to go on.
    pub fn pretrain(
        &mut self,
        recipe: &Recipe,
        embeddings: &TokenEmbeddings,
        passages: &[Passage],
        report: &mut dyn FnMut(Report) -> bool,
    ) -> Result<()> {
        let Some(stage) = &recipe.pretrain else { return Ok(()) };
        let pool = Pool::encode(passages, &self.encoder, &self.tokenizer, |chunks| {
            report(Report::Pooling { chunks, of: passages.len() });
        })?;
        let (config, parameters) = (self.adapter.config(), self.optimizer.parameters().clone());
        pretrain(config, parameters, stage, &pool, embeddings, recipe.seed, |step, p| {
            report(Report::Pretrain { step: step + 1, of: stage.steps, loss: p.loss, accuracy: p.accuracy })
        })
    }

    /// The adapter's parameters, to be exported.
    pub fn parameters(&self) -> &Parameters {
        self.optimizer.parameters()
    }

    /// The adapter under training.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    fn attached(&self, chunks: &[&str]) -> Result<(Tensor, Vec<usize>)> {
        let tokens = tokenize(&self.tokenizer, chunks)?;
        let states = self.encoder.states(&tokens.sequences)?;
        let features = Adapter::features(&states, &tokens.content)?;
        let bridge = self.bridge.as_ref().map(|b| (b, tokens.ids.as_slice()));
        let soft = self.adapter.soft_tokens_bridged(&features, &tokens.content.pieces, bridge)?;
        let counts = tokens.content.pieces.iter().map(|p| self.adapter.config().soft_tokens(*p)).collect();
        Ok((soft, counts))
    }
}

impl EncoderSession for LocalSession {
    fn encode(&mut self, chunks: &[&str]) -> Result<SoftBatch> {
        let (soft, counts) = self.attached(chunks)?;
        let values = soft.detach();
        self.pending = Some(soft);
        Ok(SoftBatch { values, counts })
    }

    fn backward(&mut self, gradient: &Tensor) -> Result<()> {
        let soft = self
            .pending
            .take()
            .ok_or_else(|| TrainError::Invalid("backward without a batch that was encoded before".to_owned()))?;
        // d(Σ soft·g)/dθ is the gradient of θ when g is the gradient of the soft tokens.
        let gradients = (soft * gradient)?.sum_all()?.backward()?;
        self.optimizer.accumulate(&gradients)
    }

    fn step(&mut self, schedule: f64) -> Result<f64> {
        self.optimizer.step(schedule)
    }

    fn configure(&mut self, optimizer: AdamWConfig) {
        self.optimizer.configure(optimizer);
    }

    fn save(&self, into: &mut BTreeMap<String, Tensor>) -> Result<()> {
        self.optimizer.save("adapter", into)
    }

    fn restore(&mut self, from: &HashMap<String, Tensor>) -> Result<()> {
        self.optimizer.restore("adapter", from)
    }
}

/// Random start of an adapter: scaled normal weights, zero biases, and zero output of the residual paths.
pub fn initial_adapter(config: &AdapterConfig, seed: u64) -> Result<Parameters> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = Parameters::default();
    for (name, shape) in config.parameters() {
        let count: usize = shape.iter().product();
        let values = match name {
            "scale" => vec![1.0; count],
            "segment.down.weight" | "gate.down.weight" => vec![0.0; count],
            _ if name.ends_with(".bias") => vec![0.0; count],
            _ => {
                // Values start at the scale of the embeddings that they shall become.
                let scale =
                    if name.starts_with("value.") && !name.ends_with("up.weight") { config.embedding_rms } else { 1.0 };
                let deviation = scale * (1.0 / shape[1] as f32).sqrt();
                normal(&mut rng, count).map(|x| x * deviation).collect()
            }
        };
        parameters.0.insert(name.to_owned(), Var::from_vec(values, shape, &Device::Cpu)?);
    }
    Ok(parameters)
}

/// LoRA start: A scaled normal, B zero, so that the first step is the base model's.
pub fn initial_lora(shapes: &[(String, [usize; 2])], seed: u64) -> Result<Parameters> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut parameters = Parameters::default();
    for (name, shape) in shapes {
        let count = shape[0] * shape[1];
        let values = if name.ends_with(".b") {
            vec![0.0; count]
        } else {
            let deviation = (1.0 / shape[1] as f32).sqrt();
            normal(&mut rng, count).map(|x| x * deviation).collect()
        };
        parameters.0.insert(name.clone(), Var::from_vec(values, (shape[0], shape[1]), &Device::Cpu)?);
    }
    Ok(parameters)
}

/// Standard normal values by Box and Muller.
fn normal(rng: &mut ChaCha8Rng, count: usize) -> impl Iterator<Item = f32> {
    use rand::Rng;
    (0..count).map(move |_| {
        let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    })
}
