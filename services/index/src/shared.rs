//! What the service's clones and the committer share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::IndexError;
use crate::live::Live;

/// Bytes of writes that may wait for the committer.
const WAITING_BYTES: usize = 64 << 20;

/// Unit of the queue's budget, so that it fits a semaphore's counter.
const UNIT: usize = 1 << 10;

/// The present view, and the budget of waiting writes.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    suspect: AtomicBool,
    reopen_asked: AtomicBool,
    queue: Arc<Semaphore>,
}

#[derive(Debug)]
enum State {
    Open(Arc<Live>),
    Down(IndexError),
}

impl Shared {
    pub(crate) fn new(live: Arc<Live>) -> Self {
        Self {
            state: RwLock::new(State::Open(live)),
            suspect: AtomicBool::new(false),
            reopen_asked: AtomicBool::new(false),
            queue: Arc::new(Semaphore::new(WAITING_BYTES / UNIT)),
        }
    }

    /// The view, or why there is none.
    pub(crate) fn live(&self) -> Result<Arc<Live>, IndexError> {
        match &*self.state.read() {
            State::Open(live) => Ok(live.clone()),
            State::Down(why) => Err(why.clone()),
        }
    }

    pub(crate) fn put(&self, live: Arc<Live>) {
        *self.state.write() = State::Open(live);
    }

    /// Notes why there is no view, for those who ask meanwhile.
    pub(crate) fn fail(&self, why: IndexError) {
        *self.state.write() = State::Down(why);
    }

    /// Takes the view away from requests that begin now.
    pub(crate) fn take(&self, why: &'static str) -> Option<Arc<Live>> {
        match std::mem::replace(&mut *self.state.write(), State::Down(IndexError::Down(why))) {
            State::Open(live) => Some(live),
            State::Down(_) => None,
        }
    }

    /// Notes that the view failed.
    pub(crate) fn suspect(&self) {
        self.suspect.store(true, Ordering::Release);
    }

    /// Whether a reopening should be asked for: `true` for the first to need it.
    pub(crate) fn ask_reopen(&self) -> bool {
        !self.reopen_asked.swap(true, Ordering::AcqRel)
    }

    /// The reopening that was asked for begins, or could not be asked for.
    pub(crate) fn reopen_begins(&self) {
        self.reopen_asked.store(false, Ordering::Release);
    }

    /// Whether the view failed since this was last asked.
    pub(crate) fn take_suspicion(&self) -> bool {
        self.suspect.swap(false, Ordering::AcqRel)
    }

    /// A place in the queue for a write of `bytes`, given back on drop.
    pub(crate) fn admit(&self, bytes: usize) -> Result<OwnedSemaphorePermit, IndexError> {
        let units = bytes.div_ceil(UNIT).clamp(1, WAITING_BYTES / UNIT) as u32;
        self.queue
            .clone()
            .try_acquire_many_owned(units)
            .map_err(|_| IndexError::Overloaded { waiting: WAITING_BYTES - self.queue.available_permits() * UNIT })
    }
}
