//! Progress on standard error: of jobs, and of work that this process does itself.

mod display;
mod meter;

use std::collections::VecDeque;
use std::time::Duration;

use e2llm_api::v1::{JobKind, JobStatus, TrainStatus};

use crate::render::{count, duration, training_text};
use display::Display;
pub(crate) use meter::Meter;

/// Rates are means over this long, so that they follow what happens now.
const RATE_WINDOW: Duration = Duration::from_secs(20);

/// Progress of one job.
pub(crate) struct Progress {
    display: Display,
    counts: Counts,
}

impl Progress {
    /// `label` names the work, such as `summarize`.
    pub(crate) fn start(label: &'static str, quiet: bool) -> Self {
        Self { display: Display::start(label, quiet), counts: Counts::default() }
    }

    /// Takes the job's newest counts.
    pub(crate) fn update(&mut self, status: &JobStatus) {
        self.counts.push(self.display.elapsed(), status);
        self.tick();
    }

    /// No more rows will come: from now on the end can be estimated.
    pub(crate) fn all_rows_are_known(&mut self, rows: u64) {
        self.counts.total = Some(rows);
    }

    /// Shows the counts as they are now.
    pub(crate) fn tick(&mut self) {
        let Self { display, counts } = self;
        let of = counts.total.unwrap_or(counts.latest.rows);
        display.show(counts.latest.rows_done, of, |elapsed| counts.line(elapsed));
    }

    /// Runs `write` while the bar is off the screen.
    pub(crate) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        self.display.suspend(write)
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.display.elapsed()
    }
}

/// The counts of a job and how fast they grow.
#[derive(Debug, Default)]
struct Counts {
    latest: JobStatus,
    /// Rows in all, once known.
    total: Option<u64>,
    /// Time and rows done at the first look: a job that goes on had done them before.
    first: Option<(Duration, u64)>,
    /// Counts of the last [`RATE_WINDOW`], oldest first.
    samples: VecDeque<Sample>,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    read: u64,
    written: u64,
}

impl Counts {
    fn push(&mut self, at: Duration, status: &JobStatus) {
        let written = status.train.as_ref().map_or(status.generated_tokens, |train| train.targets + train.targets_open);
        let sample = Sample { at, read: status.source_tokens, written };
        self.samples.push_back(sample);
        self.first.get_or_insert((at, status.rows_done));
        while self.samples.get(1).is_some_and(|next| at.saturating_sub(next.at) >= RATE_WINDOW) {
            self.samples.pop_front();
        }
        self.latest = status.clone();
    }

    /// Growth of a count per second, from the oldest sample until `now`.
    fn rate(&self, now: Duration, of: fn(&Sample) -> u64) -> f64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return 0.0 };
        let seconds = now.saturating_sub(first.at).as_secs_f64();
        if seconds < 0.5 { 0.0 } else { of(last).saturating_sub(of(first)) as f64 / seconds }
    }

    /// Such as `12/49 documents, 30 encoded, 5,200 tokens/s read, 31 tokens/s written, 1 min 20 s left, 1 error`.
    fn line(&self, now: Duration) -> String {
        let status = &self.latest;
        if let Some(train) = &status.train {
            return self.training(now, train);
        }
        let total = match self.total {
            Some(total) => count(total),
            None => format!("{}+", count(status.rows)),
        };
        let rows = if status.kind() == JobKind::Ask { "questions" } else { "documents" };
        let mut line = format!("{}/{total} {rows}", count(status.rows_done));
        if status.kind() != JobKind::Encode && status.rows_encoded > 0 {
            line.push_str(&format!(", {} encoded", count(status.rows_encoded)));
        }
        for (rate, name) in [(self.rate(now, |s| s.read), "read"), (self.rate(now, |s| s.written), "written")] {
            if rate >= 0.5 {
                line.push_str(&format!(", {} tokens/s {name}", count(rate.round() as u64)));
            }
        }
        if let Some(seconds) = self.seconds_left(now) {
            line.push_str(&format!(", {} left", duration(seconds)));
        }
        match status.rows_failed {
            0 => {}
            1 => line.push_str(", 1 error"),
            errors => line.push_str(&format!(", {} errors", count(errors))),
        }
        line
    }

    /// Such as `round 3/12, step 60/240, reconstruct 3.12, 310 target tokens/s, 4 min left`.
    fn training(&self, now: Duration, train: &TrainStatus) -> String {
        let mut line = training_text(train);
        let rate = self.rate(now, |sample| sample.written);
        if rate >= 0.5 {
            line.push_str(&format!(", {} target tokens/s", count(rate.round() as u64)));
        }
        if let Some(seconds) = self.seconds_left(now) {
            line.push_str(&format!(", {} left", duration(seconds)));
        }
        line
    }

    /// By the mean rate since the first look, for documents differ in length.
    fn seconds_left(&self, now: Duration) -> Option<u64> {
        let left = self.total?.checked_sub(self.latest.rows_done).filter(|left| *left > 0)?;
        let (since, before) = self.first?;
        let done = self.latest.rows_done.checked_sub(before).filter(|done| *done > 0)?;
        Some((now.saturating_sub(since).as_secs_f64() * left as f64 / done as f64).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(rows: u64, rows_done: u64, source_tokens: u64, generated_tokens: u64) -> JobStatus {
        JobStatus { rows, rows_done, source_tokens, generated_tokens, ..Default::default() }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_line_tells_counts_rates_and_time_left() {
        let mut counts = Counts { total: Some(40), ..Default::default() };
        counts.push(seconds(0), &status(40, 0, 0, 0));
        counts.push(seconds(10), &JobStatus { rows_failed: 1, ..status(40, 10, 52_000, 310) });
        let line = counts.line(seconds(10));
        assert_eq!(line, "10/40 documents, 5,200 tokens/s read, 31 tokens/s written, 30 s left, 1 error");
    }

    #[test]
    fn each_stage_of_a_summary_job_is_counted() {
        let mut counts = Counts { total: Some(49), ..Default::default() };
        let kind = JobKind::Summarize.into();
        counts.push(seconds(0), &JobStatus { kind, rows_encoded: 30, ..status(49, 12, 0, 0) });
        assert_eq!(counts.line(seconds(0)), "12/49 documents, 30 encoded");
        counts.push(seconds(1), &JobStatus { kind: JobKind::Ask.into(), ..status(49, 13, 0, 0) });
        assert!(counts.line(seconds(1)).starts_with("13/49 questions"));
    }

    #[test]
    fn what_was_done_before_a_job_went_on_does_not_shorten_the_estimate() {
        let mut counts = Counts { total: Some(100), ..Default::default() };
        counts.push(seconds(1), &status(100, 80, 0, 0));
        assert_eq!(counts.seconds_left(seconds(1)), None);
        counts.push(seconds(11), &status(100, 90, 0, 0));
        assert_eq!(counts.seconds_left(seconds(11)), Some(10));
    }

    #[test]
    fn no_end_is_promised_while_rows_still_arrive() {
        let mut counts = Counts::default();
        counts.push(seconds(0), &status(3, 0, 0, 0));
        counts.push(seconds(5), &status(8, 2, 0, 0));
        assert_eq!(counts.line(seconds(5)), "2/8+ documents");
    }

    #[test]
    fn rates_forget_what_is_long_past() {
        let mut counts = Counts { total: Some(100), ..Default::default() };
        for second in 0..=100 {
            let read = if second < 50 { second * 1000 } else { 50_000 + (second - 50) * 10 };
            counts.push(seconds(second), &status(100, second, read, 0));
        }
        let rate = counts.rate(seconds(100), |sample| sample.read);
        assert!((9.0..11.0).contains(&rate), "{rate}");
        assert!(counts.samples.len() <= 22);
    }

    #[test]
    fn nothing_done_yet_is_no_division_by_zero() {
        assert_eq!(Counts::default().line(seconds(0)), "0/0+ documents");
    }
}
