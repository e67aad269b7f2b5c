//! The records of a job and how they are written: 32 bytes of blake3, then a protobuf message.

use bytes::Bytes;
use e2llm_api::v1::{JobSpec, JobStatus, Row, RowResult};
use prost::Message;

use crate::CoordinatorError;
use crate::ids::TaskId;

const HASH_BYTES: usize = 32;

/// `spec`: what to do.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SpecRecord {
    #[prost(message, optional, tag = "1")]
    pub(crate) spec: Option<JobSpec>,
    #[prost(string, tag = "2")]
    pub(crate) writer: String,
    #[prost(uint64, tag = "3")]
    pub(crate) created_unix_ms: u64,
}

/// `plan/<%06d>`: consecutive rows, and the first-stage tasks they are cut into.
///
/// Rows with an error are in no task: the page is their result.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PlanPage {
    #[prost(string, tag = "1")]
    pub(crate) writer: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) rows: Vec<Row>,
    #[prost(message, repeated, tag = "3")]
    pub(crate) tasks: Vec<TaskCut>,
    /// No page follows.
    #[prost(bool, tag = "4")]
    pub(crate) last: bool,
}

/// A task and the numbers of its rows.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TaskCut {
    #[prost(string, tag = "1")]
    pub(crate) task_id: String,
    #[prost(uint64, repeated, tag = "2")]
    pub(crate) rows: Vec<u64>,
}

impl TaskCut {
    pub(crate) fn new(task: TaskId, rows: Vec<u64>) -> Self {
        Self { task_id: task.to_string(), rows }
    }
}

/// `parts/<task>-<attempt>`: results of one attempt, one per row of the task.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Part {
    #[prost(message, repeated, tag = "1")]
    pub(crate) rows: Vec<RowResult>,
}

/// `done/<stage>/<task>`: which part counts, what it counts, and the next stage's tasks.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct DoneRecord {
    #[prost(string, tag = "1")]
    pub(crate) writer: String,
    #[prost(string, tag = "2")]
    pub(crate) part: String,
    #[prost(uint32, tag = "3")]
    pub(crate) attempt: u32,
    #[prost(string, tag = "4")]
    pub(crate) worker_id: String,
    /// Rows with a result.
    #[prost(uint64, repeated, tag = "5")]
    pub(crate) succeeded: Vec<u64>,
    /// Rows with an error: they go no further.
    #[prost(uint64, repeated, tag = "6")]
    pub(crate) failed: Vec<u64>,
    #[prost(uint64, tag = "7")]
    pub(crate) source_tokens: u64,
    #[prost(uint64, tag = "8")]
    pub(crate) generated_tokens: u64,
    #[prost(message, repeated, tag = "9")]
    pub(crate) next: Vec<TaskCut>,
    /// Attempts before the one that counts.
    #[prost(uint32, tag = "10")]
    pub(crate) retries: u32,
    /// The worker's time for the attempt that counts.
    #[prost(uint64, tag = "11")]
    pub(crate) busy_us: u64,
}

impl DoneRecord {
    /// Counts `rows`; the caller names part and writer.
    pub(crate) fn counting(rows: &[RowResult]) -> Self {
        let mut record = Self::default();
        for row in rows {
            let list = if row.error.is_some() { &mut record.failed } else { &mut record.succeeded };
            list.push(row.number);
            // Tokens of unchanged documents were not read: counted, they would make rates of the others false.
            let read = row.record.as_ref().filter(|_| !row.unchanged);
            record.source_tokens += read.map_or(0, |record| record.source_tokens);
            record.generated_tokens += row.usage.as_ref().map_or(0, |usage| u64::from(usage.generated_tokens));
        }
        record
    }
}

/// `splits/<task>`, `attempts/<task>-<n>` and `control/<n>.<change>`: their existence is what they say.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Mark {
    #[prost(string, tag = "1")]
    pub(crate) writer: String,
    #[prost(uint64, tag = "2")]
    pub(crate) unix_ms: u64,
}

/// `result`: the final counts.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct ResultRecord {
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<JobStatus>,
    #[prost(string, tag = "2")]
    pub(crate) writer: String,
}

pub(crate) fn encode(record: &impl Message) -> Bytes {
    let mut bytes = vec![0; HASH_BYTES];
    bytes.extend(record.encode_to_vec());
    let hash = blake3::hash(&bytes[HASH_BYTES..]);
    bytes[..HASH_BYTES].copy_from_slice(hash.as_bytes());
    bytes.into()
}

pub(crate) fn decode<M: Message + Default>(path: &str, bytes: &[u8]) -> Result<M, CoordinatorError> {
    let corrupt = |reason: String| CoordinatorError::Corrupt { path: path.to_owned(), reason };
    let (hash, body) = bytes
        .split_at_checked(HASH_BYTES)
        .ok_or_else(|| corrupt(format!("{} bytes are too few for a record", bytes.len())))?;
    if blake3::hash(body).as_bytes() != hash {
        return Err(corrupt("its checksum does not match".to_owned()));
    }
    M::decode(body).map_err(|error| corrupt(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_with_any_bit_flipped_or_byte_missing_is_corrupt() {
        let record = Mark { writer: "w".into(), unix_ms: 7 };
        let bytes = encode(&record);
        assert_eq!(decode::<Mark>("p", &bytes).unwrap(), record);
        for position in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[position] ^= 1;
            assert_eq!(decode::<Mark>("p", &flipped).unwrap_err().code(), e2llm_api::ErrorCode::Corrupt);
            assert!(decode::<Mark>("p", &bytes[..position]).is_err());
        }
    }
}
