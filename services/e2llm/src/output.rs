//! Where results go: standard output, or a file or object that appears only once it is complete.

mod destination;
mod table;

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use e2llm_api::v1::{JobKind, RowResult};
use serde_json::{Value, json};

use crate::cli::OutputArgs;
use crate::render::row_json;
use destination::Destination;
use table::Table;

/// The sink of a command's results.
#[derive(Debug)]
pub(crate) enum Output {
    /// Text for people on standard output.
    Text,
    /// JSON Lines on standard output.
    Json,
    /// Nowhere: only errors and the tally matter.
    Silent,
    /// JSON Lines in a file or object that is dropped unless [`Output::commit`] makes it final.
    Lines(Box<BufWriter<Destination>>),
    /// Parquet in the same.
    Table(Box<Table>),
    /// Rows that failed go apart.
    Apart { rows: Box<Output>, errors: Box<BufWriter<Destination>> },
}

impl Output {
    /// Opens `--output` and `--errors`, so that a path that cannot be written fails before the work starts.
    pub(crate) fn open(args: &OutputArgs, json: bool) -> Result<Self> {
        let is_same = args.output.is_some() && args.output == args.errors;
        if is_same {
            bail!("--output and --errors name the same file; give them different names");
        }
        let rows = match &args.output {
            Some(path) => Self::at(path)?,
            None if json => Output::Json,
            None => Output::Text,
        };
        let Some(errors) = &args.errors else { return Ok(rows) };
        let errors = Box::new(BufWriter::new(Destination::open("--errors", errors)?));
        Ok(Output::Apart { rows: Box::new(rows), errors })
    }

    fn at(path: &Path) -> Result<Self> {
        let destination = Destination::open("--output", path)?;
        let is_table = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet"));
        Ok(if is_table {
            Output::Table(Box::new(Table::new(destination)))
        } else {
            Output::Lines(Box::new(BufWriter::new(destination)))
        })
    }

    /// Whether results are data for programs.
    pub(crate) fn is_json(&self) -> bool {
        match self {
            Output::Text | Output::Silent => false,
            Output::Json | Output::Lines(_) | Output::Table(_) => true,
            Output::Apart { rows, .. } => rows.is_json(),
        }
    }

    /// Where all errors are kept, if not on standard output.
    pub(crate) fn keeps_errors(&self) -> Option<&'static str> {
        match self {
            Output::Text | Output::Json | Output::Silent => None,
            Output::Lines(_) | Output::Table(_) => Some("output"),
            Output::Apart { .. } => Some("errors"),
        }
    }

    /// Writes a finished row as data.
    pub(crate) fn row(&mut self, kind: JobKind, row: &RowResult) -> Result<()> {
        match self {
            Output::Table(table) => table.row(kind, row),
            Output::Apart { rows, errors } => match &row.error {
                Some(error) => {
                    let (code, message) = (&error.code, &error.message);
                    let line = json!({"id": row.id, "code": code, "attempts": row.attempts, "message": message});
                    write_line(errors, &line)
                }
                None => rows.row(kind, row),
            },
            _ => self.json(&row_json(kind, row)),
        }
    }

    /// Writes one JSON line.
    pub(crate) fn json(&mut self, value: &Value) -> Result<()> {
        match self {
            Output::Silent => Ok(()),
            Output::Text | Output::Json => print_line(&value.to_string()),
            Output::Lines(writer) => write_line(writer, value),
            Output::Table(_) => bail!("Parquet takes the rows of bulk commands only; name a .jsonl for one answer"),
            Output::Apart { rows, .. } => rows.json(value),
        }
    }

    /// Makes the output final: until here nothing stands under its name.
    pub(crate) fn commit(self) -> Result<()> {
        match self {
            Output::Text | Output::Json | Output::Silent => Ok(()),
            Output::Lines(writer) => commit(*writer),
            Output::Table(table) => table.commit(),
            Output::Apart { rows, errors } => {
                rows.commit()?;
                commit(*errors)
            }
        }
    }
}

fn write_line(writer: &mut BufWriter<Destination>, value: &Value) -> Result<()> {
    writeln!(writer, "{value}").with_context(|| writer.get_ref().failure())
}

fn commit(writer: BufWriter<Destination>) -> Result<()> {
    let failure = writer.get_ref().failure();
    writer.into_inner().map_err(io::IntoInnerError::into_error).context(failure)?.commit()
}

/// Writes text to standard output as it is, and makes it visible at once.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Writes a line to standard output.
pub(crate) fn print_line(line: &str) -> Result<()> {
    print(&format!("{line}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn file_output(path: &Path) -> Result<Output> {
        Output::open(&OutputArgs { output: Some(path.to_owned()), errors: None }, false)
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let mut output = file_output(&path).unwrap();
        output.json(&json!({"id": "a"})).unwrap();
        assert!(!path.exists());
        output.commit().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"id\":\"a\"}\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn without_a_commit_the_old_file_stays_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        fs::write(&path, "old").unwrap();
        let mut output = file_output(&path).unwrap();
        output.json(&json!({"id": "a"})).unwrap();
        drop(output);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_path_that_cannot_be_written_fails_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let error = file_output(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is a directory"), "{error}");
        let error = file_output(&dir.path().join("missing/out.jsonl")).unwrap_err().to_string();
        assert!(error.contains("missing/out.jsonl") && error.contains("directory exists"), "{error}");
    }

    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let mut output = file_output(Path::new("/dev/null")).unwrap();
        output.json(&json!({"id": "a"})).unwrap();
        output.commit().unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }

    #[test]
    fn failed_rows_go_to_the_errors_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (output, errors) = (dir.path().join("out.jsonl"), dir.path().join("errors.jsonl"));
        let args = OutputArgs { output: Some(output.clone()), errors: Some(errors.clone()) };
        let mut opened = Output::open(&args, false).unwrap();
        let error = Some(e2llm_api::row_error(e2llm_api::ErrorCode::Internal, "it broke"));
        let good = RowResult { id: "a".into(), text: "An answer.".into(), ..Default::default() };
        let bad = RowResult { id: "b".into(), attempts: 3, error, ..Default::default() };
        [good, bad].iter().for_each(|row| opened.row(JobKind::Ask, row).unwrap());
        assert!(!errors.exists());
        opened.commit().unwrap();
        assert_eq!(fs::read_to_string(&output).unwrap(), "{\"id\":\"a\",\"answer\":\"An answer.\"}\n");
        let line = "{\"id\":\"b\",\"code\":\"INTERNAL\",\"attempts\":3,\"message\":\"it broke\"}\n";
        assert_eq!(fs::read_to_string(&errors).unwrap(), line);
        let same = OutputArgs { output: Some(output.clone()), errors: Some(output) };
        assert!(Output::open(&same, false).unwrap_err().to_string().contains("same file"));
    }
}
