use std::sync::Arc;

use e2llm_api::v1::encode_response::Outcome;
use e2llm_api::v1::encoder_server::Encoder;
use e2llm_api::v1::{EmbedRequest, EmbedResponse, EncodeRequest, EncodeResponse, TrainRequest, TrainResponse, Vector};
use e2llm_api::{Collection, DocId, ErrorCode, Metadata, status};
use e2llm_runtime::async_trait;
use e2llm_runtime::auth::{Caller, caller};
use e2llm_store::TextWriter;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, info_span, warn};

use crate::error::EncodeError;
use crate::pipeline::{Document, Pipeline};
use crate::training::TrainingSession;

/// Most texts of one `Embed` call.
const MAX_EMBED_TEXTS: usize = 256;
/// Most training sessions at a time: each holds an adapter, its moments and the graph of a batch, some 200 MB.
const MAX_SESSIONS: usize = 16;
/// Responses that may wait for a slow reader.
const RESPONSES: usize = 16;

/// The gRPC face of a [`Pipeline`].
#[derive(Debug, Clone)]
pub struct EncoderService {
    pipeline: Pipeline,
    /// Places for training sessions.
    sessions: Arc<Semaphore>,
}

/// What a document's first piece says of it.
struct Head {
    collection: String,
    doc_id: String,
    metadata: String,
}

/// The document whose pieces are arriving.
struct Incoming {
    head: Head,
    text: TextWriter,
    /// The first piece that could not be taken; the rest of the document is read and dropped.
    failed: Option<EncodeError>,
}

impl EncoderService {
    /// Serves `pipeline`.
    pub fn new(pipeline: Pipeline) -> Self {
        Self { pipeline, sessions: Arc::new(Semaphore::new(MAX_SESSIONS)) }
    }

    /// One message of the stream; gives a response when it ends a document.
    async fn take(
        &self,
        message: EncodeRequest,
        incoming: &mut Option<Incoming>,
    ) -> Result<Option<EncodeResponse>, Status> {
        let EncodeRequest { collection, doc_id, text, last, text_hash, metadata } = message;
        let head = Head { collection, doc_id, metadata };
        if !text_hash.is_empty() {
            return Ok(Some(self.answer(&head, Ok(text_hash)).await));
        }
        if incoming.is_none() {
            let text = self.pipeline.store().text_writer().map_err(|e| EncodeError::from(e).status())?;
            *incoming = Some(Incoming { head, text, failed: None });
        }
        let Some(document) = incoming.as_mut() else { return Ok(None) };
        if document.failed.is_none() {
            document.failed = document.text.write(&text).err().map(EncodeError::from);
        }
        let Some(document) = incoming.take_if(|_| last) else { return Ok(None) };
        let hash = match document.failed {
            Some(error) => Err(error),
            None => document.text.finish().await.map(|text| text.hash).map_err(EncodeError::from),
        };
        Ok(Some(self.answer(&document.head, hash).await))
    }

    async fn answer(&self, head: &Head, hash: Result<String, EncodeError>) -> EncodeResponse {
        let Head { collection, doc_id, metadata } = head;
        let span = info_span!("encode", doc_id);
        let work = async {
            let collection = if collection.is_empty() { Collection::default() } else { Collection::new(collection)? };
            let metadata = Metadata::requested(metadata)?;
            let document = Document { collection, doc_id: DocId::new(doc_id)?, text_hash: hash?, metadata };
            self.pipeline.encode(&document).await
        };
        let (outcome, unchanged) = match work.instrument(span).await {
            Ok(encoded) => (Outcome::Record(encoded.record), encoded.unchanged),
            Err(error) => {
                warn!(doc_id, %error, "encode failed");
                (Outcome::Error(error.row()), false)
            }
        };
        EncodeResponse { doc_id: doc_id.to_owned(), outcome: Some(outcome), unchanged }
    }

    async fn serve(
        self,
        caller: Caller,
        mut requests: Streaming<EncodeRequest>,
        responses: mpsc::Sender<Result<EncodeResponse, Status>>,
    ) {
        let mut incoming = None;
        loop {
            let response = match requests.message().await {
                Ok(Some(message)) => {
                    // Of a document that comes in pieces the first one says where it belongs; one that is named by its hash is a message of
                    // its own, wherever it comes.
                    let begins = incoming.is_none() || !message.text_hash.is_empty();
                    match caller.check(&message.collection) {
                        Err(refusal) if begins => Err(refusal),
                        _ => self.take(message, &mut incoming).await,
                    }
                }
                Ok(None) => break,
                Err(status) => Err(status),
            };
            let ended = response.is_err();
            let gone = match response.transpose() {
                Some(response) => responses.send(response).await.is_err(),
                None => false,
            };
            if ended || gone {
                return;
            }
        }
        if let Some(document) = incoming {
            let message = format!("document {:?} ended without its last piece; send it again", document.head.doc_id);
            // The receiver may be gone; there is nobody else to tell.
            let _ = responses.send(Err(status(ErrorCode::InvalidArgument, message))).await;
        }
    }
}

#[async_trait]
impl Encoder for EncoderService {
    type TrainSessionStream = ReceiverStream<Result<TrainResponse, Status>>;
    type EncodeStream = ReceiverStream<Result<EncodeResponse, Status>>;

    async fn encode(&self, request: Request<Streaming<EncodeRequest>>) -> Result<Response<Self::EncodeStream>, Status> {
        let (sender, receiver) = mpsc::channel(RESPONSES);
        let caller = caller(&request);
        tokio::spawn(self.clone().serve(caller, request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn train_session(
        &self,
        request: Request<Streaming<TrainRequest>>,
    ) -> Result<Response<Self::TrainSessionStream>, Status> {
        caller(&request).check_all()?;
        let (sender, receiver) = mpsc::channel(RESPONSES);
        let place = self.sessions.clone().try_acquire_owned().map_err(|_| {
            let message = format!("{MAX_SESSIONS} training sessions are open already; try again later");
            status(ErrorCode::ResourceExhausted, message)
        })?;
        let session = TrainingSession::new(self.pipeline.encoder().clone(), self.pipeline.store().clone(), place);
        tokio::spawn(session.serve(request.into_inner(), sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        let texts = request.into_inner().texts;
        if texts.len() > MAX_EMBED_TEXTS {
            let message = format!("{} texts in one call; at most {MAX_EMBED_TEXTS} are taken, split them", texts.len());
            return Err(status(ErrorCode::InvalidArgument, message));
        }
        let vectors = self.pipeline.embed(texts).await.map_err(|e| e.status())?;
        let vectors = vectors.into_iter().map(|values| Vector { values }).collect();
        Ok(Response::new(EmbedResponse { vectors, fingerprint: self.pipeline.fingerprint().to_owned() }))
    }
}
