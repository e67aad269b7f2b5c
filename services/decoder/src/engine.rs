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

type Work<M> = Box<dyn FnOnce(&M) + Send>;

/// One thread that owns the decoder: its products already use every core, so requests take turns, interactive ones first.
///
/// An interactive request does not wait for the end of a bulk one either: bulk work gives way between two tokens.
#[derive(Clone)]
pub struct Engine {
    queue: Arc<Queue<Generator>>,
    generator: Arc<Generator>,
    _life: Arc<Life>,
}

/// Work on a model `M`.
struct Queue<M> {
    waiting: Mutex<Waiting<M>>,
    changed: Condvar,
}

struct Waiting<M> {
    interactive: VecDeque<Work<M>>,
    bulk: VecDeque<Work<M>>,
    closed: bool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl<M> Queue<M> {
    fn new() -> Self {
        let waiting = Waiting { interactive: VecDeque::new(), bulk: VecDeque::new(), closed: false };
        Self { waiting: Mutex::new(waiting), changed: Condvar::new() }
    }

    /// A worker that panicked leaves the queue itself intact: every change to it is a single push or pop.
    fn lock(&self) -> MutexGuard<'_, Waiting<M>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next work, or `None` when no engine is left to ask for any.
    fn next(&self) -> Option<Work<M>> {
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

/// A fault in one request must not end the thread that serves the others; its caller sees `Stopped`.
fn do_work<M>(work: Work<M>, model: &M) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(model)));
}

/// What running work uses to let others go first.
#[derive(Clone)]
pub(crate) struct Way<M>(Option<Arc<Queue<M>>>);

impl<M> Way<M> {
    /// Does the interactive work that waits, if this is bulk work. The caller's own state is on the stack meanwhile.
    pub(crate) fn give(&self, model: &M) {
        let Some(queue) = &self.0 else { return };
        loop {
            // The lock must not be held while the work runs.
            let next = queue.lock().interactive.pop_front();
            match next {
                Some(work) => do_work(work, model),
                None => return,
            }
        }
    }
}

/// Ends the thread, after the work that waits, when the last clone of its engine is gone.
struct Life(Arc<Queue<Generator>>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}

impl Engine {
    /// Starts the thread.
    pub fn start(generator: Generator) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new());
        let life = Arc::new(Life(queue.clone()));
        let engine = Self { queue: queue.clone(), generator: Arc::new(generator), _life: life };
        let (own, generator) = (queue, engine.generator.clone());
        std::thread::Builder::new().name("decoder".to_owned()).spawn(move || {
            while let Some(work) = own.next() {
                do_work(work, &generator);
            }
        })?;
        Ok(engine)
    }

    /// Sizes and tokenizer of the decoder; computing goes through [`Engine::run`].
    pub fn generator(&self) -> &Arc<Generator> {
        &self.generator
    }

    /// What work of this priority calls between two steps.
    pub(crate) fn way(&self, priority: Priority) -> Way<Generator> {
        Way((priority == Priority::Bulk).then(|| Arc::clone(&self.queue)))
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

#[cfg(test)]
mod tests {
    use super::*;

    type Log = Mutex<Vec<&'static str>>;

    fn note(what: &'static str) -> Work<Log> {
        Box::new(move |log| log.lock().unwrap().push(what))
    }

    #[test]
    fn interactive_work_goes_before_bulk_work_that_waits_longer() {
        let queue = Queue::<Log>::new();
        queue.lock().bulk.push_back(note("bulk"));
        queue.lock().interactive.push_back(note("interactive"));
        let log = Log::default();
        for _ in 0..2 {
            do_work(queue.next().unwrap(), &log);
        }
        assert_eq!(*log.lock().unwrap(), ["interactive", "bulk"]);
    }

    #[test]
    fn bulk_work_gives_way_between_its_steps_and_then_goes_on() {
        let queue = Arc::new(Queue::<Log>::new());
        let (way, asker) = (Way(Some(Arc::clone(&queue))), Arc::clone(&queue));
        queue.lock().bulk.push_back(Box::new(move |log| {
            log.lock().unwrap().push("first token");
            asker.lock().interactive.extend([
                note("question"),
                Box::new(|_| panic!("of one question")),
                note("another"),
            ]);
            way.give(log);
            log.lock().unwrap().push("second token");
        }));
        let log = Log::default();
        do_work(queue.next().unwrap(), &log);
        assert_eq!(*log.lock().unwrap(), ["first token", "question", "another", "second token"]);
    }

    #[test]
    fn interactive_work_gives_way_to_nobody() {
        let queue = Queue::<Log>::new();
        queue.lock().interactive.push_back(note("later"));
        let log = Log::default();
        Way(None).give(&log);
        assert!(log.lock().unwrap().is_empty());
    }
}
