//! What a sync changes, as it happens.

use anyhow::Result;
use e2llm_api::v1::{RowError, RowResult};
use serde_json::json;

use super::gone::Stored;
use crate::app::App;
use crate::failure::warn_line;
use crate::job::Audience;
use crate::output::print_line;
use crate::progress::Progress;
use crate::render::{clean, count, duration};

/// What became of a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    New,
    Changed,
    Unchanged,
    Deleted,
    Failed(RowError),
}

/// Prints changes and counts them.
pub(super) struct Changes<'a> {
    app: &'a App,
    stored: Stored,
    progress: Progress,
    counts: Counts,
}

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Counts {
    new: u64,
    changed: u64,
    unchanged: u64,
    deleted: u64,
    failed: u64,
}

impl<'a> Changes<'a> {
    /// Of a collection that held `stored`.
    pub(super) fn new(app: &'a App, stored: Stored) -> Self {
        let progress = Progress::start("sync", app.settings.quiet);
        Self { app, stored, progress, counts: Counts::default() }
    }

    /// What the collection held before.
    pub(super) fn stored(&self) -> &Stored {
        &self.stored
    }

    /// Rows that failed.
    pub(super) fn failed(&self) -> u64 {
        self.counts.failed
    }

    /// Prints a change.
    pub(super) fn add(&mut self, id: &str, change: &Change) -> Result<()> {
        self.counts.add(change);
        let line = if self.app.settings.json { line_json(id, change) } else { line_text(id, change) };
        line.map_or(Ok(()), |line| self.progress.suspend(|| print_line(&line)))
    }

    /// Prints the counts.
    pub(super) fn finish(&self, dry_run: bool) -> Result<()> {
        let Counts { new, changed, unchanged, deleted, failed } = self.counts;
        if self.app.settings.json {
            let summary = json!({
                "dry_run": dry_run, "new": new, "changed": changed, "unchanged": unchanged, "deleted": deleted,
                "failed": failed,
            });
            return print_line(&json!({ "summary": summary }).to_string());
        }
        if !self.app.settings.quiet {
            let time = duration(self.progress.elapsed().as_secs());
            let begin = if dry_run { "nothing was changed; to do: ".to_owned() } else { format!("in {time}: ") };
            warn_line(&format!("{begin}{}", self.counts.line()));
        }
        Ok(())
    }
}

impl Audience for Changes<'_> {
    fn row(&mut self, row: &RowResult) -> Result<()> {
        let is_known = row.record.as_ref().is_some_and(|record| self.stored.holds_record(record));
        let change = match &row.error {
            Some(error) => Change::Failed(error.clone()),
            None if row.unchanged => Change::Unchanged,
            None if is_known => Change::Changed,
            None => Change::New,
        };
        self.add(&row.id, &change)
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    fn rows(&self) -> u64 {
        let Counts { new, changed, unchanged, failed, .. } = self.counts;
        new + changed + unchanged + failed
    }
}

impl Counts {
    fn add(&mut self, change: &Change) {
        *match change {
            Change::New => &mut self.new,
            Change::Changed => &mut self.changed,
            Change::Unchanged => &mut self.unchanged,
            Change::Deleted => &mut self.deleted,
            Change::Failed(_) => &mut self.failed,
        } += 1;
    }

    /// Such as `3 new, 1 changed, 40 unchanged, 2 deleted, 0 failed`.
    fn line(&self) -> String {
        let Self { new, changed, unchanged, deleted, failed } = self;
        let counts =
            [(new, "new"), (changed, "changed"), (unchanged, "unchanged"), (deleted, "deleted"), (failed, "failed")];
        counts.map(|(number, name)| format!("{} {name}", count(*number))).join(", ")
    }
}

fn name(change: &Change) -> Option<&'static str> {
    match change {
        Change::New => Some("new"),
        Change::Changed => Some("changed"),
        Change::Unchanged => None,
        Change::Deleted => Some("deleted"),
        Change::Failed(_) => Some("failed"),
    }
}

fn line_json(id: &str, change: &Change) -> Option<String> {
    let mut object = json!({"id": id, "change": name(change)?});
    if let Change::Failed(error) = change {
        object["error"] = json!({"code": error.code, "message": error.message});
    }
    Some(object.to_string())
}

fn line_text(id: &str, change: &Change) -> Option<String> {
    let id = clean(id).replace('\n', " ");
    let line = format!("{:<7}  {id}", name(change)?);
    Some(match change {
        Change::Failed(error) => format!("{line}: {}", clean(&error.message).replace('\n', " ")),
        _ => line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2llm_api::{ErrorCode, row_error};

    #[test]
    fn a_change_is_a_line_and_no_change_is_none() {
        let failed = Change::Failed(row_error(ErrorCode::NotUtf8, "b is not\nUTF-8"));
        assert_eq!(line_text("a", &Change::New).unwrap(), "new      a");
        assert_eq!(line_text("b", &failed).unwrap(), "failed   b: b is not UTF-8");
        assert_eq!(line_json("c", &Change::Deleted).unwrap(), r#"{"id":"c","change":"deleted"}"#);
        assert!(line_json("b", &failed).unwrap().contains(r#""code":"NOT_UTF8""#));
        assert_eq!((line_text("d", &Change::Unchanged), line_json("d", &Change::Unchanged)), (None, None));
    }

    #[test]
    fn every_change_is_counted_once() {
        let mut counts = Counts::default();
        let failed = Change::Failed(row_error(ErrorCode::NotUtf8, "no"));
        for change in [Change::New, Change::New, Change::Changed, Change::Unchanged, Change::Deleted, failed] {
            counts.add(&change);
        }
        assert_eq!(counts.line(), "2 new, 1 changed, 1 unchanged, 1 deleted, 1 failed");
    }
}
