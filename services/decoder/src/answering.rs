use std::sync::Arc;
use std::time::{Duration, Instant};

use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::index_client::IndexClient;
use e2llm_api::v1::{
    BatchGetRequest, ChoiceScore, ContextOptions, DocKey, DocRecord, EmbedRequest, GenerateOptions, Reading, Usage,
};
use e2llm_model::expand::Budget;
use e2llm_model::generate::{Finish, Options};
use e2llm_model::sample::SamplerOptions;
use e2llm_model::{Defaults, ModelError, prompt};
use e2llm_runtime::Channel;
use e2llm_runtime::failpoint::reach;
use e2llm_runtime::{RetryPolicy, retry};
use e2llm_store::ReadCache;
use metrics::{counter, histogram};
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::warn;

use crate::document::LoadedDocument;
use crate::engine::{Emit, Engine, Priority, Prompt};
use crate::error::DecodeError;
use crate::healing;
use crate::layout::{Layout, Material, Purpose};
use crate::summarizing::Writing;

/// Most documents of one question.
const MAX_DOCUMENTS: usize = 100;

/// Prompts of bulk jobs that are laid out at a time: those of the batch, and some to follow them.
const BULK_PROMPTS: usize = 16;

/// Answers questions and writes summaries from stored documents. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Answering {
    engine: Engine,
    fingerprint: Arc<str>,
    defaults: Arc<Defaults>,
    store: ReadCache,
    index: IndexClient<Channel>,
    encoder: EncoderClient<Channel>,
    bulk_prompts: Arc<Semaphore>,
}

/// What is wanted from the documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// An answer.
    Ask(String),
    /// An answer, or whatever else the instruction asks for.
    Follow {
        /// What stands after the document, word for word.
        instruction: String,
        /// What the chunks are chosen by.
        question: String,
    },
    /// A summary; the instruction, empty for the default.
    Summarize(String),
}

/// A question or a summary.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Where the documents are.
    pub collection: String,
    /// At least one.
    pub doc_ids: Vec<String>,
    /// What is wanted.
    pub task: Task,
    /// How to generate.
    pub generate: GenerateOptions,
    /// How to fill the window.
    pub context: ContextOptions,
    /// Who goes first.
    pub priority: Priority,
}

/// What was used to answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answered {
    pub(crate) usage: Usage,
    /// The documents as they were read, in the order of the request.
    pub(crate) sources: Vec<Source>,
}

/// The state of a document that an answer is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) doc_id: String,
    pub(crate) fingerprint: String,
    pub(crate) text_hash: String,
}

impl Source {
    fn of(record: DocRecord) -> Self {
        let DocRecord { doc_id, fingerprint, text_hash, .. } = record;
        Self { doc_id, fingerprint, text_hash }
    }
}

fn measure(priority: Priority, usage: &Usage) {
    let class = priority.class();
    let prompt = usage.soft_positions + usage.text_positions;
    for (kind, count) in [("prompt", prompt), ("reused", usage.reused_positions), ("generated", usage.generated_tokens)]
    {
        counter!("e2llm_tokens_total", "kind" => kind, "class" => class).increment(u64::from(count));
    }
    histogram!("e2llm_first_token_seconds", "class" => class).record(usage.first_token_us as f64 / 1e6);
}

impl Answering {
    /// `fingerprint` and `defaults` are the bundle's.
    pub fn new(
        engine: Engine,
        fingerprint: &str,
        defaults: Defaults,
        store: ReadCache,
        index: IndexClient<Channel>,
        encoder: EncoderClient<Channel>,
    ) -> Self {
        let (fingerprint, defaults) = (fingerprint.into(), Arc::new(defaults));
        Self {
            engine,
            fingerprint,
            defaults,
            store,
            index,
            encoder,
            bulk_prompts: Arc::new(Semaphore::new(BULK_PROMPTS)),
        }
    }

    /// The bundle's fingerprint.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Answers, handing the text to `emit` as it is written.
    pub(crate) async fn answer(&self, request: &Request, emit: Emit) -> Result<Answered, DecodeError> {
        let begun = Instant::now();
        let instruction = self.instruction(&request.task);
        let options = self.options(request)?;
        let budget = self.budget(request, &instruction, options.max_tokens)?;
        let material = self.material(request, budget).await?;
        reach("decoder.blobs_fetched");
        let writing = Writing { instruction, options, priority: request.priority, begun };
        let mut usage = match &request.task {
            Task::Ask(question) | Task::Follow { question, .. } => {
                let _room = self.room(request.priority).await;
                let layout = self.lay_out_for(&material, question).await?;
                self.write(layout, writing, emit).await?
            }
            Task::Summarize(_) => self.summarize(&material, writing, emit).await?,
        };
        usage.total_us = micros(begun);
        measure(request.priority, &usage);
        let sources = material.documents.into_iter().map(|document| Source::of(document.record)).collect();
        Ok(Answered { usage, sources })
    }

    /// Waits until one more prompt of this priority may be laid out. Those of bulk jobs that wait for a place in the batch are few, for
    /// a prompt takes megabytes; interactive ones are refused by the engine when they are too many.
    pub(crate) async fn room(&self, priority: Priority) -> Option<SemaphorePermit<'_>> {
        match priority {
            Priority::Bulk => self.bulk_prompts.acquire().await.ok(),
            Priority::Interactive => None,
        }
    }

    /// The index that the records come from.
    pub(crate) fn index(&self) -> IndexClient<Channel> {
        self.index.clone()
    }

    /// Log-likelihood in nats and token count of each choice as the answer to a question.
    pub async fn score(
        &self,
        request: &Request,
        choices: Vec<String>,
    ) -> Result<(Vec<ChoiceScore>, Usage), DecodeError> {
        let begun = Instant::now();
        let (Task::Ask(question) | Task::Follow { question, .. }) = &request.task else {
            return Err(DecodeError::Invalid("only questions have choices".to_owned()));
        };
        let instruction = self.instruction(&request.task);
        let longest = choices
            .iter()
            .map(|c| self.tokenizer().count(c))
            .collect::<Result<Vec<_>, _>>()?
            .into_iter()
            .max()
            .unwrap_or(0);
        let budget = self.budget(request, &instruction, longest)?;
        let material = self.material(request, budget).await?;
        let Layout { pieces, mut usage } = self.lay_out_for(&material, question).await?;
        let scores = self.engine.run(request.priority, move |generator| {
            let scores = generator.score(&generator.prompt(pieces, &instruction)?, &choices)?;
            let score = |(log_likelihood, tokens)| ChoiceScore { log_likelihood, tokens: tokens as u32 };
            Ok(scores.into_iter().map(score).collect())
        });
        let scores = scores.await?;
        usage.total_us = micros(begun);
        Ok((scores, usage))
    }

    /// Whether the decoder computes: the loss of a short answer is a finite number. Waits for its turn.
    pub async fn check_forward(&self) -> Result<(), String> {
        let scored = self.engine.run(Priority::Bulk, |generator| {
            let prompt = generator.prompt(vec![], "Are you ready?")?;
            Ok(generator.score(&prompt, &["Yes".to_owned()])?.first().map_or(f64::NAN, |score| score.0))
        });
        let loss = scored.await.map_err(|error| error.to_string())?;
        if loss.is_finite() { Ok(()) } else { Err(format!("a forward pass gave a loss of {loss}")) }
    }

    pub(crate) fn tokenizer(&self) -> &e2llm_model::TextTokenizer {
        self.engine.generator().tokenizer()
    }

    fn instruction(&self, task: &Task) -> String {
        match task {
            Task::Ask(question) => prompt::question(question),
            Task::Follow { instruction, .. } => instruction.clone(),
            Task::Summarize(instruction) if instruction.is_empty() => prompt::SUMMARIZE.to_owned(),
            Task::Summarize(instruction) => instruction.clone(),
        }
    }

    fn options(&self, request: &Request) -> Result<Options, DecodeError> {
        let generate = &request.generate;
        let (default, penalty) = match request.task {
            Task::Ask(_) | Task::Follow { .. } => (self.defaults.answer_tokens, self.defaults.repetition_penalty),
            Task::Summarize(_) => (self.defaults.summary_tokens, self.defaults.summary.repetition_penalty),
        };
        let sampler = SamplerOptions {
            temperature: f64::from(generate.temperature),
            top_p: if generate.top_p == 0.0 { 1.0 } else { f64::from(generate.top_p) },
            repetition_penalty: if generate.repetition_penalty == 0.0 { penalty } else { generate.repetition_penalty },
            seed: generate.seed,
        };
        // Refused here, before anything is fetched; the engine would refuse it too.
        e2llm_model::sample::Sampler::new(sampler)?;
        let max_tokens = if generate.max_tokens == 0 { default } else { generate.max_tokens as usize };
        Ok(Options { max_tokens, sampler, stop: generate.stop.clone() })
    }

    /// Positions left for documents beside the frame, the instruction and the answer.
    fn budget(&self, request: &Request, instruction: &str, answer: usize) -> Result<Budget, DecodeError> {
        let (context, defaults) = (&request.context, &self.defaults);
        let generator = self.engine.generator();
        let own = generator.positions(&generator.prompt(Vec::new(), instruction)?);
        let window = generator.window();
        let Some(room) = window.checked_sub(own + answer).filter(|room| *room > 0) else {
            let limit = window.saturating_sub(answer);
            return Err(ModelError::QuestionTooLong { tokens: own, limit }.into());
        };
        let or = |value: Option<u32>, default: usize| value.map_or(default, |v| v as usize);
        let positions = if context.reading() == Reading::Full { room } else { defaults.max_positions };
        let (chunks, text) = match request.task {
            Task::Ask(_) | Task::Follow { .. } => (defaults.expand_chunks, defaults.expand_positions),
            Task::Summarize(_) => (defaults.summary.expand_chunks, defaults.summary.expand_positions),
        };
        Ok(Budget {
            positions: or(context.max_positions, positions).min(room),
            expand_chunks: or(context.expand_chunks, chunks),
            expand_positions: or(context.expand_positions, text),
        })
    }

    /// The documents of a request, with their texts where those are to be read.
    async fn material(&self, request: &Request, budget: Budget) -> Result<Material, DecodeError> {
        let context = &request.context;
        let reading = context.checked_reading(request.doc_ids.len()).map_err(DecodeError::Invalid)?;
        let with_text = match reading {
            Reading::Soft => budget.expand_chunks > 0,
            reading => reading != Reading::None,
        };
        let donor = match context.soft_from.as_str() {
            "" => None,
            id => {
                let donor = Request { doc_ids: vec![id.to_owned()], ..request.clone() };
                let donor = self.documents(&donor, false).await?.pop();
                if donor.as_ref().is_none_or(|donor| !donor.has_soft_tokens()) {
                    return Err(DecodeError::Invalid(format!("document {id:?} has no soft tokens to stand in")));
                }
                donor
            }
        };
        let documents = self.documents(request, with_text).await?;
        let max_windows = context.max_windows.map_or(self.defaults.summary.max_windows, |most| most as usize);
        Ok(Material { documents, donor, reading, expand_first: context.first_ranges(), budget, max_windows })
    }

    /// The layout for a question. Where nothing depends on it, the encoder is not asked for its vector.
    async fn lay_out_for(&self, material: &Material, question: &str) -> Result<Layout, DecodeError> {
        let by_question = !matches!(material.reading, Reading::Opening | Reading::Full | Reading::None);
        let vector = if by_question { self.embed(question).await? } else { Vec::new() };
        let purpose = Purpose::Question { vector: &vector, text: question };
        material.lay_out(&material.chunks(), purpose, self.tokenizer())
    }

    async fn documents(&self, request: &Request, with_text: bool) -> Result<Vec<LoadedDocument>, DecodeError> {
        if request.doc_ids.is_empty() || request.doc_ids.len() > MAX_DOCUMENTS {
            return Err(DecodeError::Invalid(format!(
                "{} document ids; give 1 to {MAX_DOCUMENTS}",
                request.doc_ids.len()
            )));
        }
        let d_model = self.engine.generator().d_model();
        let mut documents = Vec::with_capacity(request.doc_ids.len());
        for record in self.records(request).await? {
            documents.push(self.load(record, with_text, d_model).await?);
        }
        Ok(documents)
    }

    /// Fetches a document. If its soft prompt turns out to be damaged or lost, it is encoded again first, once.
    async fn load(&self, record: DocRecord, with_text: bool, d_model: usize) -> Result<LoadedDocument, DecodeError> {
        let error = match LoadedDocument::load(&self.store, record.clone(), with_text, d_model).await {
            Err(DecodeError::Store(error)) if healing::can_help(&record, &error) => error,
            other => return other,
        };
        warn!(doc_id = record.doc_id, %error, "encoding the document again");
        match healing::encode_again(self.encoder.clone(), &record).await {
            Ok(record) => LoadedDocument::load(&self.store, record, with_text, d_model).await,
            Err(failure) if failure.code().is_retriable() => Err(failure.into()),
            Err(failure) => {
                warn!(doc_id = record.doc_id, error = %failure, "the document cannot be encoded again");
                Err(error.into())
            }
        }
    }

    async fn records(&self, request: &Request) -> Result<Vec<DocRecord>, DecodeError> {
        let key = |doc_id: &String| DocKey {
            collection: request.collection.clone(),
            doc_id: doc_id.clone(),
            fingerprint: self.fingerprint.to_string(),
        };
        let keys = BatchGetRequest { keys: request.doc_ids.iter().map(key).collect() };
        let policy = RetryPolicy::default();
        let found = retry(&policy, "Index.BatchGet", "the index", || {
            let (mut index, keys) = (self.index.clone(), keys.clone());
            async move { index.batch_get(keys).await }
        });
        let results = found.await?.into_inner().results;
        let record = |(found, doc_id): (e2llm_api::v1::LookedUp, &String)| {
            found
                .record
                .ok_or_else(|| DecodeError::Unknown { doc_id: doc_id.clone(), collection: request.collection.clone() })
        };
        results.into_iter().zip(&request.doc_ids).map(record).collect()
    }

    async fn embed(&self, text: &str) -> Result<Vec<f32>, DecodeError> {
        let request = EmbedRequest { texts: vec![text.to_owned()] };
        let policy = RetryPolicy::default();
        let embedded = retry(&policy, "Encoder.Embed", "the encoder", || {
            let (mut encoder, request) = (self.encoder.clone(), request.clone());
            async move { encoder.embed(request).await }
        });
        let vector = embedded.await?.into_inner().vectors.pop();
        Ok(vector.map(|v| v.values).unwrap_or_default())
    }

    /// Reads a layout and writes the answer to it.
    pub(crate) async fn write(&self, layout: Layout, writing: Writing, emit: Emit) -> Result<Usage, DecodeError> {
        let Layout { pieces, mut usage } = layout;
        let Writing { instruction, options, priority, begun } = writing;
        let written = self.engine.write(priority, Prompt { pieces, instruction, options }, emit).await?;
        usage.text_positions = written.positions as u32 - usage.soft_positions;
        usage.reused_positions = written.reused as u32;
        usage.generated_tokens = written.generated.tokens as u32;
        usage.first_token_us = written.first.map_or_else(|| micros(begun), |first| duration_micros(first - begun));
        usage.windows = 1;
        usage.finish_reason = match written.generated.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => return Err(DecodeError::Cancelled),
        }
        .to_owned();
        Ok(usage)
    }
}

fn micros(since: Instant) -> u64 {
    duration_micros(since.elapsed())
}

fn duration_micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
