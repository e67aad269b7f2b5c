//! Questions from JSON Lines: `{"id": "…", "doc_ids": ["…"], "question": "…"}`. Other fields are ignored.

use std::io::BufRead;

use e2llm_api::v1::RowError;
use e2llm_api::{DocId, ErrorCode, row_error};
use serde_json::{Map, Value};

use super::emitter::{Emitter, Stopped};
use super::lines::{ObjectLines, kind};
use super::{fields, io_error, jsonl};

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
        match jsonl::object(line, &place) {
            Ok(object) => question(object, &place, out)?,
            Err(error) => out.fail(&place, error)?,
        }
    }
}

pub(super) fn question(mut object: Map<String, Value>, place: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let id = match fields::string(&mut object, "id", place) {
        Ok(id) => id,
        Err(error) => return out.fail(place, error),
    };
    let fields = out.admit(&id, place).and_then(|_| Ok((doc_ids(&mut object, place)?, asked(&mut object, place)?)));
    match fields {
        Ok((doc_ids, question)) => out.question(id, doc_ids, question),
        Err(error) => out.fail(&id, error),
    }
}

fn asked(object: &mut Map<String, Value>, place: &str) -> Result<String, RowError> {
    let question = fields::string(object, "question", place)?;
    if question.trim().is_empty() {
        return Err(row_error(ErrorCode::InvalidArgument, format!("{place}: \"question\" is empty; write one")));
    }
    Ok(question)
}

fn doc_ids(object: &mut Map<String, Value>, place: &str) -> Result<Vec<String>, RowError> {
    let invalid = |problem: String| row_error(ErrorCode::InvalidArgument, format!("{place}: {problem}"));
    let expected = "it must be an array of document ids, such as [\"rfc9000.txt\"]";
    let values = match object.remove("doc_ids") {
        Some(Value::Array(values)) if values.is_empty() => {
            return Err(invalid("\"doc_ids\" is empty; name at least one document".into()));
        }
        Some(Value::Array(values)) => values,
        Some(other) => return Err(invalid(format!("\"doc_ids\" is {}; {expected}", kind(&other)))),
        None => return Err(invalid(format!("\"doc_ids\" is missing; {expected}"))),
    };
    let check = |value: Value| match value {
        Value::String(id) => DocId::new(id)
            .map(String::from)
            .map_err(|error| row_error(ErrorCode::InvalidId, format!("{place}: {error}"))),
        other => Err(invalid(format!("\"doc_ids\" holds {}; {expected}", kind(&other)))),
    };
    values.into_iter().map(check).collect()
}
