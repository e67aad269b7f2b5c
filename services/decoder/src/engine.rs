mod running;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use e2llm_model::cpu::Workspace;
use e2llm_model::generate::{Generated, Generator, Options, PROMPT_ROWS, Piece};
use metrics::{gauge, histogram};
use running::Running;
use tokio::sync::oneshot;

use crate::error::DecodeError;

/// Interactive requests that may wait; one more is refused.
const MAX_WAITING: usize = 64;
/// Answers written in one batch.
const MAX_RUNNING: usize = 16;
/// Of these, answers of bulk jobs: four places are for questions alone.
const MAX_BULK: usize = 12;
/// Positions of running answers after which no bulk answer begins: some 750 MB of keys and values of the default decoder.
const MAX_POSITIONS: usize = 32_768;
/// Rows of bulk prompts read per step while a question's answer is being written.
const POLITE_ROWS: usize = 16;

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Someone is waiting.
    Interactive,
    /// A bulk job.
    Bulk,
}

/// Receives the answer's text; returns false when nobody wants it any more.
pub(crate) type Emit = Box<dyn FnMut(&str) -> bool + Send>;

/// What an answer is written to.
#[derive(Debug)]
pub(crate) struct Prompt {
    pub(crate) pieces: Vec<Piece>,
    pub(crate) instruction: String,
    pub(crate) options: Options,
}

/// An answer that was written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    pub(crate) generated: Generated,
    /// When its first text came, if any.
    pub(crate) first: Option<Instant>,
    /// Decoder positions of its prompt.
    pub(crate) positions: usize,
    /// Of these, positions that were read for an earlier prompt.
    pub(crate) reused: usize,
}

/// An answer to begin.
struct Order {
    priority: Priority,
    queued: Instant,
    prompt: Prompt,
    emit: Emit,
    reply: oneshot::Sender<Result<Written, DecodeError>>,
}

enum Work {
    /// Done at once, between two steps.
    Call(Box<dyn FnOnce(&Generator) + Send>),
    /// Joins the batch.
    Write(Box<Order>),
}

impl Work {
    /// Whether someone still waits for it; of a call that is known when its turn comes.
    fn is_wanted(&self) -> bool {
        match self {
            Work::Call(_) => true,
            Work::Write(order) => !order.reply.is_closed(),
        }
    }
}

/// One thread that owns the decoder and writes all answers in one batch, a step at a time (continuous batching): a new answer joins at
/// the next step, a finished or abandoned one leaves its place at once, and long prompts are read in parts beside the writing.
///
/// Questions go before bulk work: they are read first and have places that bulk answers never take; those go on in the same batch.
#[derive(Clone)]
pub struct Engine {
    queue: Arc<Queue>,
    generator: Arc<Generator>,
    _life: Arc<Life>,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    interactive: VecDeque<Work>,
    bulk: VecDeque<Work>,
    closed: bool,
}

/// What runs already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Load {
    interactive: usize,
    bulk: usize,
    positions: usize,
}

impl Priority {
    /// As metrics name it.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Priority::Interactive => "interactive",
            Priority::Bulk => "bulk",
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Waiting {
    /// What begins now beside `load`: one thing, so that its size counts for the next.
    fn next(&mut self, load: Load) -> Option<Work> {
        let free = load.interactive + load.bulk < MAX_RUNNING;
        if let Some(work) = take(&mut self.interactive, free, true) {
            return Some(work);
        }
        let fits = load.bulk < MAX_BULK && (load.bulk == 0 || load.positions < MAX_POSITIONS);
        // The batch stands still during a call: none of a bulk job's while someone waits for words.
        take(&mut self.bulk, free && fits, load.interactive == 0)
    }
}

/// The first in line; calls need no place in the batch.
fn take(line: &mut VecDeque<Work>, has_place: bool, may_call: bool) -> Option<Work> {
    match line.front() {
        Some(Work::Call(_)) if may_call => line.pop_front(),
        Some(Work::Write(_)) if has_place => line.pop_front(),
        _ => None,
    }
}

impl Queue {
    /// A worker that panicked leaves the queue itself intact: every change to it is a single push or pop.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What begins now beside `load`. With nothing running it waits for work, and `Err` says that none will come.
    fn next(&self, load: Load) -> Result<Option<Work>, ()> {
        let mut waiting = self.lock();
        loop {
            let next = waiting.next(load);
            if next.is_some() || load != Load::default() {
                return Ok(next);
            }
            if waiting.closed {
                return Err(());
            }
            waiting = self.changed.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends the thread, after the work that waits, when the last clone of its engine is gone.
struct Life(Arc<Queue>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

/// The thread's loop.
fn serve(queue: &Queue, generator: &Generator) {
    let (mut running, mut work) = (Vec::<Running>::new(), Workspace::default());
    loop {
        loop {
            match queue.next(load(&running)) {
                Ok(Some(Work::Call(call))) => {
                    guarded(|| call(generator)).unwrap_or_default();
                    // One between two steps of the batch.
                    break;
                }
                Ok(Some(Work::Write(order))) => running.extend(guarded(|| Running::begin(*order, generator)).flatten()),
                Ok(None) => break,
                Err(()) => return,
            }
        }
        measure(&running);
        if running.is_empty() {
            continue;
        }
        running.sort_by_key(|running| running.priority() == Priority::Bulk);
        let prompt_rows = prompt_rows(&running);
        // After a panic nobody knows what the batch's sequences hold: their callers see `Stopped`.
        running = guarded(|| running::step(running, generator, prompt_rows, &mut work)).unwrap_or_default();
    }
}

/// How full the batch is.
fn measure(running: &[Running]) {
    gauge!("e2llm_kv_positions").set(load(running).positions as f64);
    gauge!("e2llm_kv_positions_limit").set(MAX_POSITIONS as f64);
    if !running.is_empty() {
        histogram!("e2llm_batch_sequences").record(running.len() as f64);
    }
}

/// Rows of prompts that are read in the next step: few beside a question's answer, unless another question waits for its own.
fn prompt_rows(running: &[Running]) -> usize {
    let questions = running.iter().filter(|r| r.priority() == Priority::Interactive);
    let writing: Vec<bool> = questions.map(Running::is_writing).collect();
    if writing.contains(&true) && !writing.contains(&false) { POLITE_ROWS } else { PROMPT_ROWS }
}

fn load(running: &[Running]) -> Load {
    let bulk = running.iter().filter(|r| r.priority() == Priority::Bulk).count();
    let positions = running.iter().map(Running::capacity).sum();
    Load { interactive: running.len() - bulk, bulk, positions }
}

/// A fault in one request must not end the thread that serves the others.
fn guarded<T>(work: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).ok()
}

impl Engine {
    /// Starts the thread.
    pub fn start(generator: Generator) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let life = Arc::new(Life(queue.clone()));
        let engine = Self { queue: queue.clone(), generator: Arc::new(generator), _life: life };
        let generator = engine.generator.clone();
        std::thread::Builder::new().name("decoder".to_owned()).spawn(move || serve(&queue, &generator))?;
        Ok(engine)
    }

    /// Sizes and tokenizer of the decoder; computing goes through [`Engine::run`].
    pub fn generator(&self) -> &Arc<Generator> {
        &self.generator
    }

    /// Writes an answer in the batch; dropping the future gives its place up.
    pub(crate) async fn write(&self, priority: Priority, prompt: Prompt, emit: Emit) -> Result<Written, DecodeError> {
        let (reply, receiver) = oneshot::channel();
        self.push(priority, Work::Write(Box::new(Order { priority, queued: Instant::now(), prompt, emit, reply })))?;
        receiver.await.map_err(|_| DecodeError::Stopped)?
    }

    /// Runs `work` when its turn comes; the batch waits meanwhile.
    pub async fn run<T: Send + 'static>(
        &self,
        priority: Priority,
        work: impl FnOnce(&Generator) -> Result<T, DecodeError> + Send + 'static,
    ) -> Result<T, DecodeError> {
        let (sender, receiver) = oneshot::channel();
        let call = Box::new(move |generator: &Generator| {
            if !sender.is_closed() {
                // The receiver may be dropped meanwhile: nobody waits for the result then.
                let _ = sender.send(work(generator));
            }
        });
        self.push(priority, Work::Call(call))?;
        receiver.await.map_err(|_| DecodeError::Stopped)?
    }

    fn push(&self, priority: Priority, work: Work) -> Result<(), DecodeError> {
        {
            let mut waiting = self.queue.lock();
            waiting.interactive.retain(Work::is_wanted);
            let count = waiting.interactive.len();
            match priority {
                Priority::Interactive if count >= MAX_WAITING => {
                    return Err(DecodeError::Overloaded { waiting: count });
                }
                Priority::Interactive => waiting.interactive.push_back(work),
                Priority::Bulk => waiting.bulk.push_back(work),
            }
        }
        self.queue.changed.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The receiver's end is gone, which nothing here looks at.
    fn order(priority: Priority, name: &str) -> Work {
        let options = Options { max_tokens: 1, sampler: Default::default(), stop: Vec::new() };
        let prompt = Prompt { pieces: Vec::new(), instruction: name.to_owned(), options };
        Work::Write(Box::new(Order {
            priority,
            queued: Instant::now(),
            prompt,
            emit: Box::new(|_| true),
            reply: oneshot::channel().0,
        }))
    }

    fn name(work: Option<Work>) -> Option<String> {
        match work? {
            Work::Write(order) => Some(order.prompt.instruction),
            Work::Call(_) => Some("call".to_owned()),
        }
    }

    fn waiting() -> Waiting {
        let mut waiting = Waiting::default();
        waiting.bulk.extend([order(Priority::Bulk, "row"), Work::Call(Box::new(|_| ()))]);
        waiting.interactive.push_back(order(Priority::Interactive, "question"));
        waiting
    }

    #[test]
    fn questions_begin_before_bulk_rows_that_wait_longer() {
        let (mut waiting, idle) = (waiting(), Load::default());
        let begun: Vec<_> = std::iter::from_fn(|| name(waiting.next(idle))).collect();
        assert_eq!(begun, ["question", "row", "call"]);
    }

    #[test]
    fn bulk_rows_leave_places_for_questions() {
        let mut waiting = waiting();
        let load = Load { interactive: 0, bulk: MAX_BULK, positions: 0 };
        assert_eq!(name(waiting.next(load)).as_deref(), Some("question"));
        assert_eq!(name(waiting.next(load)), None);
        let long = Load { interactive: 0, bulk: 1, positions: MAX_POSITIONS };
        assert_eq!(name(waiting.next(long)), None, "memory is bounded");
        assert_eq!(name(waiting.next(Load { bulk: 0, ..long })).as_deref(), Some("row"), "but one row always goes on");
    }

    #[test]
    fn a_bulk_call_waits_until_no_question_is_answered() {
        let mut waiting = Waiting::default();
        waiting.bulk.push_back(Work::Call(Box::new(|_| ())));
        assert_eq!(name(waiting.next(Load { interactive: 1, bulk: 0, positions: 9 })), None);
        assert_eq!(name(waiting.next(Load { interactive: 0, bulk: 1, positions: 9 })).as_deref(), Some("call"));
    }

    #[test]
    fn a_full_batch_takes_calls_only() {
        let mut waiting = waiting();
        let load = Load { interactive: MAX_RUNNING, bulk: 0, positions: 0 };
        assert_eq!(name(waiting.next(load)), None);
        waiting.interactive.push_front(Work::Call(Box::new(|_| ())));
        assert_eq!(name(waiting.next(load)).as_deref(), Some("call"));
    }
}
