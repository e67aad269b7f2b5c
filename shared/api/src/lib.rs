//! Generated gRPC types, ids and error codes: the only thing services know of each other.
//!
//! [`v1`] holds the messages and the client and server stubs of `proto/e2llm/v1`; [`DESCRIPTORS`] the same
//! protos for server reflection. [`DocId`], [`Collection`] and [`Metadata`] are validated where text enters the system.
//! [`ErrorCode`] is the one list of error codes, mapped to gRPC statuses here and nowhere else.

mod context;
mod error;
mod ids;
mod metadata;

use std::collections::HashSet;
use std::sync::OnceLock;

use prost::Message;

pub use error::{ErrorCode, row_error, status};
pub use ids::{Collection, DocId, IdError, MAX_ID_BYTES};
pub use metadata::{MAX_METADATA_BYTES, Metadata, MetadataError};

/// Messages, clients and servers of package `e2llm.v1`.
#[allow(missing_docs, unreachable_pub, clippy::all, rustdoc::invalid_html_tags)]
pub mod v1 {
    tonic::include_proto!("e2llm.v1");
}

/// The encoded `FileDescriptorSet` of all protos, for gRPC server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// All RPCs of the package, as `Service/Method`.
pub fn rpcs() -> &'static HashSet<String> {
    static RPCS: OnceLock<HashSet<String>> = OnceLock::new();
    RPCS.get_or_init(|| {
        // Descriptors that do not decode are reported when the reflection service is built.
        let set = prost_types::FileDescriptorSet::decode(DESCRIPTORS).unwrap_or_default();
        let services = set.file.iter().flat_map(|file| &file.service);
        services
            .flat_map(|service| service.method.iter().map(|method| format!("{}/{}", service.name(), method.name())))
            .collect()
    })
}

/// Largest piece of text in one message, in bytes.
pub const MAX_PIECE_BYTES: usize = 1 << 20;

/// Largest gRPC message either side accepts, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
