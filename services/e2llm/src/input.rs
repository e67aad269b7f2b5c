//! Reads the inputs of bulk commands as a stream of [`Part`]s.
//!
//! A document is any number of [`Part::Piece`]s of at most 1 MiB, then one [`Part::Document`]. What cannot be read
//! becomes a [`Part::Failed`] with its reason, and reading goes on: one bad file does not stop a corpus. Reading
//! runs on its own thread behind a short queue, so memory stays flat however large the input is. What grows
//! is 16 bytes per document, to find duplicate ids.
//!
//! | Module | Reads |
//! |---|---|
//! | [`directory`] | a tree of text and Markdown files |
//! | [`compressed`] | the content of any of them that is gzip or zstd |
//! | [`text`] | one text, piece by piece |
//! | [`jsonl`] | documents, one JSON object per line |
//! | [`parquet`] | documents or questions, one row each |
//! | [`bucket`] | the same from an object store |
//! | [`ids`] | ids of documents that are already encoded |
//! | [`fields`] | the columns of a row that become a document |
//! | [`questions`] | questions, one JSON object per line |
//! | [`sniff`] | the first bytes of everything, to name formats that are not text |

mod bucket;
mod compressed;
mod directory;
mod emitter;
mod fields;
mod ids;
mod jsonl;
mod lines;
mod parquet;
mod path_id;
mod questions;
mod reader;
mod sniff;
mod text;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use e2llm_api::v1::{Row, RowError};
use e2llm_api::{DocId, ErrorCode};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::objects::Object;
use emitter::Emitter;
pub(crate) use emitter::{Key, Report, Stopped, key};
pub(crate) use fields::Columns;
use reader::{Reader, Rows};

/// Parts that may wait between the reading thread and the sender; bounds memory to about as many MiB.
const QUEUE: usize = 8;

/// One step of an input.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Part {
    /// Text of the document that follows: at most 1 MiB; code points may straddle pieces.
    Piece(Vec<u8>),
    /// A document whose pieces came before, or that is already encoded when there were none.
    Document {
        /// Checked, and unique in this input.
        id: String,
        /// Length of the pieces together.
        bytes: u64,
        /// The text of a JSON object of at most 16 KiB, or empty.
        metadata: String,
    },
    /// A document whose text is in the store.
    Stored {
        /// Its id.
        id: String,
        /// blake3 of its text, in hex.
        text_hash: String,
    },
    /// A question to documents that are already encoded: its own id, unique in this input, at least one document, and what
    /// is asked.
    Question(Box<Row>),
    /// A row that cannot be processed. Pieces that came before it are to be dropped.
    Failed {
        /// The id as it was given, or file name and line where there is none.
        id: String,
        /// Why, and what to do.
        error: RowError,
    },
}

/// A source of documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Standard input.
    Stdin,
    /// A directory, a `.jsonl` or a text.
    Path(PathBuf),
    /// A file that a pattern matched; its id is its path below the directory in which the pattern begins.
    Match {
        /// That directory.
        root: PathBuf,
        /// The file.
        path: PathBuf,
    },
    /// An object, or those below a prefix or of a pattern, in a bucket.
    Object(Object),
    /// Documents that are already encoded.
    Ids(Vec<DocId>),
}

/// Reads documents on a thread of its own. Dropping the receiver stops it.
pub(crate) fn read_documents(inputs: Vec<Input>, columns: Columns) -> mpsc::Receiver<Part> {
    read_with_report(inputs, columns).0
}

/// Reads documents, and in the end tells which there were. No report comes from an input that was not read to its end.
pub(crate) fn read_with_report(
    inputs: Vec<Input>,
    columns: Columns,
) -> (mpsc::Receiver<Part>, oneshot::Receiver<Report>) {
    on_thread(Rows::Documents(columns), inputs)
}

/// Reads questions from a `.jsonl` or Parquet file, or from standard input for `-`.
pub(crate) fn read_questions(input: Input) -> mpsc::Receiver<Part> {
    on_thread(Rows::Questions, vec![input]).0
}

/// Reads ids of documents that are already encoded: one a line, or JSON Lines or Parquet with an "id".
pub(crate) fn read_ids(input: Input) -> mpsc::Receiver<Part> {
    on_thread(Rows::Ids, vec![input]).0
}

fn on_thread(rows: Rows, inputs: Vec<Input>) -> (mpsc::Receiver<Part>, oneshot::Receiver<Report>) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let (done, report) = oneshot::channel();
    let runtime = Handle::try_current().ok();
    // A plain thread, because one that waits for standard input must not hold up the end of the process.
    std::thread::spawn(move || {
        let mut emitter = Emitter::new(sender);
        // `Stopped` says that nobody listens any more: there is nobody to tell.
        let reader = Reader { rows, runtime };
        if inputs.iter().try_for_each(|input| reader.read(input, &mut emitter)).is_ok() {
            let _ = done.send(emitter.into_report());
        }
    });
    (receiver, report)
}

/// The first 4 KiB, or all there is: enough for every format that [`sniff`] knows.
fn read_head(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    reader.take(4096).read_to_end(&mut head)?;
    Ok(head)
}

/// Reports a source that cannot be read, so that nobody knows what is in it.
fn lose_io(out: &mut Emitter, id: &str, shown: &str, error: &io::Error) -> Result<(), Stopped> {
    out.lose(id, io_error(shown, error))
}

/// The row error of a file that cannot be read.
fn io_error(shown: &str, error: &io::Error) -> RowError {
    let (code, problem) = match error.kind() {
        io::ErrorKind::NotFound => (ErrorCode::NotFound, "there is no such file or directory; check the path".into()),
        io::ErrorKind::PermissionDenied => (ErrorCode::Unreadable, "permission denied; make it readable".into()),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            (ErrorCode::Unreadable, format!("its compressed data is cut or damaged ({error}); make the file anew"))
        }
        io::ErrorKind::IsADirectory => (ErrorCode::Unreadable, "it is a directory; name a file in it".into()),
        _ => (ErrorCode::Unreadable, format!("it cannot be read ({error}); check the disk or the link")),
    };
    e2llm_api::row_error(code, format!("{shown}: {problem}"))
}

/// A path for a one-line message: control characters are escaped.
fn shown(path: &Path) -> String {
    let mut out = String::new();
    for c in path.display().to_string().chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

#[cfg(test)]
mod tests;
