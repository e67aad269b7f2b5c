use std::sync::Arc;
use std::time::Instant;

use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::index_client::IndexClient;
use e2llm_api::v1::{BatchGetRequest, ContextOptions, DocKey, DocRecord, EmbedRequest, GenerateOptions, Usage};
use e2llm_model::expand::Budget;
use e2llm_model::generate::{Finish, Generated, Generator, Options, Piece};
use e2llm_model::sample::SamplerOptions;
use e2llm_model::{Defaults, ModelError, prompt};
use e2llm_runtime::failpoint::reach;
use e2llm_runtime::{RetryPolicy, retry};
use e2llm_store::Store;
use tonic::transport::Channel;
use tracing::warn;

use crate::document::{ChunkRef, LoadedDocument};
use crate::engine::{Engine, Priority};
use crate::error::DecodeError;
use crate::healing;
use crate::layout::{Layout, Purpose, lay_out};

/// Most documents of one question.
const MAX_DOCUMENTS: usize = 100;

/// Answers questions and writes summaries from stored documents. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Answering {
    engine: Engine,
    fingerprint: Arc<str>,
    defaults: Arc<Defaults>,
    store: Store,
    index: IndexClient<Channel>,
    encoder: EncoderClient<Channel>,
}

/// What is wanted from the documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// An answer.
    Ask(String),
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

/// Receives the answer's text; returns false when nobody wants it any more.
pub(crate) type Emit = Box<dyn FnMut(&str) -> bool + Send>;

impl Answering {
    /// `fingerprint` and `defaults` are the bundle's.
    pub fn new(
        engine: Engine,
        fingerprint: &str,
        defaults: Defaults,
        store: Store,
        index: IndexClient<Channel>,
        encoder: EncoderClient<Channel>,
    ) -> Self {
        Self { engine, fingerprint: fingerprint.into(), defaults: Arc::new(defaults), store, index, encoder }
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
        let budget = self.budget(&request.context, &instruction, options.max_tokens)?;
        let documents = self.documents(request, budget.expand_chunks > 0).await?;
        reach("decoder.blobs_fetched");
        let chunks: Vec<(usize, ChunkRef)> =
            documents.iter().enumerate().flat_map(|(d, doc)| doc.chunks().into_iter().map(move |c| (d, c))).collect();
        let mut usage = match &request.task {
            Task::Ask(question) => {
                let vector = self.embed(question).await?;
                let layout = lay_out(&documents, &chunks, Purpose::Question(&vector), budget, self.tokenizer())?;
                self.write(layout, instruction, options, request.priority, begun, emit).await?
            }
            Task::Summarize(_) => {
                self.summarize(&documents, &chunks, instruction, options, budget, request.priority, begun, emit).await?
            }
        };
        usage.total_us = micros(begun);
        let sources = documents.into_iter().map(|document| Source::of(document.record)).collect();
        Ok(Answered { usage, sources })
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
    ) -> Result<(Vec<(f64, usize)>, Usage), DecodeError> {
        let begun = Instant::now();
        let Task::Ask(question) = &request.task else {
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
        let budget = self.budget(&request.context, &instruction, longest)?;
        let documents = self.documents(request, budget.expand_chunks > 0).await?;
        let chunks: Vec<(usize, ChunkRef)> =
            documents.iter().enumerate().flat_map(|(d, doc)| doc.chunks().into_iter().map(move |c| (d, c))).collect();
        let vector = self.embed(question).await?;
        let Layout { pieces, mut usage } =
            lay_out(&documents, &chunks, Purpose::Question(&vector), budget, self.tokenizer())?;
        let scores = self.engine.run(request.priority, move |generator| {
            let prompt = generator.prompt(pieces, &instruction)?;
            choices.iter().map(|choice| Ok(generator.score(&prompt, choice)?)).collect()
        });
        let scores = scores.await?;
        usage.total_us = micros(begun);
        Ok((scores, usage))
    }

    /// Whether the decoder computes: the loss of a short answer is a finite number. Waits for its turn.
    pub async fn check_forward(&self) -> Result<(), String> {
        let scored = self.engine.run(Priority::Bulk, |generator| {
            let prompt = generator.prompt(vec![], "Are you ready?")?;
            Ok(generator.score(&prompt, "Yes")?.0)
        });
        let loss = scored.await.map_err(|error| error.to_string())?;
        if loss.is_finite() { Ok(()) } else { Err(format!("a forward pass gave a loss of {loss}")) }
    }

    fn tokenizer(&self) -> &e2llm_model::TextTokenizer {
        self.engine.generator().tokenizer()
    }

    fn instruction(&self, task: &Task) -> String {
        match task {
            Task::Ask(question) => prompt::question(question),
            Task::Summarize(instruction) if instruction.is_empty() => prompt::SUMMARIZE.to_owned(),
            Task::Summarize(instruction) => instruction.clone(),
        }
    }

    fn options(&self, request: &Request) -> Result<Options, DecodeError> {
        let generate = &request.generate;
        let default = match request.task {
            Task::Ask(_) => self.defaults.answer_tokens,
            Task::Summarize(_) => self.defaults.summary_tokens,
        };
        let sampler = SamplerOptions {
            temperature: f64::from(generate.temperature),
            top_p: if generate.top_p == 0.0 { 1.0 } else { f64::from(generate.top_p) },
            repetition_penalty: if generate.repetition_penalty == 0.0 {
                self.defaults.repetition_penalty
            } else {
                generate.repetition_penalty
            },
            seed: generate.seed,
        };
        // Refused here, before anything is fetched; the engine would refuse it too.
        e2llm_model::sample::Sampler::new(sampler)?;
        let max_tokens = if generate.max_tokens == 0 { default } else { generate.max_tokens as usize };
        Ok(Options { max_tokens, sampler, stop: generate.stop.clone() })
    }

    /// Positions left for documents beside the frame, the instruction and the answer.
    fn budget(&self, context: &ContextOptions, instruction: &str, answer: usize) -> Result<Budget, DecodeError> {
        let generator = self.engine.generator();
        let own = generator.positions(&generator.prompt(Vec::new(), instruction)?);
        let window = generator.window();
        let Some(room) = window.checked_sub(own + answer).filter(|room| *room > 0) else {
            let limit = window.saturating_sub(answer);
            return Err(ModelError::QuestionTooLong { tokens: own, limit }.into());
        };
        let or = |value: Option<u32>, default: usize| value.map_or(default, |v| v as usize);
        Ok(Budget {
            positions: or(context.max_positions, self.defaults.max_positions).min(room),
            expand_chunks: or(context.expand_chunks, self.defaults.expand_chunks),
            expand_positions: or(context.expand_positions, self.defaults.expand_positions),
        })
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
    async fn write(
        &self,
        layout: Layout,
        instruction: String,
        options: Options,
        priority: Priority,
        begun: Instant,
        emit: Emit,
    ) -> Result<Usage, DecodeError> {
        let Layout { pieces, mut usage } = layout;
        let way = self.engine.way(priority);
        let work = move |generator: &Generator| {
            let prompt = generator.prompt(pieces, &instruction)?;
            let positions = generator.positions(&prompt);
            let mut emit = emit;
            let mut first = None;
            let generated = generator.generate(&prompt, &options, |text| {
                if first.is_none() {
                    first = Some(micros(begun));
                    reach("decoder.first_token");
                }
                way.give(generator);
                emit(text)
            })?;
            Ok((generated, first.unwrap_or_else(|| micros(begun)), positions))
        };
        let (generated, first, positions): (Generated, u64, usize) = self.engine.run(priority, work).await?;
        usage.text_positions = positions as u32 - usage.soft_positions;
        usage.generated_tokens = generated.tokens as u32;
        usage.first_token_us = first;
        usage.windows = 1;
        usage.finish_reason = match generated.finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => return Err(DecodeError::Cancelled),
        }
        .to_owned();
        Ok(usage)
    }

    /// A document that fits one window is summarised at once; a longer one window by window, the partial summaries merged.
    #[allow(clippy::too_many_arguments)]
    async fn summarize(
        &self,
        documents: &[LoadedDocument],
        chunks: &[(usize, ChunkRef)],
        instruction: String,
        options: Options,
        budget: Budget,
        priority: Priority,
        begun: Instant,
        emit: Emit,
    ) -> Result<Usage, DecodeError> {
        let windows = windows(documents, chunks, budget);
        if let [window] = windows.as_slice() {
            let layout = lay_out(documents, window, Purpose::Summary, budget, self.tokenizer())?;
            return self.write(layout, instruction, options, priority, begun, emit).await;
        }
        let mut total = Usage::default();
        let mut partials = Vec::with_capacity(windows.len());
        for window in &windows {
            let layout = lay_out(documents, window, Purpose::Summary, budget, self.tokenizer())?;
            let (usage, text) = self.collect(layout, instruction.clone(), options.clone(), priority, begun).await?;
            add(&mut total, usage);
            partials.push(text);
        }
        while self.tokens(&partials)? > budget.positions && partials.len() > 1 {
            let mut merged = Vec::new();
            for pair in partials.chunks(MERGED_AT_ONCE) {
                let (usage, text) = self
                    .collect(self.text_layout(pair)?, instruction.clone(), options.clone(), priority, begun)
                    .await?;
                add(&mut total, usage);
                merged.push(text);
            }
            partials = merged;
        }
        let last = self.write(self.text_layout(&partials)?, instruction, options, priority, begun, emit).await?;
        total.first_token_us = last.first_token_us;
        total.finish_reason.clone_from(&last.finish_reason);
        add(&mut total, last);
        Ok(total)
    }

    /// [`Answering::write`] with the text returned instead of emitted.
    async fn collect(
        &self,
        layout: Layout,
        instruction: String,
        options: Options,
        priority: Priority,
        begun: Instant,
    ) -> Result<(Usage, String), DecodeError> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let emit: Emit = Box::new(move |text| sender.send(text.to_owned()).is_ok());
        let usage = self.write(layout, instruction, options, priority, begun, emit).await?;
        Ok((usage, receiver.try_iter().collect()))
    }

    fn text_layout(&self, texts: &[String]) -> Result<Layout, DecodeError> {
        let ids = self.tokenizer().encode_plain(&texts.join("\n\n"))?;
        Ok(Layout { pieces: vec![Piece::Tokens(ids)], usage: Usage::default() })
    }

    fn tokens(&self, texts: &[String]) -> Result<usize, DecodeError> {
        Ok(self.tokenizer().count(&texts.join("\n\n"))?)
    }
}

/// Partial summaries merged in one step when all of them do not fit a window.
const MERGED_AT_ONCE: usize = 4;

/// Consecutive chunks whose soft tokens fit the budget beside the raw text.
fn windows(documents: &[LoadedDocument], chunks: &[(usize, ChunkRef)], budget: Budget) -> Vec<Vec<(usize, ChunkRef)>> {
    let soft = |(document, chunk): &(usize, ChunkRef)| documents[*document].candidate(*chunk).soft_tokens;
    let text = if budget.expand_chunks == 0 { 0 } else { budget.expand_positions };
    let room = budget.positions.saturating_sub(text).max(budget.positions / 4);
    let mut windows = vec![Vec::new()];
    let mut used = 0;
    for chunk in chunks {
        let cost = soft(chunk);
        if used + cost > room && used > 0 {
            windows.push(Vec::new());
            used = 0;
        }
        used += cost;
        if let Some(window) = windows.last_mut() {
            window.push(*chunk);
        }
    }
    windows
}

fn add(total: &mut Usage, part: Usage) {
    total.chunks_total += part.chunks_total;
    total.chunks_expanded += part.chunks_expanded;
    total.chunks_soft += part.chunks_soft;
    total.chunks_left_out += part.chunks_left_out;
    total.soft_positions += part.soft_positions;
    total.text_positions += part.text_positions;
    total.generated_tokens += part.generated_tokens;
    total.windows += part.windows;
    total.expanded.extend(part.expanded);
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
