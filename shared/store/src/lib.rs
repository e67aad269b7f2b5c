//! The storage layout and its create-only commits: the only truth of the pipeline.
//!
//! A [`Store`] is one root in a local directory, S3, GCS, Azure or memory:
//!
//! ```text
//! <root>/
//!   store.json                                     id and layout version, create-only
//!   texts/<2 hex>/<blake3>.zst                     source texts, named by their UTF-8 bytes
//!   blobs/<2 hex>/<input key>/<blake3>.safetensors soft prompts, see [`SoftPrompt`]
//!   index/<shard>/…                                the log of records, see [`manifest`]
//!   gc/…                                           what garbage collection notes, see [`garbage`]
//!   probes/<holder>                                short-lived: whether the store takes writes, see [`Store::probe`]
//!   quarantine/<path>.<random>                     objects whose bytes did not match their name
//!   lock                                           local stores only, see [`Store::lock_exclusive`]
//! ```
//!
//! Other crates keep their own objects (manifests, jobs) through [`Store::create`], [`Store::get`] and
//! [`Store::list`]. Nothing is replaced by something else: [`Store::create`] is the one commit primitive. When its outcome is
//! unknown (a timeout after the request was sent), the object is read back and compared, so bodies that must
//! have one writer carry that writer and a nonce.
//!
//! Names verify contents. [`Store::get_text`] and [`Store::get_blob`] never return bytes that do not match:
//! such an object is moved to `quarantine/`, logged, and reported as [`StoreError::Corrupt`]; the next put of
//! the good content succeeds.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), e2llm_store::StoreError> {
//! use e2llm_store::Store;
//!
//! let store = Store::open("memory://").await?;
//! let text = store.put_text("It was a bright cold day in April.").await?;
//! assert_eq!(store.get_text(&text.hash).await?, "It was a bright cold day in April.");
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod backend;
mod blob;
mod blob_format;
mod cache;
mod error;
pub mod garbage;
mod identity;
mod lock;
pub mod manifest;
mod named;
mod names;
mod objects;
mod store;
mod text;
mod text_format;
mod utf8;
mod verify;

pub use backend::open_bucket;
pub use blob::{ChunkMeta, MAX_CHUNKS, SoftPrompt};
pub use cache::{CacheLimits, ReadCache};
pub use error::{Result, StoreError};
pub use identity::LAYOUT_VERSION;
pub use lock::StoreLock;
pub use names::{BlobName, ContentHash};
pub use objects::{Created, ObjectInfo};
pub use store::Store;
pub use text::{MAX_TEXT_BYTES, TextHasher, TextRef, TextWriter};
pub use verify::{Finding, Health, ObjectKind};

/// Parsers of stored bytes, for fuzzing.
#[cfg(fuzzing)]
pub mod fuzz {
    use crate::names::ContentHash;

    /// Of a soft prompt, without its hash.
    pub fn soft_prompt(bytes: &[u8]) {
        drop(crate::blob_format::decode(bytes));
    }

    /// Of a text, with a header that fits its bytes.
    pub fn text(size: u64, frame: &[u8]) {
        let object = [&crate::text_format::header(size, &blake3::hash(frame))[..], frame].concat();
        drop(crate::text_format::decode(&object, &ContentHash::of(b"")));
    }

    /// Of a manifest.
    pub fn manifest(bytes: &[u8]) {
        drop(crate::manifest::decode(bytes));
    }
}
