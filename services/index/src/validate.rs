//! What a request must look like before it may reach the log.

use std::collections::HashMap;

use e2llm_api::v1::{DocKey, DocRecord, DocSummary, Segment};
use e2llm_api::{Collection, DocId, ErrorCode, MAX_ID_BYTES, Metadata};
use e2llm_store::{BlobName, ContentHash};
use prost::Message;

use crate::IndexError;
use crate::doc_index::RecordKey;
use crate::live::Live;
use crate::vectors;

/// Longest fingerprint, in bytes.
const MAX_FINGERPRINT: usize = 128;

/// Longest mean vector, in floats.
pub(crate) const MAX_VECTOR: usize = 16_384;

/// Largest record, encoded, in bytes: the view holds small values only.
const MAX_RECORD: usize = 256 << 10;

/// Longest text and longest instruction of a kept summary, in bytes.
const MAX_SUMMARY: usize = 64 << 10;

/// Checks ids, and the fingerprint unless it is empty.
pub(crate) fn key(key: &DocKey) -> Result<RecordKey, IndexError> {
    document(&key.collection, &key.doc_id)?;
    if !key.fingerprint.is_empty() {
        fingerprint(&key.fingerprint)?;
    }
    Ok(RecordKey {
        collection: key.collection.clone(),
        doc_id: key.doc_id.clone(),
        fingerprint: key.fingerprint.clone(),
    })
}

pub(crate) fn document(collection: &str, doc_id: &str) -> Result<(), IndexError> {
    Collection::new(collection)?;
    DocId::new(doc_id)?;
    Ok(())
}

pub(crate) fn fingerprint(value: &str) -> Result<(), IndexError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._:+@-".contains(c);
    if !value.is_empty() && value.len() <= MAX_FINGERPRINT && value.chars().all(allowed) {
        return Ok(());
    }
    let start: String = value.chars().take(24).collect();
    Err(IndexError::invalid(format!(
        "fingerprint {start:?} is not 1 to {MAX_FINGERPRINT} of a-z, A-Z, 0-9 and ._:+@-; use the bundle's"
    )))
}

/// Checks records by themselves and against each other.
pub(crate) fn records(records: &[DocRecord]) -> Result<(), IndexError> {
    let mut lengths = HashMap::new();
    for record in records {
        let name = &record.doc_id;
        self::record(record)?;
        let group = (&record.collection, &record.fingerprint);
        let length = record.mean_vector.len();
        if *lengths.entry(group).or_insert(length) != length {
            return Err(mixed_lengths(name, length / 4));
        }
    }
    Ok(())
}

/// Checks that vectors have the length of those that are there.
pub(crate) fn lengths(records: &[DocRecord], live: &Live) -> Result<(), IndexError> {
    for record in records {
        let length = record.mean_vector.len() / 4;
        let present = live.vector_length(&record.collection, &record.fingerprint);
        if present.is_some_and(|present| present != length) {
            return Err(mixed_lengths(&record.doc_id, length));
        }
    }
    Ok(())
}

fn record(record: &DocRecord) -> Result<(), IndexError> {
    document(&record.collection, &record.doc_id)?;
    fingerprint(&record.fingerprint)?;
    let of = &record.doc_id;
    ContentHash::parse(&record.text_hash).map_err(|error| bad(of, "text_hash", error))?;
    if record.segments.is_empty() {
        return Err(bad(of, "segments", "is empty; encode the document first"));
    }
    for segment in &record.segments {
        self::segment(record, segment)?;
    }
    vector(&record.mean_vector).map_err(|problem| bad(of, "mean_vector", problem))?;
    Metadata::parse(&record.metadata).map_err(|error| bad(of, "metadata:", error))?;
    let bytes = record.encoded_len();
    if bytes > MAX_RECORD {
        let message = format!("record of document {of:?} has {bytes} bytes; at most {MAX_RECORD} fit the index");
        return Err(IndexError::refused(ErrorCode::TooLarge, message));
    }
    Ok(())
}

/// Checks the summaries of documents of `collection`.
pub(crate) fn summaries(collection: &str, summaries: &[DocSummary]) -> Result<(), IndexError> {
    for DocSummary { doc_id: of, fingerprint, text_hash, summary } in summaries {
        document(collection, of)?;
        self::fingerprint(fingerprint)?;
        ContentHash::parse(text_hash).map_err(|error| bad_summary(of, format!("text_hash {error}")))?;
        let Some(summary) = summary else { return Err(bad_summary(of, "is missing; send one")) };
        for (field, text) in [("text", &summary.text), ("instruction", &summary.instruction)] {
            if text.len() > MAX_SUMMARY {
                let message = format!(
                    "summary of document {of:?}: {field} has {} bytes; at most {MAX_SUMMARY} are kept",
                    text.len()
                );
                return Err(IndexError::refused(ErrorCode::TooLarge, message));
            }
        }
        if summary.job_id.len() > MAX_ID_BYTES {
            return Err(bad_summary(
                of,
                format!("job_id has {} bytes; at most {MAX_ID_BYTES} are allowed", summary.job_id.len()),
            ));
        }
    }
    Ok(())
}

fn bad_summary(doc_id: &str, problem: impl std::fmt::Display) -> IndexError {
    IndexError::invalid(format!("summary of document {doc_id:?}: {problem}"))
}

fn segment(record: &DocRecord, segment: &Segment) -> Result<(), IndexError> {
    let of = &record.doc_id;
    BlobName::new(&segment.input_key, &segment.content_hash).map_err(|error| bad(of, "segments", error))?;
    let Segment { text_start: start, text_end: end, .. } = *segment;
    if start > end || end > record.text_bytes {
        let bytes = record.text_bytes;
        let problem = format!("has the byte range {start}..{end} in a text of {bytes} bytes; encode it again");
        return Err(bad(of, "segments", problem));
    }
    Ok(())
}

fn vector(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) || bytes.len() > 4 * MAX_VECTOR {
        return Err(format!("has {} bytes; 1 to {MAX_VECTOR} f32 are allowed", bytes.len()));
    }
    floats(&vectors::decode(bytes))
}

/// Checks the values of a vector.
pub(crate) fn floats(values: &[f32]) -> Result<(), String> {
    if !values.iter().all(|value| value.is_finite()) {
        return Err("has values that are not finite; encode the text again".to_owned());
    }
    if values.iter().all(|value| *value == 0.0) {
        return Err("is all zeros and has no direction; encode a text with words".to_owned());
    }
    Ok(())
}

fn bad(doc_id: &str, field: &str, problem: impl std::fmt::Display) -> IndexError {
    IndexError::invalid(format!("record of document {doc_id:?}: {field} {problem}"))
}

fn mixed_lengths(doc_id: &str, length: usize) -> IndexError {
    bad(
        doc_id,
        "mean_vector",
        format!("has {length} values, others of its fingerprint have another number; use one fingerprint per encoder"),
    )
}
