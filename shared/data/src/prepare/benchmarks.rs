//! Published benchmarks, read in the forms they are published in: the data is the user's to bring.

mod choices;
mod passages;
mod questions;
mod summaries;

use std::path::Path;

use serde::de::DeserializeOwned;

use super::{Files, Job, Report, shown};
use crate::error::{DataError, Result};
use crate::io;
use crate::line::{Split, TaskLine};

pub use choices::{longbench_v2, quality};
pub(super) use passages::asked;
pub use passages::{hotpotqa, squad};
pub use questions::{narrativeqa, triviaqa};
pub use summaries::{govreport, qmsum};

/// Reads every input with `read`, which hands out tasks; all of them are test.
fn convert(
    job: &mut Job<'_>,
    mut read: impl FnMut(&Path, &mut dyn FnMut(TaskLine) -> Result<()>) -> Result<()>,
) -> Result<Report> {
    let mut files = Files::create(job.output)?;
    for input in job.inputs {
        read(input, &mut |task| {
            files.report.read += 1;
            (job.progress)(files.report.read, None);
            if task.context.trim().is_empty() {
                files.report.drop("no text");
                return Ok(());
            }
            files.task(Split::Test, task)
        })?;
    }
    if files.report.tasks.is_empty() {
        let remedy = "give the benchmark's files as they are published";
        return Err(DataError::Nothing { expected: "tasks", inputs: shown(job.inputs), remedy });
    }
    files.commit()
}

/// The records of a file: one JSON array, or one object per line.
fn records<T: DeserializeOwned>(path: &Path, mut each: impl FnMut(T) -> Result<()>) -> Result<()> {
    let problem = |line, error: serde_json::Error| DataError::Line {
        path: path.to_owned(),
        line,
        problem: format!("{error}; the file is not in the benchmark's published form"),
    };
    let bytes = io::read(path)?;
    if bytes.trim_ascii_start().starts_with(b"[") {
        let all: Vec<T> = serde_json::from_slice(&bytes).map_err(|error| problem(error.line() as u64, error))?;
        return all.into_iter().try_for_each(each);
    }
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        if !line.trim_ascii().is_empty() {
            each(serde_json::from_slice(line).map_err(|error| problem(number, error))?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Lines;
    use crate::line::Line;

    /// What a reader makes of a directory of files.
    pub(super) fn prepared(
        reader: fn(&mut Job<'_>) -> Result<Report>,
        files: &[(&str, &str)],
        input: &str,
    ) -> Result<Vec<TaskLine>> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let (inputs, output) = ([dir.path().join(input)], dir.path().join("out"));
        let question = |question: &str| format!("Q: {question}");
        reader(&mut Job {
            inputs: &inputs,
            output: &output,
            seed: 0,
            summarize: "Summarize.",
            question,
            progress: &mut |_, _| {},
        })?;
        let lines = Lines::open(&output.join("test-tasks.jsonl"))?;
        let task = |line: Result<Line>| match line.unwrap() {
            Line::Task(task) => task,
            Line::Plain(plain) => panic!("{plain:?}"),
        };
        Ok(lines.map(task).inspect(|task| assert_eq!(task.split, Some(Split::Test))).collect())
    }

    #[test]
    fn a_file_in_another_form_is_named_with_its_line() {
        let error = prepared(quality, &[("q.jsonl", "\n{\"article\": 1}\n")], "q.jsonl").unwrap_err().to_string();
        assert!(error.contains("q.jsonl line 2") && error.contains("published form"), "{error}");
        let error = prepared(quality, &[("q.jsonl", "\n")], "q.jsonl").unwrap_err().to_string();
        assert!(error.contains("no tasks in"), "{error}");
    }
}
