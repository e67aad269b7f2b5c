//! The encoder side of training over the wire: one session per stream.
//!
//! The decoder side drives. A session owns adapter parameters and their optimizer; the graph of the last batch is kept
//! until its gradient comes. States come from and go to the object store directly, only activations travel here.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use candle_core::Tensor;
use e2llm_api::v1::train_request::Message as Asked;
use e2llm_api::v1::train_response::Message as Answer;
use e2llm_api::v1::{
    AlignedText, GradientTaken, ObjectRef, OpenSession, OptimizerStepped, Pretrain, PretrainProgress, SessionOpened,
    TensorFrame, TrainRequest, TrainResponse,
};
use e2llm_api::{ErrorCode, MAX_PIECE_BYTES, status};
use e2llm_model::DocumentEncoder;
use e2llm_runtime::failpoint::reach;
use e2llm_store::Store;
use e2llm_train::pretrain::{Passage, TokenEmbeddings};
use e2llm_train::run::Report;
use e2llm_train::{
    EncoderSession, LocalSession, Parameters, Recipe, SoftBatch, Target, TrainError, deserialize, encoder_side,
    overlay, serialize, wire,
};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tonic::{Status, Streaming};
use tracing::info;

/// How long a session may be silent: longer than any batch takes the decoder side.
const IDLE: Duration = Duration::from_secs(900);
/// Most values of one tensor: 64 Mi of f32, so that a stream cannot fill the memory.
const MAX_TENSOR_BYTES: usize = 256 << 20;

pub(crate) type Answers = mpsc::Sender<Result<TrainResponse, Status>>;

/// Serves one session until its stream ends.
pub(crate) struct TrainingSession {
    /// Its place among the sessions of this process, given back in the end.
    _place: OwnedSemaphorePermit,
    encoder: Arc<DocumentEncoder>,
    store: Store,
    recipe: Option<Recipe>,
    session: Option<LocalSession>,
    /// Soft tokens of the last batch: the shape its gradient must have.
    shape: Option<(usize, usize)>,
    frames: Vec<u8>,
}

impl TrainingSession {
    pub(crate) fn new(encoder: Arc<DocumentEncoder>, store: Store, place: OwnedSemaphorePermit) -> Self {
        Self { _place: place, encoder, store, recipe: None, session: None, shape: None, frames: Vec::new() }
    }

    pub(crate) async fn serve(mut self, mut requests: Streaming<TrainRequest>, answers: Answers) {
        loop {
            let Ok(asked) = timeout(IDLE, requests.message()).await else {
                let idle = status(ErrorCode::Unavailable, format!("nothing came for {IDLE:?}; open a new session"));
                let _ = answers.send(Err(idle)).await;
                return;
            };
            let asked = match asked {
                Ok(Some(TrainRequest { message: Some(asked) })) => asked,
                Ok(Some(_)) => {
                    let unknown =
                        status(ErrorCode::InvalidArgument, "a request of a kind that this encoder does not know");
                    let _ = answers.send(Err(unknown)).await;
                    return;
                }
                // Nobody is left to tell.
                Ok(None) | Err(_) => return,
            };
            match self.answer(asked, &answers).await {
                Ok(replies) => {
                    for reply in replies {
                        if answers.send(Ok(TrainResponse { message: Some(reply) })).await.is_err() {
                            return;
                        }
                    }
                }
                Err(failure) => {
                    let _ = answers.send(Err(failure)).await;
                    return;
                }
            }
        }
    }

    async fn answer(&mut self, asked: Asked, answers: &Answers) -> Result<Vec<Answer>, Status> {
        match asked {
            Asked::Open(open) => self.open(open).await,
            Asked::Encode(batch) => {
                let soft = self.compute(move |session| {
                    session.encode(&batch.chunks.iter().map(String::as_str).collect::<Vec<_>>())
                });
                let soft = soft.await?;
                self.soft_tokens(soft)
            }
            Asked::Gradient(frame) => self.gradient(frame).await,
            Asked::Step(step) => {
                let gradient_norm = self.compute(move |session| session.step(step.schedule)).await?;
                reach("encoder.trained_step");
                Ok(vec![Answer::Stepped(OptimizerStepped { gradient_norm })])
            }
            Asked::Save(save) => Ok(vec![Answer::Saved(self.save(&save.prefix).await?)]),
            Asked::Embeddings(frame) => self.frame(frame).map(|_| Vec::new()),
            Asked::Pretrain(work) => {
                self.pretrain(work, answers.clone()).await.map(|done| vec![Answer::Pretrained(done)])
            }
        }
    }

    async fn open(&mut self, open: OpenSession) -> Result<Vec<Answer>, Status> {
        let recipe = Recipe::parse(&open.recipe).map_err(of_training)?;
        let state = open.state.unwrap_or_default();
        let moments = self.read(state.moments).await?;
        let parameters = self.read(state.parameters).await?;
        let (encoder, kept) = (self.encoder.clone(), recipe.clone());
        let stage = open.stage as usize;
        let build = move || {
            let target = Target { d_model: open.d_model as usize, embedding_rms: open.embedding_rms };
            let mut session = encoder_side(&recipe, stage, open.ratio as usize, &encoder, target)?;
            let mut fresh = BTreeMap::new();
            session.save(&mut fresh)?;
            session.restore(&overlay(fresh, moments, parameters))?;
            if !open.is_pretraining {
                session.set_ratio(recipe.ratio_at(stage))?;
            }
            Ok(session)
        };
        let session = blocking(build).await?;
        let adapter = serde_json::to_string(session.adapter().config());
        let adapter = adapter.map_err(|error| status(ErrorCode::Internal, error.to_string()))?;
        let lora = session.lora_parameters().map_or(0, Parameters::count);
        let parameters = (session.parameters().count() + lora) as u64;
        info!(parameters, stage, "training session opened");
        (self.recipe, self.session) = (Some(kept), Some(session));
        Ok(vec![Answer::Opened(SessionOpened { adapter, parameters })])
    }

    async fn read(&self, object: Option<ObjectRef>) -> Result<Option<HashMap<String, Tensor>>, Status> {
        let Some(object) = object else { return Ok(None) };
        let bytes = self.store.get_named(&object).await.map_err(|error| status(error.code(), error.to_string()))?;
        blocking(move || deserialize(&bytes)).await.map(Some)
    }

    async fn gradient(&mut self, frame: TensorFrame) -> Result<Vec<Answer>, Status> {
        if !self.frame(frame)? {
            return Ok(Vec::new());
        }
        let bytes = std::mem::take(&mut self.frames);
        let Some(shape) = self.shape.take() else {
            return Err(status(ErrorCode::InvalidArgument, "a gradient without a batch before it"));
        };
        let gradient = wire::from_bytes(&bytes, shape).map_err(of_training)?;
        self.compute(move |session| session.backward(&gradient)).await?;
        Ok(vec![Answer::GradientTaken(GradientTaken {})])
    }

    /// Takes a piece of a tensor; says whether it was the last.
    fn frame(&mut self, frame: TensorFrame) -> Result<bool, Status> {
        if self.frames.len() + frame.values.len() > MAX_TENSOR_BYTES {
            let message = format!("a tensor of more than {MAX_TENSOR_BYTES} bytes; make the batch smaller");
            return Err(status(ErrorCode::TooLarge, message));
        }
        self.frames.extend(frame.values);
        Ok(frame.last)
    }

    /// Fits the adapter to the decoder's embeddings, which came before; tells every step but the last on the way.
    async fn pretrain(&mut self, work: Pretrain, answers: Answers) -> Result<PretrainProgress, Status> {
        let bytes = std::mem::take(&mut self.frames);
        let Some(recipe) = self.recipe.clone() else { return Err(not_open()) };
        self.compute(move |session| {
            let width = session.adapter().config().d_model;
            let table = wire::from_bytes(&bytes, (bytes.len() / size_of::<f32>() / width.max(1), width))?;
            let passages = work.texts.into_iter().map(passage).collect::<Vec<_>>();
            let tell = |progress: PretrainProgress| {
                let told = answers.blocking_send(Ok(TrainResponse { message: Some(Answer::Pretrained(progress)) }));
                told.is_ok()
            };
            pretrain_side(&recipe, session, &TokenEmbeddings::new(table)?, &passages, tell)
        })
        .await
    }

    fn soft_tokens(&mut self, soft: SoftBatch) -> Result<Vec<Answer>, Status> {
        let shape = soft.values.dims2().map_err(|error| of_training(error.into()))?;
        self.shape = Some(shape);
        let bytes = wire::to_bytes(&soft.values).map_err(of_training)?;
        let mut frames: Vec<TensorFrame> = bytes
            .chunks(MAX_PIECE_BYTES)
            .map(|piece| TensorFrame { values: piece.to_vec(), ..TensorFrame::default() })
            .collect();
        let counts = soft.counts.iter().map(|count| u32::try_from(*count).unwrap_or(u32::MAX)).collect();
        match frames.last_mut() {
            Some(frame) => (frame.last, frame.counts) = (true, counts),
            None => frames.push(TensorFrame { last: true, counts, ..TensorFrame::default() }),
        }
        Ok(frames.into_iter().map(Answer::SoftTokens).collect())
    }

    async fn save(&mut self, prefix: &str) -> Result<ObjectRef, Status> {
        let bytes = self.compute(|session| {
            let mut tensors = BTreeMap::new();
            session.save(&mut tensors)?;
            serialize(&tensors)
        });
        let bytes = bytes.await?;
        let saved = self.store.put_named(prefix, ".safetensors", bytes.into()).await;
        reach("encoder.state_saved");
        saved.map_err(|error| status(error.code(), error.to_string()))
    }

    /// Runs `work` on the session, off the threads that serve.
    async fn compute<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut LocalSession) -> e2llm_train::Result<T> + Send + 'static,
    ) -> Result<T, Status> {
        let Some(mut session) = self.session.take() else {
            return Err(not_open());
        };
        let (session, result) = blocking(move || {
            let result = work(&mut session);
            Ok((session, result))
        })
        .await?;
        self.session = Some(session);
        result.map_err(of_training)
    }
}

fn not_open() -> Status {
    status(ErrorCode::InvalidArgument, "the session is not open; its first message must open it")
}

fn passage(text: AlignedText) -> Passage {
    let AlignedText { text, tokens, ends } = text;
    Passage { text, tokens, ends: ends.into_iter().map(|end| end as usize).collect() }
}

/// Runs the recipe's pretraining on the session's adapter; stops when nobody listens any more. Gives the last step.
fn pretrain_side(
    recipe: &Recipe,
    session: &mut LocalSession,
    embeddings: &TokenEmbeddings,
    passages: &[Passage],
    tell: impl Fn(PretrainProgress) -> bool,
) -> e2llm_train::Result<PretrainProgress> {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let steps = number(recipe.pretrain.as_ref().map_or(0, |stage| stage.steps));
    let mut last = PretrainProgress { of: steps, ..PretrainProgress::default() };
    session.pretrain(recipe, embeddings, passages, &mut |news| {
        // Encoding the passages takes a while too; whoever waits should hear of it.
        if let Report::Pretrain { step, loss, accuracy, .. } = news {
            last = PretrainProgress { step: number(step), of: steps, loss, accuracy };
        }
        last.step == steps || tell(last)
    })?;
    Ok(last)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> e2llm_train::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let stopped = |_| status(ErrorCode::Internal, "training stopped unexpectedly; see the encoder's log");
    tokio::task::spawn_blocking(work).await.map_err(stopped)?.map_err(of_training)
}

fn of_training(error: TrainError) -> Status {
    let code = match &error {
        TrainError::Invalid(_) => ErrorCode::InvalidArgument,
        _ => ErrorCode::Internal,
    };
    status(code, error.to_string())
}
