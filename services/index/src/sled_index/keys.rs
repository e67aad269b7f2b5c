//! Keys of the tree. Ids hold no control characters, so zero bytes separate and byte order is key order.

use crate::doc_index::RecordKey;

/// Key of the meta entry.
pub(super) const META: &[u8] = b"meta";

const RECORD: u8 = b'r';

/// `r<collection>\0<doc id>\0<fingerprint>`.
pub(super) fn of_record(key: &RecordKey) -> Vec<u8> {
    let mut bytes = of_document(&key.collection, &key.doc_id);
    bytes.extend_from_slice(key.fingerprint.as_bytes());
    bytes
}

/// What the keys of a document's records begin with.
pub(super) fn of_document(collection: &str, doc_id: &str) -> Vec<u8> {
    let mut bytes = prefix(Some(collection), doc_id);
    bytes.push(0);
    bytes
}

/// What the keys of records of a collection whose ids begin with `id_prefix` begin with; without a collection, of all.
pub(super) fn prefix(collection: Option<&str>, id_prefix: &str) -> Vec<u8> {
    let mut bytes = vec![RECORD];
    if let Some(collection) = collection {
        bytes.extend_from_slice(collection.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(id_prefix.as_bytes());
    }
    bytes
}

/// The record a key names, if it is a record's.
pub(super) fn parse(key: &[u8]) -> Option<RecordKey> {
    let text = std::str::from_utf8(key.strip_prefix(&[RECORD])?).ok()?;
    let mut parts = text.splitn(3, '\0').map(str::to_owned);
    Some(RecordKey { collection: parts.next()?, doc_id: parts.next()?, fingerprint: parts.next()? })
}
