//! Results as a Parquet file: the fields of the JSON rows as columns, with `error_code` and `error_message` flat and
//! `usage` and `metadata` as JSON text.

use std::mem::take;
use std::sync::Arc;

use anyhow::{Context, Result};
use e2llm_api::v1::{JobKind, RowResult};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use serde_json::{Map, Value};

use super::destination::Destination;
use crate::render::row_json;

/// Rows of a row group, unless their texts fill it before.
const GROUP_ROWS: usize = 10_000;
/// Bytes of text in a row group.
const GROUP_BYTES: usize = 16 << 20;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    Text,
    Integer,
    Flag,
}
use Type::{Flag, Integer, Text};

type Column = (&'static str, Type);

const ENCODED: &[Column] = &[
    ("id", Text),
    ("chunks", Integer),
    ("soft_tokens", Integer),
    ("source_tokens", Integer),
    ("text_bytes", Integer),
    ("ratio", Integer),
    ("version", Integer),
    ("fingerprint", Text),
    ("text_hash", Text),
    ("text_stored", Flag),
    ("encoded_unix_ms", Integer),
    ("metadata", Text),
    ("unchanged", Flag),
    ("error_code", Text),
    ("error_message", Text),
];
const SUMMARIZED: &[Column] = &[
    ("id", Text),
    ("summary", Text),
    ("unchanged", Flag),
    ("usage", Text),
    ("error_code", Text),
    ("error_message", Text),
];
const ANSWERED: &[Column] =
    &[("id", Text), ("answer", Text), ("usage", Text), ("error_code", Text), ("error_message", Text)];

const TRAINED: &[Column] = &[
    ("id", Text),
    ("left_out", Flag),
    ("losses", Text),
    ("targets", Integer),
    ("positions", Integer),
    ("bundle", Text),
    ("error_code", Text),
    ("error_message", Text),
];

fn columns_of(kind: JobKind) -> &'static [Column] {
    match kind {
        JobKind::Encode | JobKind::Unspecified => ENCODED,
        JobKind::Summarize => SUMMARIZED,
        JobKind::Ask => ANSWERED,
        JobKind::Train => TRAINED,
    }
}

/// A file of which at most one row group is in memory.
#[derive(Debug)]
pub(crate) struct Table {
    file: Part,
    rows: Vec<Map<String, Value>>,
    bytes: usize,
}

/// The columns are known with the first row.
enum Part {
    Waiting(Destination),
    Open {
        columns: &'static [Column],
        writer: Box<SerializedFileWriter<Destination>>,
    },
    /// Writing failed, or is over.
    Closed,
}

impl Table {
    pub(super) fn new(destination: Destination) -> Self {
        Self { file: Part::Waiting(destination), rows: Vec::new(), bytes: 0 }
    }

    pub(super) fn row(&mut self, kind: JobKind, row: &RowResult) -> Result<()> {
        self.file.open(columns_of(kind))?;
        let Value::Object(mut object) = row_json(kind, row) else { return Ok(()) };
        if let Some(error) = &row.error {
            object.insert("error_code".into(), error.code.clone().into());
            object.insert("error_message".into(), error.message.clone().into());
        }
        self.bytes += object.values().filter_map(Value::as_str).map(str::len).sum::<usize>();
        self.rows.push(object);
        if self.rows.len() >= GROUP_ROWS || self.bytes >= GROUP_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        let rows = take(&mut self.rows);
        self.bytes = 0;
        match &mut self.file {
            Part::Open { columns, writer } if !rows.is_empty() => {
                let failure = writer.inner().failure();
                write_group(writer, columns, &rows).context(failure)
            }
            _ => Ok(()),
        }
    }

    /// Ends the file and makes it visible.
    pub(super) fn commit(mut self) -> Result<()> {
        self.file.open(ANSWERED)?;
        self.flush()?;
        let Part::Open { writer, .. } = self.file else { return Ok(()) };
        let failure = writer.inner().failure();
        writer.into_inner().context(failure)?.commit()
    }
}

impl Part {
    fn open(&mut self, columns: &'static [Column]) -> Result<()> {
        *self = match std::mem::replace(self, Part::Closed) {
            Part::Waiting(destination) => {
                let failure = destination.failure();
                Part::Open { columns, writer: Box::new(writer(destination, columns).context(failure)?) }
            }
            other => other,
        };
        Ok(())
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Part::Waiting(_) => "Waiting",
            Part::Open { .. } => "Open",
            Part::Closed => "Closed",
        })
    }
}

fn writer(destination: Destination, columns: &[Column]) -> Result<SerializedFileWriter<Destination>, ParquetError> {
    let field = |(name, of): &Column| match of {
        Text => format!("OPTIONAL BYTE_ARRAY {name} (UTF8);"),
        Integer => format!("OPTIONAL INT64 {name};"),
        Flag => format!("OPTIONAL BOOLEAN {name};"),
    };
    let fields: Vec<String> = columns.iter().map(field).collect();
    let schema = parse_message_type(&format!("message rows {{ {} }}", fields.join(" ")))?;
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    SerializedFileWriter::new(destination, Arc::new(schema), Arc::new(properties))
}

fn write_group(
    writer: &mut SerializedFileWriter<Destination>,
    columns: &[Column],
    rows: &[Map<String, Value>],
) -> Result<(), ParquetError> {
    let mut group = writer.next_row_group()?;
    for (name, of) in columns {
        let Some(mut column) = group.next_column()? else { break };
        let fields = rows.iter().map(|row| row.get(*name).filter(|value| !value.is_null()));
        match of {
            Text => write_column::<ByteArrayType>(&mut column, fields.map(|value| value.map(text)))?,
            Integer => write_column::<Int64Type>(&mut column, fields.map(|value| value?.as_i64()))?,
            Flag => write_column::<BoolType>(&mut column, fields.map(|value| value?.as_bool()))?,
        }
        column.close()?;
    }
    group.close()?;
    Ok(())
}

fn write_column<T: DataType>(
    column: &mut SerializedColumnWriter<'_>,
    fields: impl Iterator<Item = Option<T::T>>,
) -> Result<(), ParquetError> {
    let (mut values, mut levels) = (Vec::new(), Vec::new());
    for field in fields {
        levels.push(i16::from(field.is_some()));
        values.extend(field);
    }
    column.typed::<T>().write_batch(&values, Some(&levels), None)?;
    Ok(())
}

/// A string as it is, anything else as JSON.
fn text(value: &Value) -> ByteArray {
    match value {
        Value::String(text) => text.clone().into_bytes().into(),
        other => other.to_string().into_bytes().into(),
    }
}
