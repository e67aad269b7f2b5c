//! The storage layout and its create-only commits.
