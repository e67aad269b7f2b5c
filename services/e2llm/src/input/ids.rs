//! Ids of documents that are already encoded: one a line, or JSON Lines with an `"id"`, such as other commands print.

use std::io::{BufRead, Read};

use e2llm_api::{ErrorCode, row_error};
use serde_json::{Map, Value};

use super::emitter::{Emitter, Stopped};
use super::lines::ObjectLines;
use super::{fields, io_error, jsonl, reader};

/// Longest line that is looked at whole; an id is shorter.
const MAX_LINE_BYTES: u64 = 4096;

/// Reads to the end. `shown` is how messages name the file.
pub(super) fn read(mut lines: impl BufRead, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    match lines.fill_buf() {
        Ok(head) if head.trim_ascii_start().starts_with(b"{") => objects(lines, shown, out),
        Ok(_) => plain(lines, shown, out),
        Err(error) => out.lose(shown, io_error(shown, &error)),
    }
}

fn objects(lines: impl BufRead, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let mut lines = ObjectLines::new(lines);
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => return out.lose(shown, io_error(shown, &error)),
        };
        let place = format!("{shown}:{}", lines.number);
        match jsonl::object(line, &place) {
            Ok(object) => id(object, &place, out)?,
            Err(error) => out.lose(&place, error)?,
        }
    }
}

/// Sends the document that a row names.
pub(super) fn id(mut object: Map<String, Value>, place: &str, out: &mut Emitter) -> Result<(), Stopped> {
    match fields::string(&mut object, "id", place) {
        Ok(id) => reader::stored(&id, place, out),
        Err(error) => out.lose(place, error),
    }
}

fn plain(mut lines: impl BufRead, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let mut number = 0_u64;
    loop {
        let mut line = Vec::new();
        let length = match lines.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
            Ok(0) => return Ok(()),
            Ok(length) => length as u64,
            Err(error) => return out.lose(shown, io_error(shown, &error)),
        };
        number += 1;
        let place = format!("{shown}:{number}");
        if length == MAX_LINE_BYTES && !line.ends_with(b"\n") {
            let message = format!("{place}: the line is longer than any id; give one id a line");
            return out.lose(&place, row_error(ErrorCode::InvalidId, message));
        }
        match std::str::from_utf8(&line).map(str::trim) {
            Ok("") => {}
            Ok(id) => reader::stored(id, &place, out)?,
            Err(error) => out.lose(&place, super::text::not_utf8(&place, error.valid_up_to() as u64))?,
        }
    }
}
