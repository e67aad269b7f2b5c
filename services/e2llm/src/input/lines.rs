//! Lines of bounded length from a reader that may never see a line break.

use std::io::{self, BufRead, Read};

use serde_json::{Map, Value};

use super::text;

/// Longest line, in bytes. A longer document goes in as a file of its own, which streams.
const MAX_LINE_BYTES: usize = 256 << 20;

/// Buffers above this are given back after the line that needed them.
const KEEP_BYTES: usize = 4 << 20;

/// One line, or what is wrong with it.
#[derive(Debug, PartialEq)]
pub(super) enum Line {
    /// A JSON object.
    Object(Map<String, Value>),
    /// Not JSON, or JSON that is not an object; the text is the reason.
    NotAnObject(String),
    /// The line's first byte that is not UTF-8, counted from the start of the line.
    NotUtf8(u64),
    /// Longer than [`MAX_LINE_BYTES`].
    TooLong,
}

/// JSON objects of a file, line by line. Blank lines are skipped but counted.
pub(super) struct ObjectLines<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Number of the line read last, from 1.
    pub(super) number: u64,
    limit: usize,
}

impl<R: BufRead> ObjectLines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: Vec::new(), number: 0, limit: MAX_LINE_BYTES }
    }

    /// The next line that is not blank; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            if self.buffer.capacity() > KEEP_BYTES {
                self.buffer = Vec::new();
            }
            self.buffer.clear();
            let length = self.reader.by_ref().take(self.limit as u64 + 1).read_until(b'\n', &mut self.buffer)?;
            if length == 0 {
                return Ok(None);
            }
            self.number += 1;
            if length > self.limit && !self.buffer.ends_with(b"\n") {
                self.skip_line()?;
                return Ok(Some(Line::TooLong));
            }
            let line = if self.number == 1 { self.buffer.strip_prefix(text::BOM) } else { None };
            let line = line.unwrap_or(&self.buffer);
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Ok(Some(parse(line)));
            }
        }
    }

    /// Reads to the end of the line without keeping it.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let available = self.reader.fill_buf()?;
            let end = available.iter().position(|byte| *byte == b'\n');
            let (used, done) = match end {
                Some(end) => (end + 1, true),
                None => (available.len(), available.is_empty()),
            };
            self.reader.consume(used);
            if done {
                return Ok(());
            }
        }
    }
}

fn parse(line: &[u8]) -> Line {
    let text = match std::str::from_utf8(line) {
        Ok(text) => text,
        Err(error) => return Line::NotUtf8(error.valid_up_to() as u64),
    };
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(object)) => Line::Object(object),
        Ok(other) => Line::NotAnObject(format!("it is {}, not an object", kind(&other))),
        Err(error) => {
            let full = error.to_string();
            let reason = full.split(" at line ").next().unwrap_or(&full);
            Line::NotAnObject(format!("it is not JSON: {reason} at column {}", error.column()))
        }
    }
}

/// A JSON value's type, with its article.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], limit: usize) -> Vec<(u64, Line)> {
        let mut lines = ObjectLines { limit, ..ObjectLines::new(text) };
        let mut out = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            out.push((lines.number, line));
        }
        out
    }

    #[test]
    fn blank_lines_and_crlf_and_a_byte_order_mark_are_fine() {
        let read = lines(b"\xef\xbb\xbf{}\r\n\r\n \n{}", 100);
        assert_eq!(read, [(1, Line::Object(Map::new())), (4, Line::Object(Map::new()))]);
    }

    #[test]
    fn a_line_over_the_limit_is_skipped_whole() {
        let text = [b"{}\n".as_slice(), &[b'x'; 50], b"\n{}\n"].concat();
        let read = lines(&text, 20);
        assert_eq!(read[1], (2, Line::TooLong));
        assert_eq!(read[2], (3, Line::Object(Map::new())));
    }

    #[test]
    fn a_last_line_over_the_limit_ends_the_file() {
        assert_eq!(lines(&[b'x'; 50], 20), [(1, Line::TooLong)]);
    }

    #[test]
    fn what_is_wrong_names_the_place() {
        assert_eq!(lines(b"{\"a\": \"\xff\"}", 100), [(1, Line::NotUtf8(7))]);
        assert_eq!(lines(b"[1]", 100), [(1, Line::NotAnObject("it is an array, not an object".into()))]);
        let (_, line) = lines(b"{\"id\": \"a\",}", 100).remove(0);
        let Line::NotAnObject(reason) = line else { panic!("{line:?}") };
        assert!(reason.contains("not JSON") && reason.ends_with("at column 12"), "{reason}");
    }
}
