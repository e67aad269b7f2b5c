//! The encoder service: chunk, encode, adapt, store.
