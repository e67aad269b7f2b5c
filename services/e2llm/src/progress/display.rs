use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::warn_line;

/// How often a plain line is written.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Where progress is shown: a bar on a terminal, a plain line now and then elsewhere.
pub(crate) struct Display {
    label: &'static str,
    started: Instant,
    screen: Screen,
}

enum Screen {
    Bar(ProgressBar),
    Lines { next: Duration },
    Hidden,
}

impl Display {
    /// `label` names the work, such as `summarize`.
    pub(crate) fn start(label: &'static str, quiet: bool) -> Self {
        let screen = match (quiet, stderr().is_terminal()) {
            (true, _) => Screen::Hidden,
            (false, true) => Screen::Bar(bar(label)),
            (false, false) => Screen::Lines { next: LINE_EVERY },
        };
        Self { label, started: Instant::now(), screen }
    }

    /// Shows that so many of `of` are done, and what `line` says of it after the time since the start.
    pub(crate) fn show(&mut self, done: u64, of: u64, line: impl FnOnce(Duration) -> String) {
        let elapsed = self.started.elapsed();
        match &mut self.screen {
            Screen::Bar(bar) => {
                bar.set_length(of.max(1));
                bar.set_position(done);
                bar.set_message(line(elapsed));
            }
            Screen::Lines { next } if elapsed >= *next => {
                *next = elapsed + LINE_EVERY;
                warn_line(&format!("{}: {}", self.label, line(elapsed)));
            }
            Screen::Lines { .. } | Screen::Hidden => {}
        }
    }

    /// Runs `write` while the bar is off the screen.
    pub(crate) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.screen {
            Screen::Bar(bar) => bar.suspend(write),
            Screen::Lines { .. } | Screen::Hidden => write(),
        }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Display {
    // An error message must not land in the middle of a bar.
    fn drop(&mut self) {
        if let Screen::Bar(bar) = &self.screen {
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
