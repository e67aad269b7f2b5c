//! What the doctor found, one row per object.

use anyhow::{Context, Result};
use serde_json::json;

use crate::failure::warn_line;
use crate::output::print_line;
use crate::render::count;

/// Something that is not as it should be.
#[derive(Debug)]
struct Problem {
    name: String,
    message: String,
    repaired: bool,
}

/// Findings in the order they were made.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) checked: u64,
    problems: Vec<Problem>,
}

impl Report {
    /// Notes a problem of `name`. A second one of the same name adds to the first, which then needs its own repair.
    pub(super) fn problem(&mut self, name: &str, message: &str, repaired: bool) {
        match self.problems.iter_mut().find(|problem| problem.name == name) {
            Some(known) => {
                known.message = format!("{}; {message}", known.message);
                known.repaired = repaired;
            }
            None => {
                let message = if message.contains(name) { message.to_owned() } else { format!("{name} {message}") };
                self.problems.push(Problem { name: name.to_owned(), message, repaired });
            }
        }
    }

    /// What was wrong with `name` is right again.
    pub(super) fn repaired(&mut self, name: &str) {
        self.problems.iter_mut().filter(|problem| problem.name == name).for_each(|problem| problem.repaired = true);
    }

    pub(super) fn unrepaired(&self) -> usize {
        self.problems.iter().filter(|problem| !problem.repaired).count()
    }

    /// Prints a row per problem, then the sum on standard error unless all is well and `quiet`.
    pub(super) fn print(&self, as_json: bool, quiet: bool, repair: bool) -> Result<()> {
        for Problem { name, message, repaired } in &self.problems {
            let line = match as_json {
                true => json!({"name": name, "problem": message, "repaired": repaired}).to_string(),
                false => format!("{message}{}", if *repaired { " (repaired)" } else { "" }),
            };
            print_line(&line).context("cannot report a problem")?;
        }
        let open = self.unrepaired();
        if quiet && open == 0 {
            return Ok(());
        }
        let hint = if open > 0 && !repair { "; --repair does what can be done" } else { "" };
        let (problems, repaired) = (self.problems.len(), self.problems.len() - open);
        let [checked, problems, repaired] = [self.checked, problems as u64, repaired as u64].map(count);
        warn_line(&format!("{checked} objects checked, {problems} problems, {repaired} repaired{hint}"));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_is_one_problem_and_is_repaired_once() {
        let mut report = Report::default();
        report.problem("blobs/a", "is corrupt", true);
        assert_eq!(report.unrepaired(), 0);
        report.problem("blobs/a", "documents need it", false);
        report.problem("texts/b", "is corrupt", false);
        assert_eq!((report.problems.len(), report.unrepaired()), (2, 2));
        report.repaired("blobs/a");
        assert_eq!(report.unrepaired(), 1);
        assert_eq!(report.problems[0].message, "blobs/a is corrupt; documents need it");
    }
}
