//! From a source to the module that reads it.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use tokio::runtime::Handle;

use super::compressed::{self, Content};
use super::emitter::{Emitter, Stopped};
use super::fields::Columns;
use super::{Input, bucket, directory, ids, jsonl, lose_io, parquet, path_id, questions, shown, sniff, text};

/// What the rows of a table are.
#[derive(Debug)]
pub(super) enum Rows {
    Documents(Columns),
    Questions,
    /// Ids of documents that are already encoded.
    Ids,
}

/// Reads sources one after the other.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) rows: Rows,
    /// Reads object stores.
    pub(super) runtime: Option<Handle>,
}

impl Reader {
    pub(super) fn read(&self, input: &Input, out: &mut Emitter) -> Result<(), Stopped> {
        match input {
            Input::Stdin => self.unnamed(io::stdin().lock(), "stdin", "standard input", out),
            Input::Path(path) if path.is_dir() && self.takes_texts() => directory::read(path, out),
            Input::Path(path) => self.file(path, Path::new(path.file_name().unwrap_or(path.as_os_str())), out),
            Input::Match { root, path } => self.file(path, path.strip_prefix(root).unwrap_or(path), out),
            Input::Object(object) => bucket::read(self, object, out),
            Input::Ids(ids) => ids.iter().try_for_each(|id| stored(id.as_str(), "the command line", out)),
        }
    }

    /// A file named on the command line. Its first bytes decide, not its extension: whoever names a file means it.
    /// `name` becomes its id.
    fn file(&self, path: &Path, name: &Path, out: &mut Emitter) -> Result<(), Stopped> {
        let (shown, id) = (shown(path), path_id::encode(name));
        match Content::open(path) {
            Ok((content, true)) if parquet::is_parquet(&content.head) && !content.is_compressed => {
                match File::open(path) {
                    Ok(file) => parquet::read(file, &self.rows, &shown, out),
                    Err(error) => lose_io(out, &id, &shown, &error),
                }
            }
            Ok((content, true)) => self.named(content, path, &id, &shown, out),
            Ok((content, false)) => self.content(content, &id, &shown, out),
            Err(error) => lose_io(out, &id, &shown, &error),
        }
    }

    /// A source whose name may say what it holds.
    pub(super) fn named(
        &self,
        content: Content,
        path: &Path,
        id: &str,
        shown: &str,
        out: &mut Emitter,
    ) -> Result<(), Stopped> {
        let extension = sniff::Extension::of(&compressed::inner_name(path));
        if parquet::is_parquet(&content.head) {
            return parquet::read_stream(content.reader, &self.rows, shown, out);
        }
        match extension {
            _ if !self.takes_texts() => self.content(content, id, shown, out),
            sniff::Extension::JsonLines if sniff::foreign(&content.head).is_some() => {
                text::lose_foreign(out, id, shown, &content.head)
            }
            sniff::Extension::JsonLines => self.json_lines(content, shown, out),
            sniff::Extension::Foreign(sniff::PARQUET) => parquet::lose_other(shown, out),
            sniff::Extension::Foreign(format) => out.lose(id, compressed::foreign(format, path)),
            _ => text::read(content.reader, id, shown, out),
        }
    }

    /// Standard input or a pipe.
    pub(super) fn unnamed(
        &self,
        reader: impl Read + 'static,
        id: &str,
        shown: &str,
        out: &mut Emitter,
    ) -> Result<(), Stopped> {
        match Content::of(reader) {
            Ok(content) => self.content(content, id, shown, out),
            Err(error) => lose_io(out, id, shown, &error),
        }
    }

    /// Parquet by its first bytes, JSON Lines if the first byte that is not blank is `{`, otherwise one text.
    fn content(&self, content: Content, id: &str, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
        if parquet::is_parquet(&content.head) {
            return parquet::read_stream(content.reader, &self.rows, shown, out);
        }
        let start = content.head.strip_prefix(text::BOM).unwrap_or(&content.head);
        let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
        let is_foreign = sniff::foreign(&content.head).is_some();
        match (is_foreign, self.takes_texts(), first) {
            (true, false, _) => text::lose_foreign(out, id, shown, &content.head),
            (false, false, _) | (false, true, Some(b'{')) => self.json_lines(content, shown, out),
            _ => text::read(content.reader, id, shown, out),
        }
    }

    fn json_lines(&self, content: Content, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
        let reader = BufReader::new(content.reader);
        match &self.rows {
            Rows::Documents(columns) => jsonl::read(reader, columns, shown, out),
            Rows::Questions => questions::read(reader, shown, out),
            Rows::Ids => ids::read(reader, shown, out),
        }
    }

    /// Whether a source may be one text.
    pub(super) fn takes_texts(&self) -> bool {
        matches!(self.rows, Rows::Documents(_))
    }
}

/// Sends a document that is already encoded; `origin` is where its id stands.
pub(super) fn stored(id: &str, origin: &str, out: &mut Emitter) -> Result<(), Stopped> {
    match out.admit(id, origin) {
        Ok(id) => out.document(id, 0, String::new()),
        Err(error) => out.fail(id, error),
    }
}
