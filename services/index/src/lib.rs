//! The index service: documents to embedding records.
//!
//! The truth is the manifest log in object storage ([`e2llm_store::manifest`]); this crate owns its end and
//! answers from a view of it. [`IndexService`] is both the library and the gRPC service:
//!
//! ```text
//! Commit, Delete ─► validate ─► committer: group ─► next manifest ─► sled + vectors ─► answer
//! Get, List      ─────────────────────────────────────────────────► sled
//! Search         ─────────────────────────────────► mean vectors in memory, exact scan
//! ```
//!
//! The view is never trusted further than it can be checked. Opening it reads every record and compares a digest;
//! a lost, damaged or foreign view is set aside and rebuilt with the same answers. [`IndexService::verify`] compares
//! view and log in full.
//!
//! The index also deletes what no record refers to any more: [`IndexService::find_garbage`].
//!
//! A large store's index is split into [`Shard`]s, each a process with its own log; callers reach them through a [`Router`],
//! and [`reshard`] changes their number.
//!
//! Views are [`DocIndex`]es: sled in production, [`MemoryIndex`] to compare with.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod clock;
mod committer;
mod dir;
mod doc_index;
mod doctor;
mod error;
mod filter;
mod gc;
mod live;
mod memory_index;
mod opening;
mod paging;
mod reshard;
mod router;
mod rpc;
mod service;
mod shard;
mod shared;
mod sled_index;
#[cfg(test)]
mod tests;
mod validate;
mod vectors;

pub use clock::UnixClock;
pub use doc_index::{DocIndex, Effects, ListQuery, Page, RecordKey};
pub use doctor::{Finding, FindingKind, References};
pub use error::IndexError;
pub use filter::Filter;
pub use gc::{GarbageOptions, GarbageRun, HeldTexts};
pub use memory_index::MemoryIndex;
pub use reshard::{Resharded, reshard};
pub use router::Router;
pub use service::{DEFAULT_SHARD, IndexOptions, IndexService};
pub use shard::Shard;

/// Parsers of requests, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzz {
    use e2llm_api::v1;
    use prost::Message;

    /// Of a condition on metadata.
    pub fn filter(text: &str) {
        drop(crate::Filter::parse(&[text.to_owned()]));
    }

    /// Of a page's token.
    pub fn page_token(text: &str) {
        drop(crate::paging::parse(text, "default"));
    }

    /// Of records that a worker commits.
    pub fn records(bytes: &[u8]) {
        if let Ok(request) = v1::CommitRequest::decode(bytes) {
            drop(crate::validate::records(&request.records));
        }
    }
}
