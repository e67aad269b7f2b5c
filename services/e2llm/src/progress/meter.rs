use std::time::Duration;

use super::display::Display;
use crate::render::{count, duration};

/// Progress of a command that counts one thing.
pub(crate) struct Meter {
    unit: String,
    /// What was done before this run is no measure of its speed.
    before: u64,
    display: Display,
}

impl Meter {
    /// `label` names the work, `unit` what is counted, in the plural.
    pub(crate) fn start(label: &'static str, unit: impl Into<String>, quiet: bool) -> Self {
        Self { unit: unit.into(), before: 0, display: Display::start(label, quiet) }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(&self) -> f64 {
        self.display.elapsed().as_secs_f64()
    }

    /// So many were done before this run.
    pub(crate) fn resumed(&mut self, before: u64) {
        self.before = before;
    }

    /// Shows how many of how many are done, and whatever else there is to say.
    pub(crate) fn update(&mut self, done: u64, of: Option<u64>, more: &str) {
        let Self { unit, before, display } = self;
        display.show(done, of.unwrap_or(done), |elapsed| line(unit, *before, elapsed, done, of, more));
    }
}

/// Such as `1,200/9,148 documents, 310/s, 26 s left`.
fn line(unit: &str, before: u64, elapsed: Duration, done: u64, of: Option<u64>, more: &str) -> String {
    let total = of.map_or(String::new(), |of| format!("/{}", count(of)));
    let mut line = format!("{}{total} {unit}", count(done));
    let now = done.saturating_sub(before) as f64;
    let rate = now / elapsed.as_secs_f64().max(1e-3);
    if rate >= 10.0 {
        line.push_str(&format!(", {}/s", count(rate.round() as u64)));
    } else if rate > 0.0 {
        line.push_str(&format!(", {rate:.2}/s"));
    }
    line.push_str(more);
    let left = of.map_or(0, |of| of.saturating_sub(done));
    if left > 0 && rate > 0.0 {
        line.push_str(&format!(", {} left", duration((left as f64 / rate).ceil() as u64)));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_counts_rate_and_time_left() {
        let line = |before, done, of| line("documents", before, Duration::from_secs(4), done, of, "");
        assert_eq!(line(0, 1200, Some(9148)), "1,200/9,148 documents, 300/s, 27 s left");
        assert_eq!(line(0, 2, None), "2 documents, 0.50/s");
        assert_eq!(line(0, 0, Some(5)), "0/5 documents");
        assert_eq!(line(1192, 1200, Some(1202)), "1,200/1,202 documents, 2.00/s, 1 s left");
    }
}
