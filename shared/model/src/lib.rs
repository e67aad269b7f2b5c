//! The method: chunker, encoder, adapter and decoder with soft inputs.
