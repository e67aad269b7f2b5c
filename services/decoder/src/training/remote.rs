use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use candle_core::Tensor;
use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::train_request::Message as Ask;
use e2llm_api::v1::train_response::Message as Answer;
use e2llm_api::v1::{
    AlignedText, EncodeChunks, ObjectRef, OpenSession, OptimizerStep, Pretrain, PretrainProgress, SaveSession,
    TensorFrame, TrainRequest, TrainResponse,
};
use e2llm_api::{ErrorCode, MAX_PIECE_BYTES};
use e2llm_runtime::Channel;
use e2llm_runtime::{cause_of, code_of};
use e2llm_train::pretrain::{Passage, TokenEmbeddings};
use e2llm_train::{AdamWConfig, EncoderSession, Result, SoftBatch, TrainError, wire};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Requests that may wait for the connection.
const QUEUE: usize = 8;
/// How long an encoder may take for one answer: a batch takes it seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The encoder side of a pair, in another process. Its calls block: they come from the thread that trains.
pub(super) struct RemoteSession {
    runtime: Handle,
    requests: mpsc::Sender<TrainRequest>,
    answers: Streaming<TrainResponse>,
    d_model: usize,
    /// Shape of the adapter, JSON as in bundle.json.
    pub(super) adapter: String,
}

impl RemoteSession {
    /// Opens a session. Blocks.
    pub(super) fn open(runtime: Handle, mut encoder: EncoderClient<Channel>, open: OpenSession) -> Result<Self> {
        let (requests, receiver) = mpsc::channel(QUEUE);
        let d_model = open.d_model as usize;
        // The encoder answers the call with its first answer, which waits for the first request.
        let first = TrainRequest { message: Some(Ask::Open(open)) };
        let answers = runtime.block_on(async {
            let closed = |_| Status::unavailable("the session was closed");
            requests.send(first).await.map_err(closed)?;
            encoder.train_session(ReceiverStream::new(receiver)).await
        });
        let answers = answers.map_err(|status| of_call(&status))?.into_inner();
        let mut session = Self { runtime, requests, answers, d_model, adapter: String::new() };
        match session.next()? {
            Answer::Opened(opened) => session.adapter = opened.adapter,
            other => return Err(unexpected(&other)),
        }
        Ok(session)
    }

    /// Has the encoder write its state; says where.
    pub(super) fn save_to(&mut self, prefix: &str) -> Result<ObjectRef> {
        match self.call(Ask::Save(SaveSession { prefix: prefix.to_owned() }))? {
            Answer::Saved(object) => Ok(object),
            other => Err(unexpected(&other)),
        }
    }

    /// Has the encoder fit its adapter to the decoder's embeddings `[vocabulary, d_model]`. `tell` hears of every step and
    /// says whether to go on.
    pub(super) fn pretrain(
        &mut self,
        passages: Vec<Passage>,
        embeddings: &TokenEmbeddings,
        mut tell: impl FnMut(PretrainProgress) -> bool,
    ) -> Result<PretrainProgress> {
        self.send_tensor(embeddings.table(), Ask::Embeddings)?;
        let texts = passages.into_iter().map(|Passage { text, tokens, ends }| AlignedText {
            text,
            tokens,
            ends: ends.into_iter().map(|end| u32::try_from(end).unwrap_or(u32::MAX)).collect(),
        });
        self.send(Ask::Pretrain(Pretrain { texts: texts.collect() }))?;
        loop {
            match self.next()? {
                Answer::Pretrained(done) if done.step == done.of => return Ok(done),
                Answer::Pretrained(progress) if tell(progress) => {}
                Answer::Pretrained(_) => return Err(TrainError::Stopped),
                other => return Err(unexpected(&other)),
            }
        }
    }

    fn send_tensor(&mut self, tensor: &Tensor, message: fn(TensorFrame) -> Ask) -> Result<()> {
        let bytes = wire::to_bytes(tensor)?;
        let count = bytes.len().div_ceil(MAX_PIECE_BYTES);
        for (number, piece) in bytes.chunks(MAX_PIECE_BYTES).enumerate() {
            let last = number + 1 == count;
            self.send(message(TensorFrame { values: piece.to_vec(), last, ..TensorFrame::default() }))?;
        }
        Ok(())
    }

    fn call(&mut self, message: Ask) -> Result<Answer> {
        self.send(message)?;
        self.next()
    }

    fn send(&mut self, message: Ask) -> Result<()> {
        let request = TrainRequest { message: Some(message) };
        let sent = self.runtime.block_on(self.requests.send(request));
        sent.map_err(|_| lost("the connection was closed"))
    }

    fn next(&mut self) -> Result<Answer> {
        let answer = self.runtime.block_on(timeout(PATIENCE, self.answers.message()));
        match answer {
            Ok(Ok(Some(TrainResponse { message: Some(answer) }))) => Ok(answer),
            Ok(Ok(_)) => Err(lost("the encoder ended the session")),
            Ok(Err(status)) => Err(of_call(&status)),
            Err(_) => Err(lost(&format!("no answer within {PATIENCE:?}"))),
        }
    }
}

impl EncoderSession for RemoteSession {
    fn encode(&mut self, chunks: &[&str]) -> Result<SoftBatch> {
        self.send(Ask::Encode(EncodeChunks { chunks: chunks.iter().map(|chunk| (*chunk).to_owned()).collect() }))?;
        let mut bytes = Vec::new();
        loop {
            let frame = match self.next()? {
                Answer::SoftTokens(frame) => frame,
                other => return Err(unexpected(&other)),
            };
            bytes.extend(frame.values);
            if frame.last {
                let counts: Vec<usize> = frame.counts.iter().map(|count| *count as usize).collect();
                if counts.len() != chunks.len() {
                    return Err(broken(&format!("soft tokens of {} chunks for {}", counts.len(), chunks.len())));
                }
                let values = wire::from_bytes(&bytes, (counts.iter().sum(), self.d_model));
                return Ok(SoftBatch { values: values.map_err(|error| broken(&error.to_string()))?, counts });
            }
        }
    }

    fn backward(&mut self, gradient: &Tensor) -> Result<()> {
        self.send_tensor(gradient, Ask::Gradient)?;
        match self.next()? {
            Answer::GradientTaken(_) => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn step(&mut self, schedule: f64) -> Result<f64> {
        match self.call(Ask::Step(OptimizerStep { schedule }))? {
            Answer::Stepped(stepped) => Ok(stepped.gradient_norm),
            other => Err(unexpected(&other)),
        }
    }

    /// The session was opened for one stage of the recipe, which says how its optimizer is set.
    fn configure(&mut self, _: AdamWConfig) {}

    /// The encoder side has the ratio of the stage it was opened for.
    fn set_ratio(&mut self, _: usize) -> Result<()> {
        Ok(())
    }

    fn save(&self, _: &mut BTreeMap<String, Tensor>) -> Result<()> {
        Err(TrainError::Invalid("the encoder side keeps its own state; save it with `save_to`".to_owned()))
    }

    fn restore(&mut self, _: &HashMap<String, Tensor>) -> Result<()> {
        Err(TrainError::Invalid("the encoder side restores its own state when its session opens".to_owned()))
    }
}

/// The encoder says what cannot be.
fn broken(message: &str) -> TrainError {
    TrainError::Session { message: format!("the encoder's answer cannot be used: {message}"), is_retriable: false }
}

/// The process on the other side has gone; another one may take the share.
fn lost(message: &str) -> TrainError {
    TrainError::Session { message: message.to_owned(), is_retriable: true }
}

fn of_call(status: &Status) -> TrainError {
    // What a dying encoder says on its way is no fault of the share.
    let is_retriable = code_of(status).is_retriable() || code_of(status) == ErrorCode::Cancelled;
    TrainError::Session { message: cause_of(status).to_string(), is_retriable }
}

fn unexpected(answer: &Answer) -> TrainError {
    let kind = match answer {
        Answer::Opened(_) => "opened",
        Answer::SoftTokens(_) => "soft tokens",
        Answer::GradientTaken(_) => "gradient taken",
        Answer::Stepped(_) => "stepped",
        Answer::Saved(_) => "saved",
        Answer::Pretrained(_) => "pretrained",
    };
    TrainError::Session { message: format!("the answer {kind:?} came out of turn"), is_retriable: false }
}
