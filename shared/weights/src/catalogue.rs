//! The catalogue: what can be fetched by name. A TOML file, not code.

use crate::error::{IoContext, WeightsError};
use crate::{ModelRef, Result, Sha256};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

/// Bundles and the sources they are made of.
#[derive(Debug, Clone)]
pub struct Catalogue {
    bundles: Vec<Bundle>,
    sources: Vec<Source>,
    root: PathBuf,
}

/// An encoder, a decoder and the adapter trained between them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// Unique among all names of the catalogue.
    pub name: String,
    /// A model reference: source name, hub id or local directory.
    pub encoder: String,
    /// A model reference: source name, hub id or local directory.
    pub decoder: String,
    /// Folder of the trained adapter, beside the catalogue file; see [`Catalogue::adapter_dir`].
    pub adapter: PathBuf,
    /// Licence of the whole, as an SPDX expression where there is one.
    pub licence: String,
    /// Whether this is what runs when nobody names a bundle. Exactly one is.
    #[serde(default)]
    pub default: bool,
}

/// Files inside one published wheel.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Unique among all names of the catalogue.
    pub name: String,
    /// What the files are.
    pub kind: SourceKind,
    /// For people.
    #[serde(default)]
    pub title: String,
    /// Which package client fetches it.
    pub index: PackageIndex,
    /// Package name in that index.
    pub package: String,
    /// Exact version.
    pub version: String,
    /// Licence of the files.
    pub licence: String,
    /// The wheel that is downloaded.
    pub wheel: Wheel,
    /// Prefix of every path inside the wheel.
    #[serde(default)]
    pub base: String,
    /// The files that are unpacked.
    pub files: Vec<FileEntry>,
}

/// What a source holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// A text encoder.
    Encoder,
    /// A language model.
    Decoder,
    /// Text files to try things on.
    Sample,
}

/// A package client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackageIndex {
    /// Python's `pip`, with whatever index, proxy and certificates the machine has configured for it.
    Pip,
}

/// A wheel, pinned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wheel {
    /// Size of the download, bytes.
    pub bytes: u64,
    /// Its hash.
    pub sha256: Sha256,
}

/// One file of a source, pinned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    path: String,
    #[serde(rename = "as")]
    rename: Option<String>,
    /// Size when unpacked, bytes.
    pub bytes: u64,
    /// Hash when unpacked.
    pub sha256: Sha256,
}

impl FileEntry {
    /// The file's name in the cache.
    #[must_use]
    pub fn name(&self) -> &str {
        let last = || self.path.rsplit('/').next().unwrap_or(&self.path);
        self.rename.as_deref().unwrap_or_else(last)
    }
}

impl Source {
    /// Path of `file` inside the wheel.
    #[must_use]
    pub fn path_in_wheel(&self, file: &FileEntry) -> String {
        format!("{}{}", self.base, file.path)
    }

    /// Name as users type it: `sample:<name>` for samples.
    #[must_use]
    pub fn display_name(&self) -> String {
        match self.kind {
            SourceKind::Sample => format!("sample:{}", self.name),
            SourceKind::Encoder | SourceKind::Decoder => self.name.clone(),
        }
    }

    /// Bytes of all files when unpacked.
    #[must_use]
    pub fn unpacked_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// `package version`, for messages.
    pub(crate) fn package_id(&self) -> String {
        format!("{} {}", self.package, self.version)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    #[serde(default)]
    bundle: Vec<Bundle>,
    #[serde(default)]
    source: Vec<Source>,
}

impl Catalogue {
    /// The catalogue at `path`, else at `E2LLM_CATALOGUE`, else the built-in one.
    ///
    /// # Errors
    /// As [`Catalogue::load`].
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let variable = std::env::var_os("E2LLM_CATALOGUE").filter(|value| !value.is_empty());
        match path.map(Path::to_path_buf).or_else(|| variable.map(PathBuf::from)) {
            Some(path) => Self::load(&path),
            None => Self::builtin(),
        }
    }

    /// The catalogue this binary was built with. Adapters are looked for in the source tree it was built from.
    ///
    /// # Errors
    /// [`WeightsError::Catalogue`] if the file was invalid when this was built.
    pub fn builtin() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bundles");
        Self::parse(include_str!("../../bundles/catalogue.toml"), "built-in", root)
    }

    /// The catalogue at `path`; adapters are looked for beside it.
    ///
    /// # Errors
    /// [`WeightsError::Io`] or [`WeightsError::Catalogue`], naming the path.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).at("read the catalogue", path)?;
        let root = path.parent().map(Path::to_path_buf).unwrap_or_default();
        Self::parse(&text, &path.display().to_string(), root)
    }

    fn parse(text: &str, origin: &str, root: PathBuf) -> Result<Self> {
        let fail = |reason: String| WeightsError::Catalogue { origin: origin.to_owned(), reason };
        let document: Document = toml::from_str(text).map_err(|error| fail(describe(&error, text)))?;
        if document.version != 1 {
            return Err(fail(format!(
                "version {} is not known to this program, which reads version 1",
                document.version
            )));
        }
        let catalogue = Self { bundles: document.bundle, sources: document.source, root };
        validate(&catalogue).map_err(fail)?;
        Ok(catalogue)
    }

    /// All bundles, in the file's order.
    #[must_use]
    pub fn bundles(&self) -> &[Bundle] {
        &self.bundles
    }

    /// All sources, in the file's order.
    #[must_use]
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The bundle named `name`, or the default one.
    ///
    /// # Errors
    /// [`WeightsError::UnknownName`] with the names there are.
    pub fn bundle(&self, name: Option<&str>) -> Result<&Bundle> {
        let found = self.bundles.iter().find(|b| name.map_or(b.default, |wanted| b.name == wanted));
        found.ok_or_else(|| WeightsError::UnknownName {
            wanted: "bundle",
            name: name.unwrap_or("(default)").to_owned(),
            known: join(self.bundles.iter().map(|b| b.name.clone())),
        })
    }

    /// The source of an encoder or decoder named `name`.
    ///
    /// # Errors
    /// [`WeightsError::UnknownName`] with the names there are.
    pub fn model(&self, name: &str) -> Result<&Source> {
        self.find("model", name, |kind| kind != SourceKind::Sample)
    }

    /// The sample corpus `name`, with or without its `sample:` prefix.
    ///
    /// # Errors
    /// [`WeightsError::UnknownName`] with the names there are.
    pub fn sample(&self, name: &str) -> Result<&Source> {
        self.find("sample", name.strip_prefix("sample:").unwrap_or(name), |kind| kind == SourceKind::Sample)
    }

    /// The folder of a bundle's adapter. It need not exist: a bundle may still be untrained.
    #[must_use]
    pub fn adapter_dir(&self, bundle: &Bundle) -> PathBuf {
        self.root.join(&bundle.adapter)
    }

    /// A bundle's model reference; a local directory is relative to the catalogue file.
    pub(crate) fn bundle_ref(&self, text: &str) -> Result<ModelRef> {
        Ok(match ModelRef::parse(text)? {
            ModelRef::Local(path) => ModelRef::Local(self.root.join(path)),
            other => other,
        })
    }

    fn find(&self, wanted: &'static str, name: &str, kind: impl Fn(SourceKind) -> bool) -> Result<&Source> {
        let found = self.sources.iter().find(|source| source.name == name && kind(source.kind));
        found.ok_or_else(|| WeightsError::UnknownName {
            wanted,
            name: name.to_owned(),
            known: join(self.sources.iter().filter(|s| kind(s.kind)).map(Source::display_name)),
        })
    }
}

pub(crate) fn join(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn describe(error: &toml::de::Error, text: &str) -> String {
    let message = error.message().replace('\n', " ");
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

fn validate(catalogue: &Catalogue) -> std::result::Result<(), String> {
    let mut names = BTreeSet::new();
    let all = catalogue.bundles.iter().map(|b| &b.name).chain(catalogue.sources.iter().map(|s| &s.name));
    for name in all {
        word("name", name)?;
        if !names.insert(name) {
            return Err(format!("the name '{name}' is used twice"));
        }
    }
    catalogue.sources.iter().try_for_each(validate_source)?;
    catalogue.bundles.iter().try_for_each(|bundle| validate_bundle(catalogue, bundle))?;
    let defaults = catalogue.bundles.iter().filter(|bundle| bundle.default).count();
    if !catalogue.bundles.is_empty() && defaults != 1 {
        return Err(format!("{defaults} bundles say default = true; exactly one must"));
    }
    Ok(())
}

fn validate_bundle(catalogue: &Catalogue, bundle: &Bundle) -> std::result::Result<(), String> {
    let parts = [(&bundle.encoder, SourceKind::Encoder), (&bundle.decoder, SourceKind::Decoder)];
    for (text, kind) in parts {
        let reference = ModelRef::parse(text).map_err(|error| format!("bundle '{}': {error}", bundle.name))?;
        let ModelRef::Catalogue(name) = reference else { continue };
        if !catalogue.sources.iter().any(|source| source.name == name && source.kind == kind) {
            return Err(format!("bundle '{}' names '{name}', which is no {kind} here", bundle.name));
        }
    }
    Ok(())
}

fn validate_source(source: &Source) -> std::result::Result<(), String> {
    // Both become arguments of a command and part of a path.
    word("package", &source.package)?;
    word("version", &source.version)?;
    let mut names = BTreeSet::new();
    for file in &source.files {
        word("file name", file.name()).map_err(|reason| format!("source '{}': {reason}", source.name))?;
        if !names.insert(file.name()) {
            return Err(format!("source '{}' has two files named '{}'", source.name, file.name()));
        }
    }
    if names.is_empty() {
        return Err(format!("source '{}' has no files", source.name));
    }
    Ok(())
}

fn word(what: &str, text: &str) -> std::result::Result<(), String> {
    let first_is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    if first_is_plain && text.len() <= 128 && text.chars().all(plain) {
        return Ok(());
    }
    Err(format!(
        "{what} '{}' must be letters, digits and . - _ +, beginning with a letter or digit",
        text.escape_debug()
    ))
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Encoder => "encoder",
            Self::Decoder => "decoder",
            Self::Sample => "sample",
        })
    }
}
