//! Tests inside the crate: one conformance suite for all views, and the service against an oracle.

mod conformance;
mod oracle;
mod recovery;
mod support;
