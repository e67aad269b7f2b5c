//! Shows a job while it runs: its rows, its progress, and one line in the end.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Result;
use e2llm_api::v1::{JobKind, JobStatus, RowResult};

use crate::failure::{SOME_FAILED, warn_line};
use crate::job::Audience;
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::render::{count, duration, row_error_text, row_text};

/// Error lines on standard error when the errors are in a file anyway.
const ERRORS_SHOWN: u64 = 20;

/// The user's side of a job.
pub(crate) struct View {
    kind: JobKind,
    output: Output,
    progress: Progress,
    tally: Tally,
    width: usize,
}

/// What became of the rows.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Rows finished, errors included.
    pub(crate) rows: u64,
    /// Of these, with an error.
    pub(crate) failed: u64,
    /// Of these, documents that were encoded before.
    pub(crate) unchanged: u64,
    /// Encoder tokens read, as the coordinator counts them.
    source_tokens: u64,
    /// Tokens written.
    generated_tokens: u64,
}

impl View {
    /// A view of a job that is about to start.
    pub(crate) fn new(kind: JobKind, output: Output, quiet: bool) -> Self {
        let label = match kind {
            JobKind::Ask => "ask",
            JobKind::Summarize => "summarize",
            JobKind::Encode | JobKind::Unspecified => "encode",
            JobKind::Train => "train",
        };
        Self { kind, output, progress: Progress::start(label, quiet), tally: Tally::default(), width: line_width() }
    }

    /// Rows so far.
    pub(crate) fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Makes the output final, says how it went, and gives the exit code.
    pub(crate) fn finish(self, quiet: bool) -> Result<ExitCode> {
        let Self { kind, output, progress, tally, .. } = self;
        let seconds = progress.elapsed().as_secs();
        drop(progress);
        output.commit()?;
        if !quiet || tally.failed > 0 {
            warn_line(&tally.line(kind, seconds));
        }
        Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { SOME_FAILED.into() })
    }
}

impl Audience for View {
    fn row(&mut self, row: &RowResult) -> Result<()> {
        self.tally.rows += 1;
        self.tally.failed += u64::from(row.error.is_some());
        self.tally.unchanged += u64::from(row.unchanged);
        let Self { kind, output, progress, tally, width } = self;
        progress.suspend(|| {
            if row.error.is_some() && !matches!(output, Output::Json) {
                warn_of(row, output, tally.failed);
            }
            let goes_apart = row.error.is_some() && matches!(output, Output::Apart { .. });
            if output.is_json() || goes_apart {
                return output.row(*kind, row);
            }
            let is_silent = row.error.is_some() || matches!(output, Output::Silent);
            if is_silent { Ok(()) } else { output::print_line(&row_text(*kind, row, *width)) }
        })
    }

    fn status(&mut self, status: &JobStatus) {
        self.tally.source_tokens = status.source_tokens;
        self.tally.generated_tokens = status.generated_tokens;
        self.progress.update(status);
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn rows(&self) -> u64 {
        self.tally.rows
    }
}

fn warn_of(row: &RowResult, output: &Output, failed: u64) {
    match output.keeps_errors() {
        Some(file) if failed == ERRORS_SHOWN + 1 => warn_line(&format!("further errors are in the {file} file")),
        Some(_) if failed > ERRORS_SHOWN => {}
        _ => warn_line(&row_error_text(row)),
    }
}

/// Columns of the terminal, within what reads well.
fn line_width() -> usize {
    let columns = console::Term::stdout().size_checked().map_or(80, |(_, columns)| usize::from(columns));
    if std::io::stdout().is_terminal() { columns.clamp(20, 100) } else { 80 }
}

impl Tally {
    /// Such as `49 documents in 1 min 20 s: 47 summarized, 2 failed, 3 were encoded before; 1,200 tokens written`.
    fn line(&self, kind: JobKind, seconds: u64) -> String {
        let (noun, done) = match kind {
            JobKind::Ask => ("question", "answered"),
            JobKind::Summarize => ("document", "summarized"),
            JobKind::Encode | JobKind::Unspecified => ("document", "encoded"),
            JobKind::Train => ("share", "trained"),
        };
        let plural = if self.rows == 1 { "" } else { "s" };
        let succeeded = self.rows - self.failed;
        let mut line = format!("{} {noun}{plural} in {}: ", count(self.rows), duration(seconds));
        if kind == JobKind::Encode {
            line += &format!("{} encoded, {} unchanged", count(succeeded - self.unchanged), count(self.unchanged));
        } else {
            line += &format!("{} {done}", count(succeeded));
        }
        line += &format!(", {} failed", count(self.failed));
        for (tokens, verb) in [(self.source_tokens, "read"), (self.generated_tokens, "written")] {
            if tokens > 0 {
                line += &format!(", {} tokens {verb}", count(tokens));
            }
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2llm_api::{ErrorCode, row_error};
    use std::fs;

    fn rows() -> Vec<RowResult> {
        let good = RowResult { id: "a".into(), text: "A summary.".into(), ..Default::default() };
        let error = Some(row_error(ErrorCode::EmptyDocument, "b has no text"));
        vec![good, RowResult { number: 1, id: "b".into(), error, ..Default::default() }]
    }

    #[test]
    fn a_file_holds_every_row_in_order_and_a_failed_row_fails_the_command() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let args = crate::cli::OutputArgs { output: Some(path.clone()), errors: None };
        let mut view = View::new(JobKind::Summarize, Output::open(&args, false).unwrap(), true);
        rows().iter().for_each(|row| view.row(row).unwrap());
        let code = view.finish(true).unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(SOME_FAILED)));
        let lines = fs::read_to_string(path).unwrap();
        let expected = "{\"id\":\"a\",\"summary\":\"A summary.\",\"unchanged\":false}\n\
            {\"id\":\"b\",\"error\":{\"code\":\"EMPTY_DOCUMENT\",\"message\":\"b has no text\"}}\n";
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_last_line_accounts_for_every_row() {
        let tally = Tally { rows: 49, failed: 2, unchanged: 3, source_tokens: 1200, generated_tokens: 0 };
        let encoded = tally.line(JobKind::Encode, 80);
        assert_eq!(encoded, "49 documents in 1 min 20 s: 44 encoded, 3 unchanged, 2 failed, 1,200 tokens read");
        let answered = Tally { rows: 1, generated_tokens: 9, ..Default::default() }.line(JobKind::Ask, 2);
        assert_eq!(answered, "1 question in 2 s: 1 answered, 0 failed, 9 tokens written");
    }
}
