//! The encoder side of training: soft tokens out, their gradient in.

mod start;
mod states;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::{Tensor, Var};
use e2llm_model::{Adapter, AdapterConfig, Bridge, ContentRows, LoraConfig, TextEncoder, TextTokenizer};

#[cfg(test)]
pub(crate) use start::tests::tiny;
pub use start::{initial_adapter, initial_lora, order_heads};
pub(crate) use start::{settled_without_states, silence_values};
pub(crate) use states::StateCache;

use crate::error::{Result, TrainError};
use crate::optimizer::{AdamW, AdamWConfig, Parameters};
use crate::pretrain::{Passage, Pool, TokenEmbeddings, pretrain};
use crate::recipe::{Features, Recipe};
use crate::run::Report;
use crate::warm;
use crate::workers::Workers;

/// Soft tokens of several chunks, one after the other.
#[derive(Debug, Clone)]
pub struct SoftBatch {
    /// `[Σ counts, d_model]`, f32, detached from the encoder's graph.
    pub values: Tensor,
    /// Soft tokens of each chunk.
    pub counts: Vec<usize>,
}

/// The side that owns the adapter and the encoder's LoRA. Calls come in the order `encode`, `backward`, …, `step`.
pub trait EncoderSession {
    /// Soft tokens of the chunks; the graph is kept for the next `backward`.
    fn encode(&mut self, chunks: &[&str]) -> Result<SoftBatch>;
    /// Takes the gradient of the last batch's soft tokens, `[Σ counts, d_model]`, and accumulates the parameters'.
    fn backward(&mut self, gradient: &Tensor) -> Result<()>;
    /// One optimizer step at `schedule` times the peak rate. Returns the gradient's norm.
    fn step(&mut self, schedule: f64) -> Result<f64>;
    /// Optimizer settings of the adapter from now on; moments stay.
    fn configure(&mut self, optimizer: AdamWConfig);
    /// Optimizer settings of the encoder's LoRA from now on, where there is one; none: it rests.
    fn configure_encoder(&mut self, _optimizer: Option<AdamWConfig>) {}
    /// Word pieces per soft token from now on. Parameters whose shape changes are warm-started, their moments reset.
    fn set_ratio(&mut self, ratio: usize) -> Result<()> {
        Err(TrainError::Invalid(format!("this encoder session cannot change its ratio to {ratio}; train at one ratio")))
    }
    /// What soft tokens are built from from now on. Where the encoder's states come in, no soft token changes.
    fn set_features(&mut self, features: Features) -> Result<()> {
        match features {
            Features::Encoder => Ok(()),
            _ => Err(TrainError::Invalid(
                "this encoder session has no word-piece table; use features: encoder".to_owned(),
            )),
        }
    }
    /// Adds parameters and optimizer state to a checkpoint.
    fn save(&self, into: &mut BTreeMap<String, Tensor>) -> Result<()>;
    /// Restores what `save` wrote.
    fn restore(&mut self, from: &HashMap<String, Tensor>) -> Result<()>;
}

/// An encoder session in this process: trainable adapter, and an encoder that is frozen or carries a trainable LoRA.
///
/// Chunks are shared out over worker threads, each with a graph of its own.
pub struct LocalSession {
    encoder: TextEncoder,
    tokenizer: Arc<TextTokenizer>,
    adapter: Adapter,
    optimizer: AdamW,
    lora: Option<EncoderLora>,
    bridge: Option<Bridge>,
    states: StateCache,
    workers: Workers,
    /// Soft tokens of the last `encode`, by worker, still attached to the parameters.
    pending: Vec<Tensor>,
}

struct EncoderLora {
    optimizer: AdamW,
    /// Whether the states are detached, so that it stays as it is.
    rests: bool,
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
        let adapter = Adapter::new(config, parameters.tensors(), encoder.device())?;
        let workers = Workers::on(encoder.device())?;
        Ok(Self {
            encoder: (*encoder).clone(),
            tokenizer,
            adapter,
            optimizer: AdamW::new(parameters, optimizer),
            lora: None,
            bridge,
            states: StateCache::default(),
            workers,
            pending: Vec::new(),
        })
    }

    /// A session that only encodes, with a finished adapter.
    pub fn frozen(encoder: Arc<TextEncoder>, tokenizer: Arc<TextTokenizer>, adapter: Adapter) -> Result<Self> {
        let workers = Workers::on(encoder.device())?;
        Ok(Self {
            encoder: (*encoder).clone(),
            tokenizer,
            adapter,
            optimizer: AdamW::new(Parameters::default(), AdamWConfig::default()),
            lora: None,
            bridge: None,
            states: StateCache::default(),
            workers,
            pending: Vec::new(),
        })
    }

    /// Puts a LoRA on the encoder (named as in [`TextEncoder::lora_shapes`]) and trains it with `optimizer`; it rests without.
    pub fn with_lora(
        mut self,
        parameters: Parameters,
        config: LoraConfig,
        optimizer: Option<AdamWConfig>,
    ) -> Result<Self> {
        self.encoder.set_lora(&parameters.tensors(), config.rank, config.scale)?;
        let settings = optimizer.unwrap_or_default();
        self.lora = Some(EncoderLora { optimizer: AdamW::new(parameters, settings), rests: optimizer.is_none() });
        Ok(self)
    }

    /// Most bytes of frozen encoder states that are kept; 0: none.
    pub fn cache_states(&mut self, bytes: usize) {
        self.states = StateCache::new(bytes);
    }

    /// Fits the adapter to the decoder's embeddings, by the recipe's pretraining; nothing without one. `report` hears of
    /// every step and says whether to go on. It ends at the ratio of the first stage.
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
        })?;
        self.set_ratio(recipe.ratio_at(0))
    }

    /// The adapter's parameters, to be exported.
    pub fn parameters(&self) -> &Parameters {
        self.optimizer.parameters()
    }

    /// The encoder LoRA's parameters, to be exported.
    pub fn lora_parameters(&self) -> Option<&Parameters> {
        self.lora.as_ref().map(|lora| lora.optimizer.parameters())
    }

    /// The adapter under training.
    pub fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    /// Other variables for some parameters, their moments reset.
    fn replace(&mut self, changed: BTreeMap<String, Var>, config: AdapterConfig) -> Result<()> {
        for (name, var) in changed {
            self.optimizer.replace(&name, var);
        }
        self.adapter = Adapter::new(config, self.optimizer.parameters().tensors(), self.encoder.device())?;
        Ok(())
    }

    /// Soft tokens of some chunks, attached to everything that is trained, and how many each chunk has.
    fn attached(&self, chunks: &[&str]) -> Result<(Tensor, Vec<usize>)> {
        let tokens = tokenize(&self.tokenizer, chunks)?;
        let features = match &self.lora {
            None => self.states.features(&self.encoder, chunks, &tokens)?,
            Some(lora) => {
                let features = Adapter::features(&self.encoder.states(&tokens.sequences)?, &tokens.content)?;
                if lora.rests { features.detach() } else { features }
            }
        };
        let bridge = self.bridge.as_ref().map(|b| (b, tokens.ids.as_slice()));
        let soft = self.adapter.soft_tokens_bridged(&features, &tokens.content.pieces, bridge)?;
        let counts = tokens.content.pieces.iter().map(|p| self.adapter.config().soft_tokens(*p)).collect();
        Ok((soft, counts))
    }
}

impl EncoderSession for LocalSession {
    fn encode(&mut self, chunks: &[&str]) -> Result<SoftBatch> {
        let shares: Vec<&[&str]> = chunks.chunks(chunks.len().div_ceil(self.workers.count()).max(1)).collect();
        let encoded = self.workers.run(&shares, |share| self.attached(share));
        let (mut values, mut counts, mut pending) = (Vec::new(), Vec::new(), Vec::new());
        for share in encoded {
            let (soft, own) = share?;
            values.push(soft.detach());
            counts.extend(own);
            pending.push(soft);
        }
        if pending.is_empty() {
            return Err(TrainError::Invalid("there is no chunk to encode; a sample needs at least one".to_owned()));
        }
        self.pending = pending;
        Ok(SoftBatch { values: Tensor::cat(&values, 0)?, counts })
    }

    fn backward(&mut self, gradient: &Tensor) -> Result<()> {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return Err(TrainError::Invalid("backward without a batch that was encoded before".to_owned()));
        }
        let mut start = 0;
        let mut shares = Vec::with_capacity(pending.len());
        for soft in pending {
            let rows = soft.dim(0)?;
            let gradient = gradient.narrow(0, start, rows)?.to_device(soft.device())?;
            shares.push((soft, gradient));
            start += rows;
        }
        // d(Σ soft·g)/dθ is the gradient of θ when g is the gradient of the soft tokens.
        let backward = |(soft, gradient): &(Tensor, Tensor)| (soft * gradient)?.sum_all()?.backward();
        for gradients in self.workers.run(&shares, backward) {
            let gradients = gradients?;
            self.optimizer.accumulate(&gradients)?;
            if let Some(lora) = self.lora.as_mut().filter(|lora| !lora.rests) {
                lora.optimizer.accumulate(&gradients)?;
            }
        }
        Ok(())
    }

    fn step(&mut self, schedule: f64) -> Result<f64> {
        let adapter = self.optimizer.step(schedule)?;
        match self.lora.as_mut().filter(|lora| !lora.rests) {
            Some(lora) => Ok(adapter.hypot(lora.optimizer.step(schedule)?)),
            None => Ok(adapter),
        }
    }

    fn configure(&mut self, optimizer: AdamWConfig) {
        self.optimizer.configure(optimizer);
    }

    fn configure_encoder(&mut self, optimizer: Option<AdamWConfig>) {
        if let Some(lora) = &mut self.lora {
            lora.rests = optimizer.is_none();
            optimizer.into_iter().for_each(|settings| lora.optimizer.configure(settings));
        }
    }

    fn set_ratio(&mut self, ratio: usize) -> Result<()> {
        let config = self.adapter.config().clone();
        if ratio == config.ratio {
            return Ok(());
        }
        let changed = warm::resized(self.optimizer.parameters(), &config, ratio)?;
        self.replace(changed, AdapterConfig { ratio, ..config })
    }

    fn set_features(&mut self, features: Features) -> Result<()> {
        let Some(bridge) = self.bridge.as_mut().filter(|b| b.without_states && features == Features::Bridge) else {
            return Ok(());
        };
        bridge.without_states = false;
        let changed = settled_without_states(self.optimizer.parameters())?;
        self.replace(changed, self.adapter.config().clone())
    }

    fn save(&self, into: &mut BTreeMap<String, Tensor>) -> Result<()> {
        self.optimizer.save("adapter", into)?;
        self.lora.as_ref().map_or(Ok(()), |lora| lora.optimizer.save("encoder", into))
    }

    fn restore(&mut self, from: &HashMap<String, Tensor>) -> Result<()> {
        self.optimizer.restore("adapter", from)?;
        self.lora.as_mut().map_or(Ok(()), |lora| lora.optimizer.restore("encoder", from))
    }
}
