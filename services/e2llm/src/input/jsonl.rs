//! Documents from JSON Lines: `{"id": "…", "text": "…", "metadata": {…}}`. Other fields are ignored.

use std::io::BufRead;

use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, row_error};
use serde_json::{Map, Value};

use super::emitter::{Emitter, Stopped};
use super::fields::Columns;
use super::lines::{Line, ObjectLines};
use super::{io_error, text};

/// Reads to the end. `shown` is how messages name the file.
pub(super) fn read(reader: impl BufRead, columns: &Columns, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let mut lines = ObjectLines::new(reader);
    loop {
        let line = match lines.next() {
            Ok(Some(line)) => line,
            Ok(None) => return Ok(()),
            Err(error) => return out.lose(shown, io_error(shown, &error)),
        };
        let place = format!("{shown}:{}", lines.number);
        match object(line, &place) {
            Ok(object) => columns.document(object, &place, out)?,
            Err(error) => out.lose(&place, error)?,
        }
    }
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
