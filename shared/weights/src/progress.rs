//! How far a pull is: a bar on a terminal, a line now and then elsewhere. Always on stderr.

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

/// Whether and how progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// A bar if stderr is a terminal, else plain lines.
    #[default]
    Auto,
    /// Nothing.
    Hidden,
}

impl Progress {
    /// Says one thing that explains a wait.
    pub(crate) fn note(self, text: &str) {
        if self == Self::Auto {
            eprintln!("{text}");
        }
    }
}

/// One download being watched.
pub(crate) struct Meter {
    label: String,
    total: u64,
    started: Instant,
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines { last: Instant, shown: u64 },
    Hidden,
}

/// A plain line is printed at most this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

impl Meter {
    pub(crate) fn start(progress: Progress, label: &str, total: u64) -> Self {
        let started = Instant::now();
        let display = match progress {
            Progress::Hidden => Display::Hidden,
            Progress::Auto if stderr().is_terminal() => Display::Bar(bar(label, total)),
            Progress::Auto => {
                eprintln!("pulling {label}, {}", DecimalBytes(total));
                Display::Lines { last: started, shown: 0 }
            }
        };
        Self { label: label.to_owned(), total, started, display }
    }

    /// `bytes` have arrived so far.
    pub(crate) fn at(&mut self, bytes: u64) {
        match &mut self.display {
            Display::Bar(bar) => bar.set_position(bytes.min(self.total)),
            Display::Lines { last, shown } if last.elapsed() >= LINE_EVERY && bytes > *shown => {
                (*last, *shown) = (Instant::now(), bytes);
                eprintln!("pulling {}: {} of {}", self.label, DecimalBytes(bytes), DecimalBytes(self.total));
            }
            Display::Lines { .. } | Display::Hidden => {}
        }
    }

    /// All files are in place.
    pub(crate) fn done(self) {
        let seconds = self.started.elapsed().as_secs_f32();
        let line = format!("pulled {}, {} in {seconds:.1} s", self.label, DecimalBytes(self.total));
        match &self.display {
            Display::Bar(bar) => {
                bar.finish_and_clear();
                eprintln!("{line}");
            }
            Display::Lines { .. } => eprintln!("{line}"),
            Display::Hidden => {}
        }
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

fn bar(label: &str, total: u64) -> ProgressBar {
    let template = "{prefix} [{bar:30}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(total).with_style(style.progress_chars("=> ")).with_prefix(format!("pulling {label}"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
