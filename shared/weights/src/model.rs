//! A model as users name it ([`ModelRef`]) and as loaders need it ([`ModelFiles`]).

use crate::cache::SourcePaths;
use crate::error::WeightsError;
use crate::hash::Ledger;
use crate::{Fetcher, Pulled, Recheck, Result, Sha256, directory};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where a model is to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelRef {
    /// A source of the catalogue: `minilm`.
    Catalogue(String),
    /// A directory or a single weight file: `./dir`, `/models/x.gguf`.
    Local(PathBuf),
    /// A model hub: `org/name`, `org/name@revision`, `org/name:file.gguf`, `org/name@revision:file.gguf`.
    Hub {
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit; the hub's `main` if absent.
        revision: Option<String>,
        /// The weight file, where a repository has several.
        file: Option<String>,
    },
}

/// Format of weight files. Nothing that would have to be unpickled is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightFormat {
    /// Safetensors, one file or several shards.
    Safetensors,
    /// GGUF, one file, with its tokenizer in its metadata.
    Gguf,
}

/// The files of one model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFiles {
    /// Where they are.
    pub dir: PathBuf,
    /// Weights: one file, or all shards in name order.
    pub weights: Vec<PathBuf>,
    /// Their format.
    pub format: WeightFormat,
    /// `tokenizer.json`; always there with safetensors.
    pub tokenizer: Option<PathBuf>,
    /// `config.json`; always there with safetensors.
    pub config: Option<PathBuf>,
    /// Hash of the weights, for fingerprints: the file's own if there is one, else over `name sha256\n` of the shards.
    pub sha256: Sha256,
}

/// The models of a bundle on this machine.
#[derive(Debug, Clone)]
pub struct BundleFiles {
    /// The bundle's name.
    pub name: String,
    /// Its encoder.
    pub encoder: ModelFiles,
    /// Its decoder.
    pub decoder: ModelFiles,
    /// The folder of its adapter, which need not exist.
    pub adapter_dir: PathBuf,
}

impl ModelRef {
    /// Reads a reference. What begins with `.` or `/`, ends in `.gguf` or `.safetensors` without a colon, or has a slash and
    /// exists here is local; another text with a slash is a hub id; the rest are catalogue names.
    ///
    /// # Errors
    /// [`WeightsError::BadReference`].
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |reason: &str| WeightsError::BadReference {
            text: text.escape_debug().to_string(),
            reason: reason.to_owned(),
        };
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(bad("empty or with control characters"));
        }
        if is_local(text) {
            return Ok(Self::Local(PathBuf::from(text)));
        }
        if text.contains('/') {
            return parse_hub(text).ok_or_else(|| bad("not a model-hub id"));
        }
        if text.chars().all(is_id_char) {
            return Ok(Self::Catalogue(text.to_owned()));
        }
        Err(bad("not a catalogue name"))
    }
}

impl FromStr for ModelRef {
    type Err = WeightsError;

    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Catalogue(name) => f.write_str(name),
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::Hub { repo, revision, file } => {
                f.write_str(repo)?;
                revision.iter().try_for_each(|revision| write!(f, "@{revision}"))?;
                file.iter().try_for_each(|file| write!(f, ":{file}"))
            }
        }
    }
}

fn is_local(text: &str) -> bool {
    let is_path = text.starts_with(['.', '/', '\\']);
    let is_file = !text.contains(':') && (text.ends_with(".gguf") || text.ends_with(".safetensors"));
    is_path || is_file || (text.contains('/') && Path::new(text).exists())
}

fn is_id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

fn parse_hub(text: &str) -> Option<ModelRef> {
    let (head, file) = text.split_once(':').map_or((text, None), |(head, file)| (head, Some(file)));
    let (repo, revision) = head.split_once('@').map_or((head, None), |(repo, revision)| (repo, Some(revision)));
    let (owner, name) = repo.split_once('/')?;
    let is_id = |id: &str| !id.is_empty() && !id.starts_with('.') && id.chars().all(is_id_char);
    // Path segments of a revision or a file; globs and `..` have no business in either.
    let is_path = |path: &str| path.split('/').all(is_id);
    let valid = is_id(owner) && is_id(name) && revision.is_none_or(is_path) && file.is_none_or(is_path);
    valid.then(|| ModelRef::Hub {
        repo: repo.to_owned(),
        revision: revision.map(str::to_owned),
        file: file.map(str::to_owned),
    })
}

impl ModelFiles {
    /// A file beside the weights, such as `tokenizer_config.json`, if it is there.
    #[must_use]
    pub fn sibling(&self, name: &str) -> Option<PathBuf> {
        Some(self.dir.join(name)).filter(|path| path.is_file())
    }
}

impl Fetcher {
    /// The files of a model, fetched if absent.
    ///
    /// # Errors
    /// All of [`WeightsError`]; each names the file, the name or the repository and the remedy.
    pub fn resolve(&self, reference: &ModelRef) -> Result<ModelFiles> {
        match reference {
            ModelRef::Catalogue(name) => {
                let source = self.catalogue.model(name)?;
                let dir = self.ensure(source)?;
                let ledger = Ledger::load(&SourcePaths::new(&self.cache, source).ledger);
                directory::load(&dir, None, ledger)
            }
            ModelRef::Local(path) => self.load_local(path, None),
            ModelRef::Hub { repo, revision, file } => {
                let dir = self.hub.snapshot(repo, revision.as_deref(), file.as_deref(), self.progress)?;
                self.load_local(&dir, file.as_deref())
            }
        }
    }

    /// The files of a bundle, fetched if absent; `None` is the default bundle.
    ///
    /// # Errors
    /// As [`Fetcher::resolve`].
    pub fn resolve_bundle(&self, name: Option<&str>) -> Result<BundleFiles> {
        let bundle = self.catalogue.bundle(name)?;
        Ok(BundleFiles {
            name: bundle.name.clone(),
            encoder: self.resolve(&self.catalogue.bundle_ref(&bundle.encoder)?)?,
            decoder: self.resolve(&self.catalogue.bundle_ref(&bundle.decoder)?)?,
            adapter_dir: self.catalogue.adapter_dir(bundle),
        })
    }

    pub(crate) fn pull_bundle(&self, name: Option<&str>, recheck: Recheck) -> Result<Vec<Pulled>> {
        let bundle = self.catalogue.bundle(name)?;
        let parts = [&bundle.encoder, &bundle.decoder].into_iter();
        parts.map(|part| self.pull_part(&self.catalogue.bundle_ref(part)?, recheck)).collect()
    }

    fn pull_part(&self, part: &ModelRef, recheck: Recheck) -> Result<Pulled> {
        if let ModelRef::Catalogue(name) = part {
            return self.pull_source(self.catalogue.model(name)?, recheck);
        }
        let files = self.resolve(part)?;
        let bytes = files.weights.iter().filter_map(|path| fs::metadata(path).ok()).map(|m| m.len()).sum();
        Ok(Pulled { name: part.to_string(), dir: files.dir, bytes, fetched: false })
    }

    /// Hashes of files that this crate did not place are remembered too, by the directory's real path.
    fn load_local(&self, path: &Path, file: Option<&str>) -> Result<ModelFiles> {
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let id = Sha256::of(real.as_os_str().as_encoded_bytes());
        let ledger = Ledger::load(&self.cache.join(format!("local-{}.verified.json", &id.as_str()[..16])));
        directory::load(path, file, ledger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repo: &str, revision: Option<&str>, file: Option<&str>) -> ModelRef {
        ModelRef::Hub { repo: repo.into(), revision: revision.map(Into::into), file: file.map(Into::into) }
    }

    #[test]
    fn each_form_is_recognised_and_printed_as_it_was_written() {
        let cases = [
            ("minilm", ModelRef::Catalogue("minilm".into())),
            ("./dir", ModelRef::Local("./dir".into())),
            ("../dir", ModelRef::Local("../dir".into())),
            ("/models/llama", ModelRef::Local("/models/llama".into())),
            ("model.gguf", ModelRef::Local("model.gguf".into())),
            ("org/name", hub("org/name", None, None)),
            ("org/name@v1.0", hub("org/name", Some("v1.0"), None)),
            ("org/name@refs/pr/1", hub("org/name", Some("refs/pr/1"), None)),
            ("org/name:q4/x.gguf", hub("org/name", None, Some("q4/x.gguf"))),
            ("org/name@rev:x.gguf", hub("org/name", Some("rev"), Some("x.gguf"))),
        ];
        for (text, expected) in cases {
            assert_eq!(ModelRef::parse(text).unwrap(), expected, "{text}");
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn an_existing_relative_directory_with_a_slash_is_local_not_a_hub_id() {
        assert_eq!(ModelRef::parse("src/").unwrap(), ModelRef::Local("src/".into()));
    }

    #[test]
    fn nonsense_is_refused_with_the_forms_there_are() {
        for text in ["", "a b", "org/name/more", "org/", "org/name@", "org/name:", "org/name:../x", "org/na*me", "a\nb"]
        {
            let error = ModelRef::parse(text).unwrap_err().to_string();
            assert!(error.contains("org/name[@revision][:file]"), "{text:?}: {error}");
            assert!(!error.contains('\n'), "one line");
        }
    }
}
