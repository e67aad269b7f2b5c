//! What `models list` shows.

use crate::cache::SourcePaths;
use crate::{Bundle, Fetcher, ModelRef, Recheck, Result, Source, SourceKind};
use serde::Serialize;
use std::path::PathBuf;

/// One line of the list: a bundle, a model or a sample corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// The name to pull or use it by; `sample:<name>` for samples.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// For people; empty for bundles.
    pub title: String,
    /// Package name; `None` for bundles.
    pub package: Option<String>,
    /// Package version; `None` for bundles.
    pub version: Option<String>,
    /// Size of the download, bytes; what is not known beforehand (model hub) counts 0.
    pub bytes: u64,
    /// Licence of the files.
    pub licence: String,
    /// The models of a bundle; empty for others.
    pub parts: Vec<String>,
    /// Whether this is the default bundle.
    pub default: bool,
    /// Whether it is here; a bundle is as bad as its worst part.
    pub state: State,
    /// Where its files are, or would be; `None` for bundles.
    pub dir: Option<PathBuf>,
}

/// Kind of an [`Entry`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryKind {
    /// Encoder, decoder and adapter.
    Bundle,
    /// A text encoder.
    Encoder,
    /// A language model.
    Decoder,
    /// Texts to try things on.
    Sample,
}

/// Whether files are on this machine, from best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All there and verified.
    Present,
    /// Some or all are not there.
    Absent,
    /// A file's content is wrong.
    Damaged,
}

impl Fetcher {
    /// All names of the catalogue, bundles first, with the state of their files. Needs no network and changes nothing;
    /// files that changed since they were verified are hashed.
    ///
    /// # Errors
    /// [`WeightsError::Io`](crate::WeightsError::Io) if the cache cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let bundles = self.catalogue.bundles().iter().map(|bundle| self.bundle_entry(bundle));
        let sources = self.catalogue.sources().iter().map(|source| self.source_entry(source));
        bundles.chain(sources).collect()
    }

    fn source_entry(&self, source: &Source) -> Result<Entry> {
        Ok(Entry {
            name: source.display_name(),
            kind: match source.kind {
                SourceKind::Encoder => EntryKind::Encoder,
                SourceKind::Decoder => EntryKind::Decoder,
                SourceKind::Sample => EntryKind::Sample,
            },
            title: source.title.clone(),
            package: Some(source.package.clone()),
            version: Some(source.version.clone()),
            bytes: source.wheel.bytes,
            licence: source.licence.clone(),
            parts: Vec::new(),
            default: false,
            state: self.source_state(source)?,
            dir: Some(SourcePaths::new(&self.cache, source).dir),
        })
    }

    fn bundle_entry(&self, bundle: &Bundle) -> Result<Entry> {
        let (mut state, mut bytes) = (State::Present, 0_u64);
        for part in [&bundle.encoder, &bundle.decoder] {
            let (part_state, part_bytes) = self.part(&self.catalogue.bundle_ref(part)?)?;
            state = state.max(part_state);
            bytes = bytes.saturating_add(part_bytes);
        }
        Ok(Entry {
            name: bundle.name.clone(),
            kind: EntryKind::Bundle,
            title: String::new(),
            package: None,
            version: None,
            bytes,
            licence: bundle.licence.clone(),
            parts: vec![bundle.encoder.clone(), bundle.decoder.clone()],
            default: bundle.default,
            state,
            dir: None,
        })
    }

    fn part(&self, part: &ModelRef) -> Result<(State, u64)> {
        let present = |here| if here { State::Present } else { State::Absent };
        Ok(match part {
            ModelRef::Catalogue(name) => {
                let source = self.catalogue.model(name)?;
                (self.source_state(source)?, source.wheel.bytes)
            }
            ModelRef::Local(path) => (present(path.exists()), 0),
            ModelRef::Hub { repo, revision, file } => {
                (present(self.hub.is_cached(repo, revision.as_deref(), file.as_deref())), 0)
            }
        })
    }

    fn source_state(&self, source: &Source) -> Result<State> {
        let inspection = self.inspect(source, Recheck::Changed)?;
        Ok(match (inspection.wrong.is_empty(), inspection.missing.is_empty()) {
            (false, _) => State::Damaged,
            (true, false) => State::Absent,
            (true, true) => State::Present,
        })
    }
}
