use e2llm_api::ErrorCode;
use e2llm_api::status;
use e2llm_api::v1::decoder_server::Decoder;
use e2llm_api::v1::generate_event::Event;
use e2llm_api::v1::{AskRequest, GenerateEvent, ScoreRequest, ScoreResponse, SummarizeRequest};
use e2llm_runtime::async_trait;
use e2llm_runtime::auth::caller;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Response, Status};
use tracing::{Instrument, info_span, warn};

use crate::answering::{Answering, Request, Task};
use crate::engine::{Emit, Priority};

/// The gRPC face of [`Answering`].
#[derive(Debug, Clone)]
pub struct DecoderService {
    answering: Answering,
}

type Events = UnboundedReceiverStream<Result<GenerateEvent, Status>>;

impl DecoderService {
    /// Serves `answering`.
    pub fn new(answering: Answering) -> Self {
        Self { answering }
    }

    /// Streams an answer. The channel is unbounded because an answer is at most `max_tokens` short pieces, and a slow
    /// reader must not hold the decoder.
    fn stream(&self, request: Request) -> Response<Events> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let answering = self.answering.clone();
        let span = info_span!("answer", doc_ids = ?request.doc_ids);
        let work = async move {
            let texts = sender.clone();
            let emit: Emit = Box::new(move |text| {
                texts.send(Ok(GenerateEvent { event: Some(Event::Text(text.to_owned())) })).is_ok()
            });
            let answered = tokio::select! {
                answered = answering.answer(&request, emit) => answered,
                // Dropping the answer gives its place in the batch up, also while its prompt is still read.
                () = sender.closed() => return,
            };
            let last = match answered {
                Ok(answered) => Ok(GenerateEvent { event: Some(Event::Finished(answered.usage)) }),
                Err(error) => {
                    warn!(%error, "answer failed");
                    Err(error.status())
                }
            };
            // Nobody is left to tell when the receiver is gone.
            let _ = sender.send(last);
        };
        tokio::spawn(work.instrument(span));
        Response::new(UnboundedReceiverStream::new(receiver))
    }
}

fn question(text: &str) -> Result<String, Status> {
    if text.trim().is_empty() {
        return Err(status(ErrorCode::InvalidArgument, "the question is empty; ask something"));
    }
    Ok(text.to_owned())
}

fn collection(name: String) -> String {
    if name.is_empty() { "default".to_owned() } else { name }
}

#[async_trait]
impl Decoder for DecoderService {
    type AskStream = Events;
    type SummarizeStream = Events;

    async fn ask(&self, request: tonic::Request<AskRequest>) -> Result<Response<Events>, Status> {
        caller(&request).check(&request.get_ref().collection)?;
        let request = request.into_inner();
        Ok(self.stream(Request {
            collection: collection(request.collection),
            doc_ids: request.doc_ids,
            task: Task::Ask(question(&request.question)?),
            generate: request.generate.unwrap_or_default(),
            context: request.context.unwrap_or_default(),
            priority: Priority::Interactive,
        }))
    }

    async fn summarize(&self, request: tonic::Request<SummarizeRequest>) -> Result<Response<Events>, Status> {
        caller(&request).check(&request.get_ref().collection)?;
        let request = request.into_inner();
        Ok(self.stream(Request {
            collection: collection(request.collection),
            doc_ids: vec![request.doc_id],
            task: Task::Summarize(request.instruction),
            generate: request.generate.unwrap_or_default(),
            context: request.context.unwrap_or_default(),
            priority: Priority::Interactive,
        }))
    }

    async fn score(&self, request: tonic::Request<ScoreRequest>) -> Result<Response<ScoreResponse>, Status> {
        caller(&request).check(&request.get_ref().collection)?;
        let request = request.into_inner();
        if request.choices.is_empty() {
            return Err(status(ErrorCode::InvalidArgument, "there are no choices to score; give at least one"));
        }
        let asked = Request {
            collection: collection(request.collection),
            doc_ids: request.doc_ids,
            task: Task::Ask(question(&request.question)?),
            generate: Default::default(),
            context: request.context.unwrap_or_default(),
            priority: Priority::Interactive,
        };
        let (scores, usage) = self.answering.score(&asked, request.choices).await.map_err(|e| e.status())?;
        Ok(Response::new(ScoreResponse { scores, usage: Some(usage) }))
    }
}
