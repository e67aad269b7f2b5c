//! Data-parallel workers inside one process.

use candle_core::Device;

use crate::error::{Result, TrainError};

/// One single-threaded pool per core. A worker computes its share of a batch alone: on few cores that beats threads that
/// share every product and wait for each other between them.
pub(crate) struct Workers {
    pools: Vec<rayon::ThreadPool>,
}

impl Workers {
    /// One per core, or one for a GPU, which shares the work of each operation out itself.
    pub(crate) fn on(device: &Device) -> Result<Self> {
        let cores = if device.is_cpu() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
        let pool = |_| rayon::ThreadPoolBuilder::new().num_threads(1).build();
        let pools = (0..cores).map(pool).collect::<Result<_, _>>();
        Ok(Self { pools: pools.map_err(|e| TrainError::Invalid(format!("worker threads: {e}")))? })
    }

    pub(crate) fn count(&self) -> usize {
        self.pools.len()
    }

    /// Runs `work` on every item, each on a worker of its own, and gives the results in order.
    pub(crate) fn run<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
        let work = &work;
        std::thread::scope(|scope| {
            for ((item, slot), pool) in items.iter().zip(&mut results).zip(self.pools.iter().cycle()) {
                scope.spawn(move || *slot = Some(pool.install(|| work(item))));
            }
        });
        results.into_iter().flatten().collect()
    }
}
