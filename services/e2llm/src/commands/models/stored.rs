//! Base weights in the store, for machines that reach it and no package index: `weights/<sha256>`, one object per file.
//!
//! Which files a bundle needs, and their hashes, stand in the catalogue of the binary: nothing in the store is trusted.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use e2llm_store::Store;
use e2llm_weights::{Fetcher, FileEntry, Recheck, Sha256, Source};
use serde::Serialize;

use crate::output;
use crate::render::bytes;
use crate::settings::Settings;

/// What became of one file.
#[derive(Debug, Serialize)]
struct Copied {
    file: String,
    bytes: u64,
    object: String,
    /// Whether it had to be copied.
    copied: bool,
}

/// Copies the models of a bundle, or one model, from this machine to the store.
pub(super) async fn push(settings: &Settings, fetcher: Fetcher, name: Option<String>) -> Result<()> {
    let store = Store::open(&settings.store).await?;
    let sources = sources(&fetcher, name.as_deref())?;
    for source in &sources {
        let (from, wanted) = (fetcher.clone(), source.name.clone());
        let pulled = tokio::task::spawn_blocking(move || from.pull(Some(&wanted), Recheck::Changed)).await??;
        let directory = pulled.into_iter().next().context("nothing was pulled")?.dir;
        for file in &source.files {
            let object = object(file);
            let copied = !store.exists(&object).await?;
            if copied {
                let read = tokio::fs::read(directory.join(file.name())).await;
                let read = Bytes::from(read.with_context(|| directory.display().to_string())?);
                // Whoever was first has stored the same bytes.
                let _ = store.create(&object, read).await?;
            }
            tell(settings, source, file, copied)?;
        }
    }
    Ok(())
}

/// Copies them from the store into the cache, where [`Fetcher`] finds and verifies them.
pub(super) async fn pull(settings: &Settings, fetcher: &Fetcher, name: Option<&str>) -> Result<()> {
    let store = Store::open(&settings.store).await?;
    for source in sources(fetcher, name)? {
        let directory = fetcher.cache().join(format!("{}-{}", source.package, source.version));
        for file in &source.files {
            let path = directory.join(file.name());
            let is_there = std::fs::metadata(&path).is_ok_and(|found| found.len() == file.bytes);
            if !is_there {
                fetch(&store, &source, file, &path).await?;
            }
            tell(settings, &source, file, !is_there)?;
        }
    }
    Ok(())
}

async fn fetch(store: &Store, source: &Source, file: &FileEntry, path: &Path) -> Result<()> {
    let object = object(file);
    let Some(found) = store.get(&object).await? else {
        bail!(
            "{}: {object} is not in the store; `e2llm models push {0}` puts it there from a machine that has it",
            source.name
        );
    };
    if Sha256::of(&found) != file.sha256 {
        bail!("{object} in the store is damaged: its bytes do not have that hash; delete it and push it again");
    }
    let directory = path.parent().context("a cache without a directory")?;
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        let mut whole = tempfile::NamedTempFile::new_in(directory)?;
        whole.write_all(&found)?;
        whole.persist(path)?;
        Ok(())
    };
    tokio::task::block_in_place(write).with_context(|| path.display().to_string())
}

fn object(file: &FileEntry) -> String {
    format!("weights/{}", file.sha256.as_str())
}

/// The models of a bundle, or one model.
fn sources(fetcher: &Fetcher, name: Option<&str>) -> Result<Vec<Source>> {
    let catalogue = fetcher.catalogue();
    let is_bundle = |name: &&str| catalogue.bundles().iter().any(|bundle| bundle.name == **name);
    let names = match name.filter(|name| !is_bundle(name)) {
        Some(model) => vec![model.to_owned()],
        None => {
            let bundle = catalogue.bundle(name)?;
            vec![bundle.encoder.clone(), bundle.decoder.clone()]
        }
    };
    let found = names.iter().map(|name| catalogue.model(name).cloned());
    found.collect::<Result<_, _>>().context("only models of the catalogue are kept in a store")
}

fn tell(settings: &Settings, source: &Source, file: &FileEntry, copied: bool) -> Result<()> {
    let name = format!("{}/{}", source.name, file.name());
    if settings.json {
        let copied = Copied { file: name, bytes: file.bytes, object: object(file), copied };
        return output::print_line(&serde_json::to_string(&copied)?);
    }
    let done = if copied { "copied" } else { "already there" };
    output::print_line(&format!("{name}: {done}, {}", bytes(file.bytes)))
}
