//! Which fields of a row of a table (JSON Lines, Parquet) are the document's id, text and metadata.

use clap::Args;
use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, row_error};
use serde_json::{Map, Value};

use super::emitter::{Emitter, Stopped};
use super::lines::kind;
use super::text;

/// Longest metadata of a document, in bytes of its JSON text.
pub(crate) const MAX_METADATA_BYTES: usize = 16 << 10;
/// The field that holds metadata unless others are named.
const METADATA: &str = "metadata";

/// Names of the columns of JSON Lines and Parquet.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[command(next_help_heading = "Columns of JSON Lines and Parquet")]
pub(crate) struct Columns {
    /// Column with the document's id
    #[arg(long = "id-column", value_name = "NAME", default_value = "id")]
    pub(crate) id: String,
    /// Column with its text
    #[arg(long = "text-column", value_name = "NAME", default_value = "text")]
    pub(crate) text: String,
    /// Column to keep as the document's metadata; an object is taken as it is. Given several times, each column
    /// becomes a key of the metadata [default: metadata, if there is one]
    #[arg(long = "metadata-column", value_name = "NAME")]
    pub(crate) metadata: Vec<String>,
}

impl Default for Columns {
    fn default() -> Self {
        Self { id: "id".into(), text: "text".into(), metadata: Vec::new() }
    }
}

impl Columns {
    /// The columns that may hold metadata.
    pub(super) fn metadata_names(&self) -> Vec<&str> {
        if self.metadata.is_empty() { vec![METADATA] } else { self.metadata.iter().map(String::as_str).collect() }
    }

    /// Sends the document of a row. `place` is how messages name the row.
    pub(super) fn document(&self, mut row: Map<String, Value>, place: &str, out: &mut Emitter) -> Result<(), Stopped> {
        let id = match string(&mut row, &self.id, place) {
            Ok(id) => id,
            Err(error) => return out.lose(place, error),
        };
        let fields = out.admit(&id, place).and_then(|_| {
            let text = string(&mut row, &self.text, place)?;
            Ok((text, self.metadata(&mut row, place)?))
        });
        let (text, metadata) = match fields {
            Ok(fields) => fields,
            Err(error) => return out.fail(&id, error),
        };
        if !text::has_content(&text) {
            return out.fail(&id, text::empty(place));
        }
        let bytes = text::send_string(&text, out)?;
        out.document(id, bytes, metadata)
    }

    /// The row's metadata as the text of a JSON object; empty if it has none.
    fn metadata(&self, row: &mut Map<String, Value>, place: &str) -> Result<String, RowError> {
        let invalid = |problem: String| row_error(ErrorCode::InvalidArgument, format!("{place}: {problem}"));
        let object = match self.metadata.as_slice() {
            [] => match row.remove(METADATA) {
                None | Some(Value::Null) => return Ok(String::new()),
                Some(Value::Object(object)) => object,
                Some(other) => {
                    let remedy = "it must be an object; or name other columns with --metadata-column";
                    return Err(invalid(format!("\"{METADATA}\" is {}, {remedy}", kind(&other))));
                }
            },
            [name] => match row.remove(name) {
                None | Some(Value::Null) => return Ok(String::new()),
                Some(Value::Object(object)) => object,
                Some(other) => Map::from_iter([(name.clone(), other)]),
            },
            names => names.iter().filter_map(|name| Some((name.clone(), row.remove(name)?))).filter(is_set).collect(),
        };
        if object.is_empty() {
            return Ok(String::new());
        }
        let text = Value::Object(object).to_string();
        if text.len() > MAX_METADATA_BYTES {
            let size = text.len();
            return Err(invalid(format!(
                "its metadata is {size} bytes of JSON, at most {MAX_METADATA_BYTES} are kept; leave out or shorten fields"
            )));
        }
        Ok(text)
    }
}

fn is_set((_, value): &(String, Value)) -> bool {
    !value.is_null()
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
