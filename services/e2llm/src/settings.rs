//! The global flags with their defaults resolved.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use candle_core::DType;
use e2llm_api::Collection;
use e2llm_runtime::{ClientOptions, ClientTls, TlsFiles};
use e2llm_store::{CacheLimits, ReadCache, Store};
use e2llm_weights::{Catalogue, Fetcher, Progress};

use crate::cli::{AccessArgs, CacheArgs, GlobalArgs, Place, Precision};

/// What every command needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Print JSON, one object per line.
    pub(crate) json: bool,
    /// Running services to use, instead of our own.
    pub(crate) server: Option<String>,
    /// Store URL or directory.
    pub(crate) store: String,
    /// Set of documents to work with.
    pub(crate) collection: Collection,
    /// Directory for weights and sample texts; `None` is the user's cache directory.
    pub(crate) cache: Option<PathBuf>,
    /// Bundle name or directory; `None` is the default bundle.
    pub(crate) bundle: Option<String>,
    /// Where models compute.
    pub(crate) device: Place,
    /// In which dtype a decoder is trained.
    pub(crate) training_dtype: DType,
    /// No progress.
    pub(crate) quiet: bool,
    /// How long an encoder of this process waits for a full disk.
    pub(crate) patience: Duration,
    /// Certificate and key of this process.
    pub(crate) identity: Option<(PathBuf, PathBuf)>,
    /// How services are called.
    pub(crate) client: ClientOptions,
    /// What a decoder of this process keeps of what it has read.
    pub(crate) caches: CacheArgs,
}

/// Soft prompts kept on disk, in the cache.
pub(crate) const SOFT_PROMPTS: &str = "soft-prompts";

/// A server's disk may be given space before anyone notices; at a command line somebody waits.
const SERVER_PATIENCE: Duration = Duration::from_secs(60);
const COMMAND_PATIENCE: Duration = Duration::from_secs(5);

impl Settings {
    /// Directory of the index's view of a store, which can be deleted while nothing runs: inside a local store, and
    /// for others in the user's data directory under the store's id.
    pub(crate) fn index_dir(&self, store: &Store) -> Result<PathBuf> {
        match store.directory() {
            Some(directory) => Ok(directory.join("view")),
            None => Ok(data_directory()?.join("views").join(store.id())),
        }
    }

    /// Keeps near this process what its decoder reads from a store.
    pub(crate) fn read_cache(&self, store: Store) -> Result<ReadCache> {
        let CacheArgs { document_cache, disk_cache, .. } = self.caches;
        let directory = self.fetcher()?.cache().join(SOFT_PROMPTS);
        let disk = Some((directory, disk_cache.as_u64()));
        Ok(ReadCache::new(store, CacheLimits { memory: document_cache.as_u64(), disk }))
    }

    /// Fetches weights and sample texts into the cache. Its methods block.
    pub(crate) fn fetcher(&self) -> Result<Fetcher> {
        let progress = if self.quiet { Progress::Hidden } else { Progress::Auto };
        Ok(Fetcher::new(Catalogue::builtin()?, self.cache.as_deref())?.with_progress(progress))
    }

    /// Fills in the defaults from the environment, those of a server if the process `serves`; fails where there is no home directory and nothing was given.
    pub(crate) fn resolve(args: GlobalArgs, serves: bool) -> Result<Self> {
        let store = match args.store {
            Some(store) => store,
            None => data_directory()?.join("store").display().to_string(),
        };
        Ok(Self {
            client: client_options(&args.access)?,
            identity: args.access.identity()?,
            json: args.json,
            server: args.server,
            store,
            collection: args.collection,
            cache: args.cache,
            bundle: args.bundle,
            device: args.device,
            training_dtype: Precision::or_default(args.precision, args.device),
            quiet: args.quiet,
            patience: if serves { SERVER_PATIENCE } else { COMMAND_PATIENCE },
            caches: CacheArgs::default(),
        })
    }
}

fn client_options(access: &AccessArgs) -> Result<ClientOptions> {
    let mut options = ClientOptions::default();
    let files = TlsFiles { identity: access.identity()?, trusted: access.tls_ca.clone() };
    if files != TlsFiles::default() {
        options = options.with_tls(ClientTls::new(files)?);
    }
    Ok(match &access.token_file {
        Some(path) => options.with_token_file(path)?,
        None => options,
    })
}

/// `$XDG_DATA_HOME/e2llm`, or `~/.local/share/e2llm`.
fn data_directory() -> Result<PathBuf> {
    let variable = |name| env::var_os(name).map(PathBuf::from);
    let found = data_directory_from(variable("XDG_DATA_HOME"), variable("HOME"));
    found.context("neither XDG_DATA_HOME nor HOME is set; give --store")
}

fn data_directory_from(data_home: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    // The XDG base directory specification says that relative paths are to be ignored.
    let absolute = |path: &PathBuf| path.is_absolute();
    let in_home = || home.filter(absolute).map(|home| home.join(".local/share"));
    data_home.filter(absolute).or_else(in_home).map(|base| base.join("e2llm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_below_the_users_data_directory() {
        let data = || Some(PathBuf::from("/data"));
        let home = || Some(PathBuf::from("/home/u"));
        let in_home = Some(PathBuf::from("/home/u/.local/share/e2llm"));
        assert_eq!(data_directory_from(data(), home()), Some(PathBuf::from("/data/e2llm")));
        assert_eq!(data_directory_from(None, home()), in_home);
        assert_eq!(data_directory_from(Some("relative".into()), home()), in_home);
        assert_eq!(data_directory_from(None, None), None);
    }
}
