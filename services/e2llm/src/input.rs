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
//! | [`questions`] | questions, one JSON object per line |
//! | [`sniff`] | the first bytes of everything, to name formats that are not text |

mod compressed;
mod directory;
mod emitter;
mod jsonl;
mod lines;
mod path_id;
mod questions;
mod sniff;
mod text;

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use e2llm_api::v1::RowError;
use e2llm_api::{DocId, ErrorCode};
use tokio::sync::mpsc;

use compressed::Content;
use emitter::Emitter;
pub(crate) use emitter::Stopped;

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
    },
    /// A document whose text is in the store.
    Stored {
        /// Its id.
        id: String,
        /// blake3 of its text, in hex.
        text_hash: String,
    },
    /// A question to documents that are already encoded.
    Question {
        /// The question's own id, unique in this input.
        id: String,
        /// At least one.
        doc_ids: Vec<String>,
        /// Not blank.
        question: String,
    },
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
    /// Documents that are already encoded.
    Ids(Vec<DocId>),
}

/// Reads documents on a thread of its own. Dropping the receiver stops it.
pub(crate) fn read_documents(inputs: Vec<Input>) -> mpsc::Receiver<Part> {
    on_thread(move |out| inputs.iter().try_for_each(|input| read_input(input, out)))
}

/// Reads questions from a `.jsonl` file, or from standard input for `-`.
pub(crate) fn read_questions(input: String) -> mpsc::Receiver<Part> {
    on_thread(move |out| {
        if input == "-" {
            return read_questions_from(Content::of(io::stdin().lock()), "standard input", out);
        }
        let path = Path::new(&input);
        read_questions_from(Content::open(path).map(|(content, _)| content), &shown(path), out)
    })
}

fn read_questions_from(content: io::Result<Content>, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    match content {
        Ok(content) if sniff::foreign(&content.head).is_none() => {
            questions::read(BufReader::new(content.reader), shown, out)
        }
        Ok(content) => text::fail_foreign(out, shown, shown, &content.head),
        Err(error) => fail_io(out, shown, shown, &error),
    }
}

fn on_thread(read: impl FnOnce(&mut Emitter) -> Result<(), Stopped> + Send + 'static) -> mpsc::Receiver<Part> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    // A plain thread, because one that waits for standard input must not hold up the end of the process.
    std::thread::spawn(move || {
        let mut emitter = Emitter::new(sender);
        // `Stopped` says that nobody listens any more: there is nobody to tell.
        let _ = read(&mut emitter);
    });
    receiver
}

fn read_input(input: &Input, out: &mut Emitter) -> Result<(), Stopped> {
    match input {
        Input::Stdin => read_unnamed(io::stdin().lock(), "stdin", "standard input", out),
        Input::Path(path) if path.is_dir() => directory::read(path, out),
        Input::Path(path) => read_file(path, Path::new(path.file_name().unwrap_or(path.as_os_str())), out),
        Input::Match { root, path } => read_file(path, path.strip_prefix(root).unwrap_or(path), out),
        Input::Ids(ids) => {
            for id in ids {
                match out.admit(id.as_str(), "the command line") {
                    Ok(id) => out.document(id, 0)?,
                    Err(error) => out.fail(id.as_str(), error)?,
                }
            }
            Ok(())
        }
    }
}

/// A file named on the command line. Its first bytes decide, not its extension: whoever names a file means it.
/// `name` becomes its id.
fn read_file(path: &Path, name: &Path, out: &mut Emitter) -> Result<(), Stopped> {
    let (shown, id) = (shown(path), path_id::encode(name));
    let (content, is_regular) = match Content::open(path) {
        Ok(opened) => opened,
        Err(error) => return fail_io(out, &id, &shown, &error),
    };
    if !is_regular {
        return read_content(content, &id, &shown, out);
    }
    match sniff::Extension::of(&compressed::inner_name(path)) {
        sniff::Extension::JsonLines if sniff::foreign(&content.head).is_some() => {
            text::fail_foreign(out, &id, &shown, &content.head)
        }
        sniff::Extension::JsonLines => jsonl::read(BufReader::new(content.reader), &shown, out),
        sniff::Extension::Foreign(format) => out.fail(&id, compressed::foreign(format, path)),
        _ => text::read(content.reader, &id, &shown, out),
    }
}

/// Standard input or a pipe.
fn read_unnamed(reader: impl Read + 'static, id: &str, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    match Content::of(reader) {
        Ok(content) => read_content(content, id, shown, out),
        Err(error) => fail_io(out, id, shown, &error),
    }
}

/// JSON Lines if the first byte that is not blank is `{`, otherwise one text.
fn read_content(content: Content, id: &str, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let Content { reader, head } = content;
    let start = head.strip_prefix(text::BOM).unwrap_or(&head);
    let first = start.iter().find(|byte| !byte.is_ascii_whitespace());
    let is_jsonl = first == Some(&b'{') && sniff::foreign(&head).is_none();
    if is_jsonl { jsonl::read(BufReader::new(reader), shown, out) } else { text::read(reader, id, shown, out) }
}

/// The first 4 KiB, or all there is: enough for every format that [`sniff`] knows.
fn read_head(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    reader.take(4096).read_to_end(&mut head)?;
    Ok(head)
}

fn fail_io(out: &mut Emitter, id: &str, shown: &str, error: &io::Error) -> Result<(), Stopped> {
    out.fail(id, io_error(shown, error))
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
