use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use e2llm_model::generate::Generator;
use tokio::sync::oneshot;

use crate::error::DecodeError;

/// Interactive requests that may wait; one more is refused.
const MAX_WAITING: usize = 64;

/// Who goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// Someone is waiting.
    Interactive,
    /// A bulk job.
    Bulk,
}

type Work = Box<dyn FnOnce(&Generator) + Send>;

/// One thread that owns the decoder: its products already use every core, so requests take turns, interactive ones first.
#[derive(Clone)]
pub struct Engine {
    queue: Arc<Queue>,
    generator: Arc<Generator>,
    _life: Arc<Life>,
}

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

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Queue {
    /// A worker that panicked leaves the queue itself intact: every change to it is a single push or pop.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next work, or `None` when no engine is left to ask for any.
    fn next(&self) -> Option<Work> {
        let mut waiting = self.lock();
        loop {
            if let Some(work) = waiting.interactive.pop_front().or_else(|| waiting.bulk.pop_front()) {
                return Some(work);
            }
            if waiting.closed {
                return None;
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

impl Engine {
    /// Starts the thread.
    pub fn start(generator: Generator) -> std::io::Result<Self> {
        let queue = Arc::new(Queue { waiting: Mutex::new(Waiting::default()), changed: Condvar::new() });
        let life = Arc::new(Life(queue.clone()));
        let engine = Self { queue: queue.clone(), generator: Arc::new(generator), _life: life };
        let (own, generator) = (queue, engine.generator.clone());
        std::thread::Builder::new().name("decoder".to_owned()).spawn(move || {
            while let Some(work) = own.next() {
                // A fault in one request must not end the thread that serves the others; its caller sees `Stopped`.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&generator)));
            }
        })?;
        Ok(engine)
    }

    /// Sizes and tokenizer of the decoder; computing goes through [`Engine::run`].
    pub fn generator(&self) -> &Arc<Generator> {
        &self.generator
    }

    /// Runs `work` when its turn comes.
    pub async fn run<T: Send + 'static>(
        &self,
        priority: Priority,
        work: impl FnOnce(&Generator) -> Result<T, DecodeError> + Send + 'static,
    ) -> Result<T, DecodeError> {
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.queue.lock();
            let count = waiting.interactive.len();
            let queue = match priority {
                Priority::Interactive if count >= MAX_WAITING => {
                    return Err(DecodeError::Overloaded { waiting: count });
                }
                Priority::Interactive => &mut waiting.interactive,
                Priority::Bulk => &mut waiting.bulk,
            };
            queue.push_back(Box::new(move |generator| {
                if !sender.is_closed() {
                    // The receiver may be dropped meanwhile: nobody waits for the result then.
                    let _ = sender.send(work(generator));
                }
            }));
        }
        self.queue.changed.notify_one();
        receiver.await.map_err(|_| DecodeError::Stopped)?
    }
}
