use std::time::Duration;

/// Times and sizes of the coordinator.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    /// How long a worker may be silent before its tasks go to others. Default: 15 s.
    pub lease: Duration,
    /// How often workers are told to report. Default: 3 s.
    pub heartbeat: Duration,
    /// How long a report with free slots waits for a task to become ready. Default: 1 s.
    pub long_poll: Duration,
    /// Attempts of one task, after which it is split into single rows, and those fail for good. Default: 5.
    pub max_attempts: u32,
    /// Wait before a task is tried again after its first failure; it doubles with each further one. Default: 500 ms.
    pub retry_delay: Duration,
    /// Most rows in an encode task. Default: 16.
    pub encode_rows: usize,
    /// Bytes of text after which an encode task is full. Default: 1 MiB.
    pub encode_bytes: u64,
    /// Most rows in a decode task: few, because one row takes seconds and work should spread. Default: 2.
    pub decode_rows: usize,
    /// How long tasks of a job loaded from the store wait for workers that still hold them. Default: 4 s, more than a
    /// heartbeat. Zero where no worker can have survived, as in a single process.
    pub adopt_grace: Duration,
    /// Which jobs to load at the start. Default: all that are not finished.
    pub load: LoadJobs,
    /// Finished jobs kept in memory for those who still read their results. Default: 32.
    pub finished_jobs: usize,
}

/// Which jobs to load at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadJobs {
    /// All that are not finished: they go on.
    Unfinished,
    /// None until someone names them: they go on when they are submitted, watched or asked for.
    OnDemand,
}

impl Default for CoordinatorOptions {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            heartbeat: Duration::from_secs(3),
            long_poll: Duration::from_secs(1),
            max_attempts: 5,
            retry_delay: Duration::from_millis(500),
            encode_rows: 16,
            encode_bytes: 1 << 20,
            decode_rows: 2,
            adopt_grace: Duration::from_secs(4),
            load: LoadJobs::Unfinished,
            finished_jobs: 32,
        }
    }
}

impl CoordinatorOptions {
    /// Options of a coordinator that lives and dies with its workers.
    pub fn in_process() -> Self {
        Self { adopt_grace: Duration::ZERO, load: LoadJobs::OnDemand, ..Self::default() }
    }

    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(30);
        self.retry_delay.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST)
    }
}
