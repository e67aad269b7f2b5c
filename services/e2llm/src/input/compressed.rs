//! gzip and zstd around a file: undone while reading, so that nothing is unpacked to disk.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

use e2llm_api::v1::RowError;

use super::sniff::Format;
use super::{read_head, shown};

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// The content of a file or pipe, and its first bytes once more.
pub(super) struct Content {
    /// All of it, the first bytes included.
    pub(super) reader: Box<dyn Read>,
    /// The first 4 KiB, or all there is.
    pub(super) head: Vec<u8>,
    /// Whether a layer of compression was taken off.
    pub(super) is_compressed: bool,
}

impl Content {
    /// Takes one layer of compression off, if the first bytes are those of one.
    pub(super) fn of(mut raw: impl Read + 'static) -> io::Result<Self> {
        let head = read_head(&mut raw)?;
        let (is_gzip, is_zstd) = (head.starts_with(GZIP), head.starts_with(ZSTD));
        let raw = Cursor::new(head.clone()).chain(raw);
        // Files may be several compressed ones in a row, as `cat` makes them; both decoders read on.
        let mut inner: Box<dyn Read> = match (is_gzip, is_zstd) {
            (true, _) => Box::new(flate2::read::MultiGzDecoder::new(raw)),
            (_, true) => Box::new(zstd::stream::read::Decoder::new(raw)?),
            _ => return Ok(Self { reader: Box::new(raw), head, is_compressed: false }),
        };
        let head = read_head(&mut inner)?;
        Ok(Self { reader: Box::new(Cursor::new(head.clone()).chain(inner)), head, is_compressed: true })
    }

    /// The content of a file, and whether it is a regular one.
    pub(super) fn open(path: &Path) -> io::Result<(Self, bool)> {
        let file = File::open(path)?;
        let is_regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
        Ok((Self::of(file)?, is_regular))
    }
}

/// The name without the extension that says how it is compressed: `a.jsonl` of `a.jsonl.gz`.
pub(super) fn inner_name(path: &Path) -> PathBuf {
    let compressed = path
        .extension()
        .is_some_and(|extension| ["gz", "zst", "zstd"].iter().any(|known| extension.eq_ignore_ascii_case(known)));
    if compressed { path.with_extension("") } else { path.to_owned() }
}

/// The row error of a file whose name, without the compression, says `format`.
pub(super) fn foreign(format: Format, path: &Path) -> RowError {
    let inner = inner_name(path);
    let mut error = format.error(&shown(&inner));
    if inner != path {
        error.message = format!("{} is compressed; unpack it first: {}", shown(path), error.message);
    }
    error
}
