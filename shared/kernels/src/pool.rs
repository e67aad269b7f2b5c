//! A fork-join pool for regions of a few microseconds.
//!
//! A decoded token takes five parallel regions per block, each some ten microseconds long; handing one to sleeping threads costs as
//! much. So idle workers spin for a moment before they sleep, and tasks are claimed one by one: the caller never waits for a worker
//! that has not begun, and two pools on the same cores slow each other down but do not stand still.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};

/// Rounds an idle worker spins before it sleeps: a fraction of a millisecond.
const SPINS: usize = if cfg!(miri) { 10 } else { 20_000 };
/// Rounds the caller spins for claimed tasks before it lets other threads run.
const PATIENCE: usize = if cfg!(miri) { 10 } else { 2_000 };

/// Threads that work on one region at a time.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    sleepers: Vec<Thread>,
    /// Held by the region that runs; another caller works alone meanwhile.
    busy: Mutex<()>,
}

/// A borrowed closure whose lifetime was erased; valid while tasks of its region are unfinished.
struct Job<'a>(&'a (dyn Fn(usize) + Sync));

#[derive(Debug, Default)]
struct Shared {
    /// Number of the region in the high half, next unclaimed task in the low half.
    state: AtomicU64,
    tasks: AtomicUsize,
    job: AtomicPtr<Job<'static>>,
    finished: AtomicUsize,
    asleep: AtomicUsize,
    closed: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Shared {
    /// Claims and does tasks until none is left; returns whether there was one.
    fn work(&self) -> bool {
        let mut worked = false;
        loop {
            let state = self.state.load(Ordering::Acquire);
            let task = (state & u64::from(u32::MAX)) as usize;
            // Acquire: whoever sees the count of a later region also sees that `state` has moved on, and fails to claim.
            if task >= self.tasks.load(Ordering::Acquire) {
                return worked;
            }
            let job = self.job.load(Ordering::Relaxed);
            if self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: the claim succeeded, so `state` did not change since it was read: `tasks` and `job` are those of its region
            // (they change only between regions), and that region cannot end before this task is counted as finished.
            let job = unsafe { &*job };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (job.0)(task))) {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                // Dropping a payload may panic in its turn, in the middle of the region.
                if first.is_some() { std::mem::forget(panic) } else { *first = Some(panic) }
            }
            self.finished.fetch_add(1, Ordering::Release);
            worked = true;
        }
    }

    fn serve(&self) {
        while !self.closed.load(Ordering::Acquire) {
            let mut idle = 0;
            while idle < SPINS {
                idle = if self.work() { 0 } else { idle + 1 };
                std::hint::spin_loop();
            }
            // Whoever starts a region after this line sees a sleeper; one that started before it is looked for once more.
            self.asleep.fetch_add(1, Ordering::SeqCst);
            if !self.has_task() && !self.closed.load(Ordering::SeqCst) {
                std::thread::park();
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn has_task(&self) -> bool {
        let state = self.state.load(Ordering::SeqCst);
        ((state & u64::from(u32::MAX)) as usize) < self.tasks.load(Ordering::SeqCst)
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller's own included.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |_| {
            let shared = Arc::clone(&shared);
            // Without a thread there is only less help: tasks are claimed, not assigned.
            std::thread::Builder::new().name("kernels".to_owned()).spawn(move || shared.serve()).ok()
        };
        let workers: Vec<_> = (1..threads.max(1)).filter_map(spawn).collect();
        let sleepers = workers.iter().map(|worker| worker.thread().clone()).collect();
        Self { shared, workers, sleepers, busy: Mutex::new(()) }
    }

    /// The pool of this process: as many threads as rayon uses (`RAYON_NUM_THREADS`, else one per core).
    pub fn global() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| Self::new(rayon::current_num_threads()))
    }

    /// No threads but the caller's.
    pub fn single() -> &'static Self {
        static POOL: OnceLock<Pool> = OnceLock::new();
        POOL.get_or_init(|| Self::new(1))
    }

    /// Threads that may work on a region.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` with every number below `tasks`, on any thread, in any order; returns when all calls have returned.
    ///
    /// # Panics
    /// With the panic of a task, after all others ended; for more than 2^32 − 2 tasks.
    pub fn run(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        assert!(tasks < u32::MAX as usize, "{tasks} tasks");
        let alone = || (0..tasks).for_each(work);
        if tasks <= 1 || self.workers.is_empty() {
            return alone();
        }
        // A region inside a region, or of another thread: done by its caller alone.
        let Ok(_busy) = self.busy.try_lock() else { return alone() };
        self.region(tasks, work);
        let panic = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = panic {
            drop(_busy);
            resume_unwind(panic);
        }
    }

    fn region(&self, tasks: usize, work: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        let job = Job(work);
        // Only the lifetime is erased; `work` and `job` outlive the wait below.
        let erased = (&raw const job).cast::<Job<'static>>().cast_mut();
        // No task of the region before is left, so nobody claims until `state` changes.
        let region = (shared.state.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.finished.store(0, Ordering::Relaxed);
        shared.state.store((region << 32) | u64::from(u32::MAX), Ordering::SeqCst);
        shared.tasks.store(tasks, Ordering::SeqCst);
        shared.job.store(erased, Ordering::SeqCst);
        shared.state.store(region << 32, Ordering::SeqCst);
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.sleepers.iter().for_each(Thread::unpark);
        }
        shared.work();
        let mut waited = 0;
        while shared.finished.load(Ordering::Acquire) < tasks {
            waited += 1;
            if waited < PATIENCE { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.sleepers.iter().for_each(Thread::unpark);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGIONS: usize = if cfg!(miri) { 5 } else { 2_000 };

    #[test]
    fn every_task_runs_once_in_every_region() {
        let pool = Pool::new(3);
        for region in 0..REGIONS {
            let counts: Vec<AtomicUsize> = (0..1 + region % 17).map(|_| AtomicUsize::new(0)).collect();
            pool.run(counts.len(), &|task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn sleeping_workers_are_woken() {
        let pool = Pool::new(2);
        std::thread::sleep(std::time::Duration::from_millis(50));
        // Each of the two tasks waits until both have begun: one thread alone would never end.
        let begun = AtomicUsize::new(0);
        pool.run(2, &|_| {
            begun.fetch_add(1, Ordering::SeqCst);
            while begun.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_region_inside_a_region_and_one_of_another_thread_are_done_by_their_callers() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    pool.run(4, &|_| {
                        pool.run(4, &|_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    });
                });
            }
        });
        assert_eq!(total.load(Ordering::Relaxed), 32);
    }

    #[test]
    fn a_panic_of_a_task_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2);
        let fault = catch_unwind(AssertUnwindSafe(|| pool.run(8, &|task| assert_ne!(task, 3))));
        assert!(fault.is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, &|_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }
}
