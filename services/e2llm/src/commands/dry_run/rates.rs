//! How fast finished jobs of a store were, and how long that lets another one take.

use e2llm_api::v1::{JobKind, JobStatus};

/// Sums over finished jobs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rates {
    /// Jobs that gave a rate.
    pub(super) jobs: u64,
    read_tokens: u64,
    encode_us: u64,
    written_tokens: u64,
    written_rows: u64,
    decode_us: u64,
}

/// Time of the two stages, in seconds, with as many workers as the measured jobs had.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Estimate {
    pub(super) encode_s: f64,
    pub(super) decode_s: f64,
}

impl Rates {
    /// Rates of the bundle `fingerprint`, those of decoding from jobs of the same kind. A job that names no bundle may
    /// have been run by any; it counts only where `any_bundle` says that there is one.
    pub(super) fn of(jobs: &[JobStatus], kind: JobKind, fingerprint: &str, any_bundle: bool) -> Self {
        let is_of_bundle =
            |job: &&JobStatus| job.fingerprint == fingerprint || (any_bundle && job.fingerprint.is_empty());
        let mut rates = Self::default();
        for job in jobs.iter().filter(|job| job.state == "succeeded").filter(is_of_bundle) {
            let reads = job.source_tokens > 0 && job.encode_busy_us > 0;
            let writes = job.kind() == kind && job.generated_tokens > 0 && job.decode_busy_us > 0;
            if reads {
                rates.read_tokens += job.source_tokens;
                rates.encode_us += time_us(job, job.encode_busy_us);
            }
            if writes {
                rates.written_tokens += job.generated_tokens;
                rates.written_rows += job.rows_done.saturating_sub(job.rows_failed);
                rates.decode_us += time_us(job, job.decode_busy_us);
            }
            rates.jobs += u64::from(reads || writes);
        }
        rates
    }

    /// For so many tokens to read and rows to write, of at most `max_tokens` each (0: as many as before); `None` where a
    /// rate that is needed was never measured.
    pub(super) fn estimate(&self, tokens: u64, rows: u64, max_tokens: u32) -> Option<Estimate> {
        let seconds = |us: u64| us as f64 / 1e6;
        let encode_s = match tokens {
            0 => 0.0,
            _ if self.read_tokens == 0 => return None,
            tokens => tokens as f64 * seconds(self.encode_us) / self.read_tokens as f64,
        };
        let decode_s = match rows {
            0 => 0.0,
            _ if self.written_tokens == 0 || self.written_rows == 0 => return None,
            rows => {
                let mean = self.written_tokens as f64 / self.written_rows as f64;
                let of_a_row = if max_tokens == 0 { mean } else { mean.min(f64::from(max_tokens)) };
                rows as f64 * of_a_row * seconds(self.decode_us) / self.written_tokens as f64
            }
        };
        Some(Estimate { encode_s, decode_s })
    }
}

/// The time that a job spent on a stage. Tasks that run side by side are busy for longer in all than the job took; a job
/// that was interrupted took longer than it was worked on.
fn time_us(job: &JobStatus, busy_us: u64) -> u64 {
    match job.ended_unix_ms.saturating_sub(job.created_unix_ms) {
        0 => busy_us,
        took_ms => busy_us.min(took_ms.saturating_mul(1000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(kind: JobKind) -> JobStatus {
        JobStatus {
            kind: kind.into(),
            state: "succeeded".into(),
            fingerprint: "b".into(),
            source_tokens: 1000,
            encode_busy_us: 2_000_000,
            generated_tokens: 100,
            decode_busy_us: 50_000_000,
            rows_done: 11,
            rows_failed: 1,
            ..Default::default()
        }
    }

    #[test]
    fn time_follows_from_measured_rates() {
        let rates = Rates::of(&[job(JobKind::Summarize)], JobKind::Summarize, "b", false);
        let estimate = rates.estimate(500, 4, 0).unwrap();
        assert_eq!((estimate.encode_s, estimate.decode_s), (1.0, 20.0));
        assert_eq!(rates.estimate(0, 4, 5).unwrap().decode_s, 10.0, "at most five tokens each");
        assert_eq!(rates.jobs, 1);
    }

    #[test]
    fn tasks_side_by_side_count_once_and_an_interruption_does_not() {
        let decode_s = |created_unix_ms, ended_unix_ms| {
            let job = JobStatus { created_unix_ms, ended_unix_ms, ..job(JobKind::Summarize) };
            Rates::of(&[job], JobKind::Summarize, "b", false).estimate(0, 10, 0).unwrap().decode_s
        };
        assert_eq!(decode_s(1000, 26_000), 25.0);
        assert_eq!(decode_s(1000, 9_001_000), 50.0);
    }

    #[test]
    fn nothing_is_estimated_without_a_rate_of_this_bundle_and_kind() {
        let other = |change: fn(&mut JobStatus)| {
            let mut job = job(JobKind::Summarize);
            change(&mut job);
            Rates::of(&[job], JobKind::Summarize, "b", false)
        };
        assert_eq!(Rates::default().estimate(1, 0, 0), None);
        assert_eq!(Rates::default().estimate(0, 0, 0), Some(Estimate { encode_s: 0.0, decode_s: 0.0 }));
        assert_eq!(other(|job| job.fingerprint = "c".into()), Rates::default());
        assert_eq!(other(|job| job.fingerprint = String::new()), Rates::default());
        assert_eq!(other(|job| job.state = "cancelled".into()), Rates::default());
        let asked = other(|job| job.kind = JobKind::Ask.into());
        assert!(asked.estimate(5, 0, 0).is_some() && asked.estimate(5, 1, 0).is_none());
        let nameless = JobStatus { fingerprint: String::new(), ..job(JobKind::Encode) };
        assert!(Rates::of(&[nameless], JobKind::Encode, "b", true).estimate(5, 0, 0).is_some());
    }
}
