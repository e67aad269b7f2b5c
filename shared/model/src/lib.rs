//! The method: chunker, encoder, adapter and decoder with soft inputs.
//!
//! A sentence of a document passes through this crate as follows. [`chunk`] cuts the text into chunks of a token budget
//! whose byte ranges cover it; [`encoder`] turns each chunk into token states; [`adapter`] pools those into soft tokens in
//! the decoder's embedding space (E2LLM, arXiv 2409.06679); [`expand`] decides which chunks also return as raw text,
//! by vectors and by words ([`lexical`]);
//! [`prompt`] lays soft tokens and text out inside the model's own chat [`template`]; [`decoder`] reads that mixed
//! sequence and [`generate`] writes the answer.
//!
//! The crate does no I/O beyond reading weights and knows no services.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod adapter;
pub mod bundle;
pub mod chunk;
pub mod cpu;
pub mod decoder;
pub mod document;
pub mod encoder;
pub mod error;
pub mod expand;
pub mod generate;
pub mod gguf;
pub mod lexical;
pub mod ops;
pub mod prompt;
pub mod safetensors;
pub mod sample;
pub mod template;
pub mod tokenizer;

pub use adapter::{Adapter, AdapterConfig, AdapterForm, Bridge, ContentRows, chunk_vectors, unit};
pub use bundle::{Bundle, BundleConfig, Defaults, LoraConfig, SummaryDefaults};
pub use decoder::{Decoder, DecoderConfig, KvCache, Packing};
pub use document::{DocumentEncoder, EncodedChunk};
pub use encoder::{TextEncoder, TokenStates};
pub use error::{ModelError, Result};
pub use tokenizer::TextTokenizer;
