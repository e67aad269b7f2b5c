//! Models from a model hub, through `hf-hub`: its cache (`HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`), token (`HF_TOKEN`,
//! `HF_TOKEN_PATH`) and endpoint (`HF_ENDPOINT`) are the ones other programs of the user have.

use crate::directory::{self, SHARD_INDEX};
use crate::error::WeightsError;
use crate::progress::Progress;
use crate::{ModelRef, Result};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError};
use hf_hub::{Cache, Repo, RepoType};
use std::path::{Path, PathBuf};
use transfer::Transfer;

mod transfer;

/// How the model hub is reached. What is `None` comes from the hub's own environment variables.
#[derive(Debug, Clone, Default)]
pub struct HubOptions {
    /// Base URL.
    pub endpoint: Option<String>,
    /// Cache directory of the hub client.
    pub cache_dir: Option<PathBuf>,
    /// Use only what is cached (`HF_HUB_OFFLINE`).
    pub offline: bool,
}

/// Small files that belong to a model, besides its weights.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "modules.json",
    "1_Pooling/config.json",
];

/// Where the hub's clients look when nothing is said.
const ENDPOINT: &str = "https://huggingface.co";

impl HubOptions {
    /// Everything from the environment, as the hub's own clients read it; an empty variable counts as unset.
    #[must_use]
    pub fn from_env() -> Self {
        let offline = variable("HF_HUB_OFFLINE")
            .is_some_and(|value| matches!(value.as_str(), "1" | "true" | "TRUE" | "yes" | "on"));
        let under = |name: &str, below: &str| variable(name).map(|dir| Path::new(&dir).join(below));
        let cache_dir = under("HF_HUB_CACHE", "")
            .or_else(|| under("HF_HOME", "hub"))
            .or_else(|| under("XDG_CACHE_HOME", "huggingface/hub"))
            .or_else(|| under("HOME", ".cache/huggingface/hub"));
        Self { offline, cache_dir, endpoint: variable("HF_ENDPOINT") }
    }

    /// The directory of `repo` in the hub's cache, with the files a model needs, fetched if absent. Without network, and
    /// for a revision that is a commit, what is cached is enough.
    pub(crate) fn snapshot(
        &self,
        repo: &str,
        revision: Option<&str>,
        file: Option<&str>,
        progress: Progress,
    ) -> Result<PathBuf> {
        let reference = ModelRef::Hub { repo: repo.to_owned(), revision: revision.map(Into::into), file: None };
        let cached = self.cached(repo, revision).filter(|dir| is_complete(dir, file));
        match cached {
            Some(dir) if self.offline || revision.is_some_and(is_commit) => return Ok(dir),
            None if self.offline => return Err(not_cached(&reference)),
            _ => {}
        }
        let fail = |error: ApiError| failure(&reference, &error);
        let local = self.cache(&reference)?.repo(described(repo, revision));
        let remote = self.open(&reference)?;
        let files = remote.repo(described(repo, revision));
        let listing = match (files.info(), cached) {
            (Ok(info), _) => info,
            (Err(error), Some(dir)) if status(&error).is_none() => {
                tracing::warn!(repo, %error, "model hub not reached; using its cache");
                return Ok(dir);
            }
            (Err(error), None) if status(&error).is_none() => return Err(not_reached(&reference, &error)),
            (Err(error), _) => return Err(fail(error)),
        };
        let names: Vec<&str> = listing.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let dir = local.pointer_path(&listing.sha);
        for name in wanted(&reference, &names, file)? {
            let transfer = Transfer { remote: &remote, files: &files, local: &local, name: &name };
            transfer.run(&dir.join(&name), &reference, progress).map_err(fail)?;
        }
        local.create_ref(&listing.sha).map_err(|error| fail(ApiError::IoError(error)))?;
        Ok(dir)
    }

    /// One file of a dataset repository, fetched if absent; without network, what is cached is enough. `reference` is
    /// `org/name@revision:file`, where the revision may be left out.
    ///
    /// # Errors
    /// [`WeightsError::Hub`] if it is neither cached nor reached; [`WeightsError::MissingFile`] if no file is named or the
    /// repository lacks it.
    pub fn dataset_file(&self, reference: &ModelRef, progress: Progress) -> Result<PathBuf> {
        let ModelRef::Hub { repo, revision, file: Some(file) } = reference else {
            let hint = "name one as org/name:file".to_owned();
            return Err(WeightsError::MissingFile {
                dir: reference.to_string().into(),
                file: "data file".into(),
                hint,
            });
        };
        let described =
            Repo::with_revision(repo.clone(), RepoType::Dataset, revision.clone().unwrap_or_else(|| "main".to_owned()));
        let fail = |error: ApiError| failure(reference, &error);
        let local = self.cache(reference)?.repo(described.clone());
        if let Some(path) = local.get(file) {
            return Ok(path);
        }
        if self.offline {
            return Err(not_cached(reference));
        }
        let remote = self.open(reference)?;
        let files = remote.repo(described);
        let listing = match files.info() {
            Ok(listing) => listing,
            Err(error) if status(&error).is_none() => return Err(not_reached(reference, &error)),
            Err(error) => return Err(fail(error)),
        };
        if !listing.siblings.iter().any(|sibling| sibling.rfilename == *file) {
            let names: Vec<&str> = listing.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
            let hint = format!("the repository has {}", names.join(", "));
            return Err(WeightsError::MissingFile { dir: reference.to_string().into(), file: file.clone(), hint });
        }
        let place = local.pointer_path(&listing.sha).join(file);
        Transfer { remote: &remote, files: &files, local: &local, name: file }
            .run(&place, reference, progress)
            .map_err(fail)?;
        local.create_ref(&listing.sha).map_err(|error| fail(ApiError::IoError(error)))?;
        Ok(place)
    }

    /// Whether a snapshot with weights is cached; no network.
    pub(crate) fn is_cached(&self, repo: &str, revision: Option<&str>, file: Option<&str>) -> bool {
        self.cached(repo, revision).is_some_and(|dir| is_complete(&dir, file))
    }

    /// The cached snapshot of a revision, however much of it there is.
    fn cached(&self, repo: &str, revision: Option<&str>) -> Option<PathBuf> {
        let local = Cache::new(self.cache_dir.clone()?).repo(described(repo, revision));
        if let Some(commit) = revision.filter(|revision| is_commit(revision)) {
            return Some(local.pointer_path(commit)).filter(|dir| dir.is_dir());
        }
        // The reference file names the commit; an empty file name is the snapshot's own directory.
        local.get("").map(|dir| dir.components().collect())
    }

    fn cache(&self, reference: &ModelRef) -> Result<Cache> {
        self.cache_dir.clone().map(Cache::new).ok_or_else(|| WeightsError::Hub {
            repo: reference.to_string(),
            reason: "there is no directory for its cache".to_owned(),
            remedy: "set HF_HOME",
        })
    }

    fn open(&self, reference: &ModelRef) -> Result<Api> {
        let endpoint = self.endpoint.as_deref().unwrap_or(ENDPOINT).trim_end_matches('/').to_owned();
        let mut builder = ApiBuilder::from_cache(self.cache(reference)?).with_endpoint(endpoint);
        let token_file = variable("HF_TOKEN_PATH").and_then(|path| std::fs::read_to_string(path).ok());
        if let Some(token) = variable("HF_TOKEN").or(token_file) {
            builder = builder.with_token(Some(token.trim().to_owned()));
        }
        builder.build().map_err(|error| failure(reference, &error))
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn described(repo: &str, revision: Option<&str>) -> Repo {
    Repo::with_revision(repo.to_owned(), RepoType::Model, revision.unwrap_or("main").to_owned())
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_complete(dir: &Path, file: Option<&str>) -> bool {
    let names = || -> Option<Vec<String>> {
        Some(std::fs::read_dir(dir).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    };
    match file {
        Some(file) => dir.join(file).is_file(),
        None => names().is_some_and(|names| match directory::choose(&names) {
            // A snapshot whose download was cut short has the index but not yet its shards.
            Ok(chosen) if chosen == SHARD_INDEX => directory::all_shards_present(dir),
            other => other.is_ok(),
        }),
    }
}

/// Names of the files to fetch: weights as [`directory::choose`] picks them, and those companions the repository has.
fn wanted(reference: &ModelRef, names: &[&str], file: Option<&str>) -> Result<Vec<String>> {
    let place = PathBuf::from(reference.to_string());
    let has = |wanted: &&str| names.contains(wanted);
    let mut wanted: Vec<String> = COMPANIONS.iter().copied().filter(has).map(str::to_owned).collect();
    let top: Vec<&str> = names.iter().copied().filter(|name| !name.contains('/')).collect();
    match file {
        Some(file) if names.contains(&file) => wanted.push(file.to_owned()),
        Some(file) => {
            let hint = format!("the repository has {}", top.join(", "));
            return Err(WeightsError::MissingFile { dir: place, file: file.to_owned(), hint });
        }
        None => wanted.push(directory::choose(&top).map_err(|refusal| refusal.at(&place))?),
    }
    if wanted.iter().any(|name| name == SHARD_INDEX) {
        let shard = |name: &&str| name.starts_with("model-") && name.ends_with(".safetensors");
        wanted.extend(top.into_iter().filter(shard).map(str::to_owned));
    }
    Ok(wanted)
}

/// The HTTP status the hub answered with; `None` if it was not reached.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(inner) => match **inner {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

fn failure(reference: &ModelRef, error: &ApiError) -> WeightsError {
    use std::io::ErrorKind;
    let remedy = match (status(error), error) {
        (Some(401 | 403), _) => "check the name, and set HF_TOKEN to a token that may read it",
        (Some(404), _) => "check the name; private models need HF_TOKEN",
        (_, ApiError::IoError(inner)) => match inner.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space and try again",
            ErrorKind::PermissionDenied => "make the hub's cache writable, or set HF_HOME to a directory that is",
            _ => "try again: what has arrived is kept",
        },
        (_, ApiError::LockAcquisition(_)) => "another process is fetching it: wait for that one",
        (None, ApiError::RequestError(_)) => "check the network and HF_ENDPOINT; what has arrived is kept",
        _ => "try again, or download the files yourself and name their directory",
    };
    hub_error(reference, &error.to_string(), remedy)
}

fn not_reached(reference: &ModelRef, error: &ApiError) -> WeightsError {
    hub_error(reference, &error.to_string(), "it is not cached either: check the network and HF_ENDPOINT")
}

fn not_cached(reference: &ModelRef) -> WeightsError {
    hub_error(reference, "it is not cached", "fetch it once with network and without HF_HUB_OFFLINE")
}

fn hub_error(reference: &ModelRef, reason: &str, remedy: &'static str) -> WeightsError {
    WeightsError::Hub { repo: reference.to_string(), reason: reason.replace(['\n', '\r'], " "), remedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(names: &[&str], file: Option<&str>) -> Result<Vec<String>> {
        wanted(&ModelRef::parse("org/name").unwrap(), names, file)
    }

    #[test]
    fn only_one_form_of_the_weights_is_fetched_and_nothing_of_other_frameworks() {
        let names = ["model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "tokenizer.json"];
        let patterns = choose(&names, None).unwrap();
        assert_eq!(patterns, ["tokenizer.json", "model.safetensors"]);
    }

    #[test]
    fn a_sharded_model_is_fetched_with_its_index_and_all_shards() {
        let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
        assert_eq!(choose(&[SHARD_INDEX, shards[0], shards[1]], None).unwrap(), [SHARD_INDEX, shards[0], shards[1]]);
    }

    #[test]
    fn with_several_gguf_files_one_must_be_named_and_must_exist() {
        let names = ["a.Q4_0.gguf", "a.Q8_0.gguf"];
        assert!(choose(&names, None).unwrap_err().to_string().contains("a.Q4_0.gguf, a.Q8_0.gguf"));
        assert!(choose(&names, Some("a.Q8_0.gguf")).unwrap().contains(&"a.Q8_0.gguf".to_owned()));
        assert!(choose(&names, Some("b.gguf")).unwrap_err().to_string().contains("org/name has no b.gguf"));
    }
}
