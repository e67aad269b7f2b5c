//! Documents from JSON Lines: `{"id": "…", "text": "…"}`. Other fields are ignored.

use std::io::BufRead;

use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, row_error};
use serde_json::{Map, Value};

use super::emitter::{Emitter, Stopped};
use super::lines::{Line, ObjectLines, kind};
use super::{io_error, text};

/// Reads to the end. `shown` is how messages name the file.
pub(super) fn read(reader: impl BufRead, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let mut lines = ObjectLines::new(reader);
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => return out.fail(shown, io_error(shown, &error)),
        };
        let place = format!("{shown}:{}", lines.number);
        match object(line, &place) {
            Ok(object) => document(object, &place, out)?,
            Err(error) => out.fail(&place, error)?,
        }
    }
}

fn document(mut object: Map<String, Value>, place: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let id = match string(&mut object, "id", place) {
        Ok(id) => id,
        Err(error) => return out.fail(place, error),
    };
    let text = match out.admit(&id, place).and_then(|_| string(&mut object, "text", place)) {
        Ok(text) => text,
        Err(error) => return out.fail(&id, error),
    };
    if !text::has_content(&text) {
        return out.fail(&id, text::empty(place));
    }
    let bytes = text::send_string(&text, out)?;
    out.document(id, bytes)
}

/// The object of a line at `place`, or its row error.
pub(super) fn object(line: Line, place: &str) -> Result<Map<String, Value>, RowError> {
    match line {
        Line::Object(object) => Ok(object),
        Line::NotAnObject(reason) => {
            let message = format!("{place}: {reason}; each line must be one JSON object");
            Err(row_error(ErrorCode::InvalidArgument, message))
        }
        Line::NotUtf8(offset) => Err(text::not_utf8(place, offset)),
        Line::TooLong => {
            let message = format!("{place}: the line is longer than 256 MiB; put that document into a file of its own");
            Err(row_error(ErrorCode::TooLarge, message))
        }
    }
}

/// Takes a string field out of an object.
pub(super) fn string(object: &mut Map<String, Value>, field: &str, place: &str) -> Result<String, RowError> {
    let problem = match object.remove(field) {
        Some(Value::String(value)) => return Ok(value),
        Some(Value::Number(value)) => format!("\"{field}\" is the number {value}; write it as a string, \"{value}\""),
        Some(other) => format!("\"{field}\" is {}; it must be a string", kind(&other)),
        None => format!("\"{field}\" is missing; add it as a string"),
    };
    Err(row_error(ErrorCode::InvalidArgument, format!("{place}: {problem}")))
}
