use std::sync::{Arc, Mutex, PoisonError};

use e2llm_model::chunk::Chunker;
use e2llm_model::template::Frame;
use e2llm_model::{Decoder, TextTokenizer};
use e2llm_train::{Recipe, Sampler, Target, TrainError};

/// What the decoder side of a pair holds.
#[derive(Debug)]
pub struct DecoderSide {
    /// The decoder, weights expanded to f32, without LoRA.
    pub decoder: Decoder,
    /// What goes with it.
    pub words: Words,
}

/// How texts become samples, and what the base weights are called.
#[derive(Debug, Clone)]
pub struct Words {
    /// The decoder's tokenizer.
    pub tokens: Arc<TextTokenizer>,
    /// Its chat template around a user's turn.
    pub frame: Frame,
    /// Its end-of-turn token.
    pub end: u32,
    /// What the adapter has to know of the decoder.
    pub target: Target,
    /// The encoder's tokenizer: chunks are cut by its word pieces.
    pub pieces: Arc<TextTokenizer>,
    /// The encoder's weights.
    pub encoder: BaseWeights,
    /// The decoder's weights.
    pub decoder: BaseWeights,
}

/// Weights that a bundle builds on.
#[derive(Debug, Clone)]
pub struct BaseWeights {
    /// Catalogue name, directory or hub id.
    pub name: String,
    /// Of their files.
    pub sha256: String,
}

/// Loads it. Called when the first share comes: a process that never trains does not pay for it. Blocks.
pub type LoadDecoderSide = Arc<dyn Fn() -> Result<DecoderSide, String> + Send + Sync>;

/// The decoder side between two shares.
pub(super) struct Held {
    load: LoadDecoderSide,
    side: Mutex<Option<DecoderSide>>,
}

impl Held {
    pub(super) fn new(load: LoadDecoderSide) -> Self {
        Self { load, side: Mutex::default() }
    }

    /// Takes it for a share; loads it when it is not there. Blocks.
    pub(super) fn take(&self) -> e2llm_train::Result<DecoderSide> {
        let held = self.side.lock().unwrap_or_else(PoisonError::into_inner).take();
        match held {
            Some(side) => Ok(side),
            None => (self.load)().map_err(TrainError::Invalid),
        }
    }

    /// Keeps it for the next share.
    pub(super) fn put_back(&self, side: DecoderSide) {
        *self.side.lock().unwrap_or_else(PoisonError::into_inner) = Some(side);
    }
}

impl Words {
    /// Draws the recipe's samples.
    pub(super) fn sampler(&self, recipe: &Recipe) -> e2llm_train::Result<Sampler> {
        let chunker = Arc::new(Chunker::new(self.pieces.clone(), recipe.chunk_tokens)?);
        Ok(Sampler::new(self.tokens.clone(), chunker, self.frame.clone(), self.end))
    }
}
