//! Rows of Parquet files, as the same JSON objects that lines of JSON Lines are.
//!
//! A file is read row group by row group and in small batches of rows, of the needed columns alone. The format needs
//! to seek: what comes as a stream (compressed, from a pipe, from an object store) goes through a temporary file.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use ::parquet::errors::ParquetError;
use ::parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use ::parquet::record::reader::{ReaderIter, TreeBuilder};
use ::parquet::record::{Field, Row};
use ::parquet::schema::types::{SchemaDescPtr, SchemaDescriptor, Type};
use e2llm_api::v1::RowError;
use e2llm_api::{ErrorCode, row_error};
use serde_json::{Map, Number, Value};

use super::emitter::{Emitter, Stopped};
use super::reader::Rows;
use super::{ids, lose_io, questions, text};

/// Rows decoded at once.
const BATCH_ROWS: usize = 16;
/// Longest cause in a message.
const CAUSE_CHARS: usize = 200;
const MAGIC: &[u8] = b"PAR1";

/// Whether a file that begins with `head` is meant to be Parquet. Text may begin with these letters.
pub(super) fn is_parquet(head: &[u8]) -> bool {
    head.starts_with(MAGIC) && super::sniff::foreign(head).is_some()
}

/// Reports a file that is Parquet by its name alone.
pub(super) fn lose_other(shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    out.lose(shown, damaged(shown, "it does not begin with PAR1"))
}

/// Reads a stream by way of a temporary file.
pub(super) fn read_stream(mut reader: impl Read, rows: &Rows, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let spool = || -> io::Result<File> {
        let mut file = tempfile::tempfile()?;
        io::copy(&mut reader, &mut file)?;
        file.rewind()?;
        Ok(file)
    };
    match { spool }() {
        Ok(file) => read(file, rows, shown, out),
        Err(error) => lose_io(out, shown, shown, &error),
    }
}

/// Reads to the end, or to the first damage, which is one row error.
pub(super) fn read(file: File, rows: &Rows, shown: &str, out: &mut Emitter) -> Result<(), Stopped> {
    let mut table = match Table::open(file, rows, shown) {
        Ok(table) => table,
        Err(error) => return out.lose(shown, error),
    };
    let mut number = 0_u64;
    loop {
        let row = match table.next() {
            Ok(Some(row)) => row,
            Ok(None) => return Ok(()),
            Err(cause) => return out.lose(shown, damaged(shown, &cause)),
        };
        number += 1;
        let place = format!("{shown} row {number}");
        match (object(row, rows, &place), rows) {
            (Err(error), _) => out.lose(&place, error)?,
            (Ok(object), Rows::Documents(columns)) => columns.document(object, &place, out)?,
            (Ok(object), Rows::Questions) => questions::question(object, &place, out)?,
            (Ok(object), Rows::Ids) => ids::id(object, &place, out)?,
        }
    }
}

/// The rows of a file.
struct Table {
    file: SerializedFileReader<File>,
    /// Of the columns that are read.
    columns: SchemaDescPtr,
    next_group: usize,
    rows: Option<ReaderIter>,
}

impl Table {
    fn open(file: File, rows: &Rows, shown: &str) -> Result<Self, RowError> {
        let file = guarded(|| SerializedFileReader::new(file)).map_err(|cause| damaged(shown, &cause))?;
        let root = file.metadata().file_metadata().schema_descr().root_schema();
        let columns = projection(root, rows, shown)?;
        Ok(Self { file, columns: Arc::new(SchemaDescriptor::new(Arc::new(columns))), next_group: 0, rows: None })
    }

    /// The next row; the error says what is damaged.
    fn next(&mut self) -> Result<Option<Row>, String> {
        guarded(|| {
            loop {
                if let Some(row) = self.rows.as_mut().and_then(Iterator::next) {
                    return row.map(Some);
                }
                if self.next_group >= self.file.num_row_groups() {
                    return Ok(None);
                }
                let group: Box<dyn RowGroupReader + '_> = self.file.get_row_group(self.next_group)?;
                let builder = TreeBuilder::new().with_batch_size(BATCH_ROWS);
                self.rows = Some(builder.as_iter(self.columns.clone(), &*group)?);
                self.next_group += 1;
            }
        })
    }
}

/// Runs the decoder, which panics on some damaged files.
fn guarded<T>(work: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("its pages contradict each other".to_owned()),
    }
}

fn damaged(shown: &str, cause: &str) -> RowError {
    // Some causes quote the whole text that is wrong.
    let cause: String = cause.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(CAUSE_CHARS).collect();
    let message =
        format!("{shown}: the Parquet file is damaged or uses what is not supported ({cause}); write it anew");
    row_error(ErrorCode::Unreadable, message)
}

/// The schema of the columns that are needed, all of which must be there.
fn projection(root: &Type, rows: &Rows, shown: &str) -> Result<Type, RowError> {
    let (mut needed, mut optional) = (Vec::new(), Vec::new());
    match rows {
        Rows::Questions => needed.extend(["id", "doc_ids", "question"]),
        Rows::Ids => needed.push("id"),
        Rows::Documents(columns) => {
            needed.extend([columns.id.as_str(), columns.text.as_str()]);
            let named = !columns.metadata.is_empty();
            (if named { &mut needed } else { &mut optional }).extend(columns.metadata_names());
        }
    }
    let has = |name: &str| root.get_fields().iter().any(|field| field.name() == name);
    if let Some(missing) = needed.iter().find(|name| !has(name)) {
        let there: Vec<&str> = root.get_fields().iter().map(|field| field.name()).collect();
        let options = match rows {
            Rows::Documents(_) => "; choose with --id-column, --text-column, --metadata-column",
            Rows::Questions | Rows::Ids => "",
        };
        let message = format!("{shown} has no column {missing:?}, but {}{options}", there.join(", "));
        return Err(row_error(ErrorCode::InvalidArgument, message));
    }
    needed.extend(optional);
    let fields = root.get_fields().iter().filter(|field| needed.contains(&field.name())).cloned().collect();
    let built = Type::group_type_builder(root.name()).with_fields(fields).build();
    built.map_err(|error| damaged(shown, &error.to_string()))
}

/// A row as the object that [`super::jsonl`] would have read. Integers are ids by their decimal text, and a text that
/// is null is an empty one.
fn object(row: Row, rows: &Rows, place: &str) -> Result<Map<String, Value>, RowError> {
    let mut object = Map::new();
    for (name, field) in row.into_columns() {
        let value = value(field).map_err(|offset| text::not_utf8(&format!("{place}: column {name:?}"), offset))?;
        let value = match (rows, value) {
            (Rows::Documents(columns), Value::Number(id)) if name == columns.id => Value::String(id.to_string()),
            (Rows::Documents(columns), Value::Null) if name == columns.text => Value::String(String::new()),
            (Rows::Documents(columns), Value::String(text)) if is_json_metadata(columns, &name) => parsed(text),
            (Rows::Questions | Rows::Ids, Value::Number(id)) if name == "id" => Value::String(id.to_string()),
            (_, value) => value,
        };
        object.insert(name, value);
    }
    Ok(object)
}

/// Whether the column is the only one of metadata, and so may hold the JSON text of all of it.
fn is_json_metadata(columns: &super::Columns, name: &str) -> bool {
    columns.metadata_names() == [name] && name != columns.id && name != columns.text
}

fn parsed(text: String) -> Value {
    match serde_json::from_str(&text) {
        Ok(Value::Object(object)) => Value::Object(object),
        _ => Value::String(text),
    }
}

/// A field as JSON; the error is the first byte of a text that is not UTF-8.
fn value(field: Field) -> Result<Value, u64> {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => flag.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => float(number.into()),
        Field::Float(number) => float(number.into()),
        Field::Double(number) => float(number),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => text.into(),
            Err(error) => return Err(error.valid_up_to() as u64),
        },
        Field::Group(row) => Value::Object(
            row.into_columns()
                .into_iter()
                .map(|(name, field)| Ok((name, value(field)?)))
                .collect::<Result<_, u64>>()?,
        ),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect::<Result<_, u64>>()?,
        Field::MapInternal(map) => Value::Object(
            map.entries()
                .iter()
                .map(|(name, field)| Ok((plain(value(name.clone())?), value(field.clone())?)))
                .collect::<Result<_, u64>>()?,
        ),
        // Dates, times and decimals: as they are written.
        other => other.to_string().into(),
    })
}

/// A map's key as an object's.
fn plain(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}
