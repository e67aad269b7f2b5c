//! The index service: documents to embedding records.
