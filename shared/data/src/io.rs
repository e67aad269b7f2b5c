//! Lines in, lines out: compressed input by suffix, output that appears only when it is whole.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{DataError, Result};
use crate::line::Line;

/// Opens a file; `.gz`, `.zst` and `.zstd` are undone while reading.
pub fn open(path: &Path) -> Result<Box<dyn BufRead>> {
    let file = File::open(path).map_err(DataError::io(path))?;
    let is = |suffix: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(suffix));
    Ok(if is("gz") {
        Box::new(BufReader::new(flate2::read::MultiGzDecoder::new(file)))
    } else if is("zst") || is("zstd") {
        Box::new(BufReader::new(zstd::stream::read::Decoder::new(file).map_err(DataError::io(path))?))
    } else {
        Box::new(BufReader::new(file))
    })
}

/// All bytes of a file that [`open`] opens.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(DataError::io(path))?;
    Ok(bytes)
}

/// The lines of a data file, one in memory at a time; blank ones are skipped, and the first that cannot be used is the last.
pub struct Lines {
    path: PathBuf,
    reader: Box<dyn BufRead>,
    number: u64,
    failed: bool,
}

impl Lines {
    /// Opens a data file.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { path: path.to_owned(), reader: open(path)?, number: 0, failed: false })
    }

    /// Number of the line read last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn read(&mut self) -> Result<Option<Line>> {
        let mut text = String::new();
        loop {
            text.clear();
            self.number += 1;
            match self.reader.read_line(&mut text) {
                Ok(0) => return Ok(None),
                Ok(_) if text.trim().is_empty() => {}
                Ok(_) => return self.parse(&text).map(Some),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    return Err(self.problem(format!("{error}; the file must be JSON Lines in UTF-8")));
                }
                Err(error) => return Err(DataError::io(&self.path)(error)),
            }
        }
    }

    fn parse(&self, text: &str) -> Result<Line> {
        serde_json::from_str(text).map_err(|error| {
            // serde's message on an untagged enum says nothing of what is wrong; broken JSON has a place.
            let what = match serde_json::from_str::<serde::de::IgnoredAny>(text) {
                Ok(_) => "neither a text nor a task".to_owned(),
                Err(_) => error.to_string(),
            };
            let shapes = r#"{"id","text","abstract"?} or {"id","context","prompt","answer"?}"#;
            self.problem(format!("{what}; each line is {shapes}"))
        })
    }

    fn problem(&self, problem: String) -> DataError {
        DataError::Line { path: self.path.clone(), line: self.number, problem }
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let line = self.read();
        self.failed = line.is_err();
        line.transpose()
    }
}

/// Lines written to `NAME.partial`, which becomes `NAME` on [`commit`](Self::commit) and else goes away, unless resumable.
#[derive(Debug)]
pub struct LineWriter {
    path: PathBuf,
    partial: PathBuf,
    writer: BufWriter<File>,
    keeps: bool,
}

impl LineWriter {
    /// Begins a file anew.
    pub fn create(path: &Path) -> Result<Self> {
        let partial = partial(path);
        let file = File::create(&partial).map_err(DataError::io(&partial))?;
        Ok(Self { path: path.to_owned(), partial, writer: BufWriter::new(file), keeps: false })
    }

    /// Goes on after the last complete line of what an earlier run left; what it wrote stays if this one ends early, too.
    pub fn resume(path: &Path) -> Result<Self> {
        let partial = partial(path);
        let options = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&partial);
        let mut file = options.map_err(DataError::io(&partial))?;
        let whole = whole_lines(&mut file).map_err(DataError::io(&partial))?;
        file.set_len(whole).and_then(|()| file.seek(SeekFrom::End(0))).map_err(DataError::io(&partial))?;
        Ok(Self { path: path.to_owned(), partial, writer: BufWriter::new(file), keeps: true })
    }

    /// The file while it is unfinished.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Writes one line.
    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.writer, line).map_err(io::Error::from).map_err(DataError::io(&self.partial))?;
        self.writer.write_all(b"\n").map_err(DataError::io(&self.partial))
    }

    /// Hands all lines to the system, so that a kill loses none of them.
    pub fn flush(&mut self) -> Result<()> {
        self.writer.flush().map_err(DataError::io(&self.partial))
    }

    /// Makes the file visible under its name.
    pub fn commit(mut self) -> Result<()> {
        self.flush()?;
        self.writer.get_ref().sync_all().map_err(DataError::io(&self.partial))?;
        std::fs::rename(&self.partial, &self.path).map_err(DataError::io(&self.path))?;
        self.keeps = true;
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        if !self.keeps {
            // Nothing depends on its removal: the next run begins it anew.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Bytes up to and with the last line break.
fn whole_lines(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut block = [0; 4096];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let block = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::line::PlainLine;
    use std::fs;

    fn plain(id: &str) -> PlainLine {
        PlainLine { id: id.into(), text: "text".into(), summary: None, split: None }
    }

    #[test]
    fn gzip_and_zstd_are_undone_by_suffix() {
        let dir = tempfile::tempdir().unwrap();
        let json = b"{\"id\":\"a\",\"text\":\"t\"}\n\n";
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(json).unwrap();
        fs::write(dir.path().join("a.jsonl.gz"), gzip.finish().unwrap()).unwrap();
        fs::write(dir.path().join("a.jsonl.zst"), zstd::encode_all(&json[..], 1).unwrap()).unwrap();
        fs::write(dir.path().join("a.jsonl"), json).unwrap();
        for name in ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"] {
            let ids: Vec<String> =
                Lines::open(&dir.path().join(name)).unwrap().map(|l| l.unwrap().id().to_owned()).collect();
            assert_eq!(ids, ["a"], "{name}");
        }
    }

    #[test]
    fn an_error_names_file_and_line_and_shape() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.jsonl");
        for (bad, part) in [("{\"id\":\"b\"}", "neither"), ("{\"id\":", "EOF"), ("{\"id\":\"\u{1}\"}", "control")] {
            fs::write(&path, format!("{{\"id\":\"a\",\"text\":\"t\"}}\n\n{bad}\n")).unwrap();
            let error = Lines::open(&path).unwrap().last().unwrap().unwrap_err().to_string();
            assert!(error.contains("bad.jsonl line 3") && error.contains(part), "{error}");
            assert!(error.contains(r#"{"id","text","abstract"?}"#), "{error}");
        }
        fs::write(&path, b"\xff\n").unwrap();
        assert!(Lines::open(&path).unwrap().last().unwrap().unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        let mut writer = LineWriter::create(&path).unwrap();
        writer.write(&plain("a")).unwrap();
        assert!(!path.exists());
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut writer = LineWriter::create(&path).unwrap();
        writer.write(&plain("a")).unwrap();
        writer.commit().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"id\":\"a\",\"text\":\"text\"}\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn resuming_goes_on_after_the_last_complete_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        for (left, kept) in [("one\ntwo\nthr", "one\ntwo\n"), ("one", ""), ("", ""), ("one\n", "one\n")] {
            fs::write(dir.path().join("out.jsonl.partial"), left).unwrap();
            let mut writer = LineWriter::resume(&path).unwrap();
            writer.write(&1).unwrap();
            writer.commit().unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{kept}1\n"));
        }
    }
}
