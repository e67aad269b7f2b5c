use std::time::Duration;

use e2llm_api::v1::JobSpec;

/// Times and sizes of the coordinator.
#[derive(Debug, Clone)]
pub struct CoordinatorOptions {
    /// How long a worker may be silent before its tasks go to others. Default: 15 s.
    pub lease: Duration,
    /// How often workers are told to report. Default: 3 s.
    pub heartbeat: Duration,
    /// How long a report with free slots waits for a task to become ready. Default: 1 s.
    pub long_poll: Duration,
    /// Attempts of a single row, after which it fails for good; a job may ask for another number. Default: 5.
    pub max_attempts: u32,
    /// Attempts of a task of several rows, after which each row becomes a task of its own. Default: 3.
    pub split_after: u32,
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
    /// How long a job's records and results are kept after its end; a job may ask for another time. Default: 7 days.
    pub retention: Duration,
    /// How often expired jobs are looked for. Default: 1 h.
    pub expire_every: Duration,
    /// Most rows of a job: each takes about 130 bytes of the coordinator's memory while the job runs. Default: 10 million.
    pub max_rows: u64,
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
            split_after: 3,
            retry_delay: Duration::from_millis(500),
            encode_rows: 16,
            encode_bytes: 1 << 20,
            decode_rows: 2,
            adopt_grace: Duration::from_secs(4),
            load: LoadJobs::Unfinished,
            retention: Duration::from_secs(7 * 24 * 3600),
            expire_every: Duration::from_secs(3600),
            max_rows: 10_000_000,
            finished_jobs: 32,
        }
    }
}

impl CoordinatorOptions {
    /// Options of a coordinator that lives and dies with its workers.
    pub fn in_process() -> Self {
        Self { adopt_grace: Duration::ZERO, load: LoadJobs::OnDemand, ..Self::default() }
    }

    /// How long a job is kept after its end, in milliseconds.
    pub(crate) fn retention_ms(&self, spec: &JobSpec) -> u64 {
        match spec.retention_s {
            0 => u64::try_from(self.retention.as_millis()).unwrap_or(u64::MAX),
            seconds => seconds.saturating_mul(1000),
        }
    }

    /// Attempts of a task of `rows` rows before it is given up.
    pub(crate) fn attempts(&self, spec: &JobSpec, rows: usize) -> u32 {
        let of_a_row = if spec.max_attempts == 0 { self.max_attempts } else { spec.max_attempts };
        if rows > 1 { of_a_row.min(self.split_after) } else { of_a_row }
    }

    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(30);
        self.retry_delay.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST)
    }
}
