//! Reads one text piece by piece, checking that it is text.

use std::io::{self, Read};

use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, MAX_PIECE_BYTES, row_error};

use super::emitter::{Emitter, Stopped};
use super::{io_error, sniff};

/// The byte order mark that some editors put before UTF-8; it is not part of the text.
pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// Reads a document to its end. `shown` is how messages name where it comes from.
pub(super) fn read(reader: impl Read, id: &str, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let id = match out.admit(id, shown) {
        Ok(id) => id,
        Err(error) => return out.fail(id, error),
    };
    match send_pieces(reader, shown, out)? {
        Ok(bytes) => out.document(id, bytes, String::new()),
        Err(error) => out.fail(&id, error),
    }
}

/// Reports a file that begins like a format that is not text.
pub(super) fn lose_foreign(out: &mut Emitter, id: &str, shown: &str, head: &[u8]) -> Result<(), Stopped> {
    sniff::foreign(head).map_or(Ok(()), |format| out.lose(id, format.error(shown)))
}

/// Sends the pieces of a text that is in memory.
pub(super) fn send_string(text: &str, out: &mut Emitter) -> Result<u64, Stopped> {
    for piece in text.as_bytes().chunks(MAX_PIECE_BYTES) {
        out.piece(piece.to_vec())?;
    }
    Ok(text.len() as u64)
}

/// Sends the pieces, and returns their length or what is wrong with the text.
fn send_pieces(mut reader: impl Read, shown: &str, out: &mut Emitter) -> Result<Result<u64, RowError>, Stopped> {
    let mut check = Utf8Check::default();
    let mut bytes = 0;
    loop {
        let mut piece = match read_piece(&mut reader) {
            Ok(piece) => piece,
            Err(error) => return Ok(Err(io_error(shown, &error))),
        };
        let (is_first, is_last) = (check.offset == 0, piece.len() < MAX_PIECE_BYTES);
        if is_first && let Some(format) = sniff::foreign(&piece) {
            return Ok(Err(format.error(shown)));
        }
        let checked = check.push(&piece).and_then(|()| if is_last { check.finish() } else { Ok(()) });
        if let Err(offset) = checked {
            return Ok(Err(not_utf8(shown, offset)));
        }
        if is_last && !check.has_content {
            return Ok(Err(empty(shown)));
        }
        if is_first && piece.starts_with(BOM) {
            piece.drain(..BOM.len());
        }
        bytes += piece.len() as u64;
        if !piece.is_empty() {
            out.piece(piece)?;
        }
        if is_last {
            return Ok(Ok(bytes));
        }
    }
}

/// A full piece, or less at the end of the text.
fn read_piece(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut piece = Vec::new();
    reader.take(MAX_PIECE_BYTES as u64).read_to_end(&mut piece)?;
    Ok(piece)
}

/// The row error of bytes that are not UTF-8, counted from the start of the text.
pub(super) fn not_utf8(shown: &str, offset: u64) -> RowError {
    let message =
        format!("{shown} is not UTF-8 at byte {offset}; convert it, such as with `iconv -f WINDOWS-1252 -t UTF-8`");
    row_error(ErrorCode::NotUtf8, message)
}

/// The row error of a text with nothing in it.
pub(super) fn empty(shown: &str) -> RowError {
    row_error(ErrorCode::EmptyDocument, format!("{shown} has no text, or only white space; leave it out"))
}

/// Checks UTF-8 across pieces.
#[derive(Debug, Default)]
struct Utf8Check {
    /// Bytes seen.
    offset: u64,
    /// The start of a code point whose rest is in the next piece: at most 3 bytes.
    carry: Vec<u8>,
    /// Whether anything but white space was seen.
    has_content: bool,
}

impl Utf8Check {
    /// Checks the next piece; the error is the offset of the first byte that is wrong.
    fn push(&mut self, piece: &[u8]) -> Result<(), u64> {
        let mut rest = piece;
        while !self.carry.is_empty() {
            let Some((&byte, tail)) = rest.split_first() else { break };
            let start = self.offset - self.carry.len() as u64;
            self.carry.push(byte);
            self.offset += 1;
            rest = tail;
            match std::str::from_utf8(&self.carry) {
                Ok(text) => {
                    self.has_content |= has_content(text);
                    self.carry.clear();
                }
                Err(error) if error.error_len().is_some() => return Err(start),
                Err(_) => {}
            }
        }
        self.push_whole(rest)
    }

    /// Checks bytes that begin at a code point.
    fn push_whole(&mut self, bytes: &[u8]) -> Result<(), u64> {
        let valid = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) if error.error_len().is_some() => return Err(self.offset + error.valid_up_to() as u64),
            Err(error) => {
                let (valid, carry) = bytes.split_at(error.valid_up_to());
                self.carry = carry.to_vec();
                std::str::from_utf8(valid).unwrap_or_default()
            }
        };
        self.has_content = self.has_content || has_content(valid);
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Ends the text; the error is the offset of a code point that has no end.
    fn finish(&self) -> Result<(), u64> {
        if self.carry.is_empty() { Ok(()) } else { Err(self.offset - self.carry.len() as u64) }
    }
}

/// Whether there is anything but white space and byte order marks.
pub(super) fn has_content(text: &str) -> bool {
    text.chars().any(|c| !c.is_whitespace() && c != '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&[u8]]) -> Result<(), u64> {
        let mut check = Utf8Check::default();
        pieces.iter().try_for_each(|piece| check.push(piece))?;
        check.finish()
    }

    #[test]
    fn code_points_may_straddle_pieces_anywhere() {
        let text = "a€𝄞é\u{0}z".as_bytes();
        for first in 0..=text.len() {
            for second in first..=text.len() {
                assert_eq!(check(&[&text[..first], &text[first..second], &text[second..]]), Ok(()));
            }
        }
    }

    #[test]
    fn the_first_wrong_byte_is_found_wherever_the_pieces_end() {
        let text = b"abc\xe2\x82(def";
        for split in 0..=text.len() {
            assert_eq!(check(&[&text[..split], &text[split..]]), Err(3), "split at {split}");
        }
    }

    #[test]
    fn a_code_point_without_its_end_is_an_error_at_its_start() {
        assert_eq!(check(&[b"ab\xf0\x9d"]), Err(2));
        assert_eq!(check(&[b"ab\xf0", b"\x9d"]), Err(2));
    }
}
