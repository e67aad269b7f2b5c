//! Progress of work on data: a bar on a terminal, a plain line now and then elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::warn_line;
use crate::render::{count, duration};

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Progress of one command.
pub(super) struct Meter {
    label: &'static str,
    unit: &'static str,
    started: Instant,
    /// What was done before this run is no measure of its speed.
    before: u64,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines { next: Duration },
    Hidden,
}

impl Meter {
    /// `label` names the work, `unit` what is counted, in the plural.
    pub(super) fn start(label: &'static str, unit: &'static str, quiet: bool) -> Self {
        let display = match (quiet, stderr().is_terminal()) {
            (true, _) => Display::Hidden,
            (false, true) => Display::Bar(bar(label)),
            (false, false) => Display::Lines { next: LINE_EVERY },
        };
        Self { label, unit, started: Instant::now(), before: 0, display }
    }

    /// Seconds since the start.
    pub(super) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// So many were done before this run.
    pub(super) fn resumed(&mut self, before: u64) {
        self.before = before;
    }

    /// Shows how many of how many are done, and whatever else there is to say.
    pub(super) fn update(&mut self, done: u64, of: Option<u64>, more: &str) {
        let elapsed = self.started.elapsed();
        let line = || self.line(elapsed, done, of, more);
        match &self.display {
            Display::Bar(bar) => {
                bar.set_length(of.unwrap_or(done).max(1));
                bar.set_position(done);
                bar.set_message(line());
            }
            Display::Lines { next } if elapsed >= *next => {
                warn_line(&format!("{}: {}", self.label, line()));
                self.display = Display::Lines { next: elapsed + LINE_EVERY };
            }
            Display::Lines { .. } | Display::Hidden => {}
        }
    }

    /// Such as `1,200/9,148 documents, 310/s, 26 s left`.
    fn line(&self, elapsed: Duration, done: u64, of: Option<u64>, more: &str) -> String {
        let total = of.map_or(String::new(), |of| format!("/{}", count(of)));
        let mut line = format!("{}{total} {}", count(done), self.unit);
        let now = done.saturating_sub(self.before) as f64;
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
}

impl Drop for Meter {
    // An error message must not land in the middle of a bar.
    fn drop(&mut self) {
        if let Display::Bar(bar) = &self.display {
            bar.finish_and_clear();
        }
    }
}

fn bar(label: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} [{bar:24}] {wide_msg}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(1).with_style(style.progress_chars("=> ")).with_prefix(label);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_counts_rate_and_time_left() {
        let mut meter = Meter::start("prepare", "documents", true);
        let line = |meter: &Meter, done, of| meter.line(Duration::from_secs(4), done, of, "");
        assert_eq!(line(&meter, 1200, Some(9148)), "1,200/9,148 documents, 300/s, 27 s left");
        assert_eq!(line(&meter, 2, None), "2 documents, 0.50/s");
        assert_eq!(line(&meter, 0, Some(5)), "0/5 documents");
        meter.resumed(1192);
        assert_eq!(line(&meter, 1200, Some(1202)), "1,200/1,202 documents, 2.00/s, 1 s left");
    }
}
