//! Where results go: standard output, or a file that appears only once it is complete.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;
use tempfile::NamedTempFile;

use crate::cli::OutputArgs;

/// The sink of a command's results.
#[derive(Debug)]
pub(crate) enum Output {
    /// Text for people on standard output.
    Text,
    /// JSON Lines on standard output.
    Json,
    /// Nowhere: only errors and the tally matter.
    Silent,
    /// JSON Lines in a file beside its final name; dropped unless [`Output::commit`] renames it.
    File { path: PathBuf, writer: Box<BufWriter<NamedTempFile>> },
    /// JSON Lines into something that cannot be renamed over, such as `/dev/stdout` or a named pipe.
    Device { path: PathBuf, writer: Box<BufWriter<File>> },
}

impl Output {
    /// Opens the file of `--output`, so that a path that cannot be written fails before the work starts.
    pub(crate) fn open(args: &OutputArgs, json: bool) -> Result<Self> {
        let Some(path) = args.output.clone() else {
            return Ok(if json { Output::Json } else { Output::Text });
        };
        let metadata = path.metadata().ok();
        if metadata.as_ref().is_some_and(|metadata| metadata.is_dir()) {
            bail!("--output {} is a directory; name a file in it", path.display());
        }
        if metadata.is_some_and(|metadata| !metadata.is_file()) {
            let opened = File::options().write(true).open(&path);
            let file = opened.with_context(|| format!("cannot write to --output {}", path.display()))?;
            return Ok(Output::Device { path, writer: Box::new(BufWriter::new(file)) });
        }
        let file = temporary_beside(&path).map_err(|error| {
            // The error's text has the temporary file's name, which says nothing to the user.
            let (path, kind) = (path.display(), error.kind());
            anyhow!("cannot write --output {path} ({kind}); check that its directory exists and is writable")
        })?;
        Ok(Output::File { path, writer: Box::new(BufWriter::new(file)) })
    }

    /// Whether results are JSON.
    pub(crate) fn is_json(&self) -> bool {
        !matches!(self, Output::Text | Output::Silent)
    }

    /// Whether results go to standard output.
    pub(crate) fn is_stdout(&self) -> bool {
        matches!(self, Output::Text | Output::Json)
    }

    /// Writes one JSON line.
    pub(crate) fn json(&mut self, value: &Value) -> Result<()> {
        match self {
            Output::Silent => Ok(()),
            Output::Text | Output::Json => print_line(&value.to_string()),
            Output::File { path, writer } => writeln!(writer, "{value}").with_context(|| full(path)),
            Output::Device { path, writer } => writeln!(writer, "{value}").with_context(|| full(path)),
        }
    }

    /// Makes the output final: until here nothing stands under the file's name.
    pub(crate) fn commit(self) -> Result<()> {
        match self {
            Output::Text | Output::Json | Output::Silent => Ok(()),
            Output::Device { path, mut writer } => writer.flush().with_context(|| full(&path)),
            Output::File { path, writer } => {
                let file = writer.into_inner().map_err(io::IntoInnerError::into_error).with_context(|| full(&path))?;
                file.as_file().sync_all().with_context(|| full(&path))?;
                file.persist(&path).map_err(|error| error.error).with_context(|| full(&path))?;
                Ok(())
            }
        }
    }
}

fn full(path: &Path) -> String {
    format!("cannot write {}; nothing was written under that name, check the space on its disk", path.display())
}

fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    // As any new file: the process's umask applies.
    let permissions = Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(&prefix).suffix(".tmp").permissions(permissions).tempfile_in(directory)
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
        Output::open(&OutputArgs { output: Some(path.to_owned()) }, false)
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
}
