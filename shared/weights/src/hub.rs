//! Models from a model hub, through `hf-hub`: its cache (`HF_HOME`, `HF_HUB_CACHE`), token (`HF_TOKEN`) and endpoint
//! (`HF_ENDPOINT`) are the ones other programs of the user have.

use crate::directory::{self, SHARD_INDEX};
use crate::error::WeightsError;
use crate::progress::{Meter, Progress};
use crate::{ModelRef, Result};
use hf_hub::progress::{DownloadEvent, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClient, HFError, HFRepositorySync};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

impl HubOptions {
    /// Everything from the environment.
    #[must_use]
    pub fn from_env() -> Self {
        let offline = std::env::var("HF_HUB_OFFLINE")
            .is_ok_and(|value| matches!(value.as_str(), "1" | "true" | "TRUE" | "yes" | "on"));
        Self { offline, ..Self::default() }
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
        let fail = |error: HFError| failure(&reference, &error);
        let remote = self.open(repo).map_err(fail)?;
        if self.offline {
            return cached(&remote, revision).map_err(fail);
        }
        if revision.is_some_and(is_commit)
            && let Ok(dir) = cached(&remote, revision)
            && is_complete(&dir, file)
        {
            return Ok(dir);
        }
        let listing = match remote.info().maybe_revision(revision).send() {
            Ok(info) => info.siblings.unwrap_or_default(),
            Err(error @ HFError::Request { .. }) => {
                tracing::warn!(repo, %error, "model hub not reached; using its cache");
                return cached(&remote, revision).map_err(|_| fail(error));
            }
            Err(error) => return Err(fail(error)),
        };
        let names: Vec<&str> = listing.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let wanted = wanted(&reference, &names, file)?;
        let bar = Arc::new(Bar::new(progress, &reference));
        let download = remote.snapshot_download().maybe_revision(revision).allow_patterns(wanted);
        let dir = download.progress(Arc::clone(&bar)).send().map_err(fail)?;
        bar.finish();
        Ok(dir)
    }

    /// Whether a snapshot with weights is cached; no network.
    pub(crate) fn is_cached(&self, repo: &str, revision: Option<&str>, file: Option<&str>) -> bool {
        let dir = self.open(repo).and_then(|remote| cached(&remote, revision));
        dir.is_ok_and(|dir| is_complete(&dir, file))
    }

    fn open(&self, repo: &str) -> Result<HFRepositorySync<RepoTypeModel>, HFError> {
        let mut builder = HFClient::builder();
        if let Some(endpoint) = &self.endpoint {
            builder = builder.endpoint(endpoint);
        }
        if let Some(dir) = &self.cache_dir {
            builder = builder.cache_dir(dir);
        }
        let (owner, name) = hf_hub::split_id(repo);
        Ok(builder.build_sync()?.model(owner, name))
    }
}

fn cached(remote: &HFRepositorySync<RepoTypeModel>, revision: Option<&str>) -> Result<PathBuf, HFError> {
    remote.snapshot_download().maybe_revision(revision).local_files_only(true).send()
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

/// Patterns of the files to fetch: weights as [`directory::choose`] picks them, and their companions.
fn wanted(reference: &ModelRef, names: &[&str], file: Option<&str>) -> Result<Vec<String>> {
    let place = PathBuf::from(reference.to_string());
    let mut wanted: Vec<String> = COMPANIONS.map(str::to_owned).to_vec();
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
        wanted.push("model-*.safetensors".to_owned());
    }
    Ok(wanted)
}

fn failure(reference: &ModelRef, error: &HFError) -> WeightsError {
    let remedy = match error {
        HFError::AuthRequired { .. } | HFError::Forbidden { .. } => {
            "check the name, and set HF_TOKEN to a token that may read it"
        }
        HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } => {
            "check the name; private models need HF_TOKEN"
        }
        HFError::LocalEntryNotFound { .. } => "it is not cached: fetch it once with network and without HF_HUB_OFFLINE",
        HFError::Request { .. } => "it is not cached either: check the network and HF_ENDPOINT",
        _ => "try again, or download the files yourself and name their directory",
    };
    let reason = error.to_string().replace(['\n', '\r'], " ");
    WeightsError::Hub { repo: reference.to_string(), reason, remedy }
}

/// Adds up the per-file events of a snapshot into one meter, shown only if something is fetched.
struct Bar {
    progress: Progress,
    label: String,
    state: Mutex<Transfer>,
}

#[derive(Default)]
struct Transfer {
    meter: Option<Meter>,
    files: HashMap<String, u64>,
}

impl Bar {
    fn new(progress: Progress, reference: &ModelRef) -> Self {
        Self { progress, label: reference.to_string(), state: Mutex::default() }
    }

    fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(meter) = state.meter.take() {
            meter.done();
        }
    }
}

impl ProgressHandler for Bar {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let arrived = match event {
            // The first is the snapshot's; each file in it then reports a start and a completion of its own.
            DownloadEvent::Start { total_bytes, .. } => {
                if state.meter.is_none() && *total_bytes > 0 {
                    state.meter = Some(Meter::start(self.progress, &self.label, *total_bytes));
                }
                return;
            }
            DownloadEvent::Progress { files } => {
                state.files.extend(files.iter().map(|file| (file.filename.clone(), file.bytes_completed)));
                state.files.values().sum()
            }
            DownloadEvent::AggregateProgress { bytes_completed, .. } => *bytes_completed,
            DownloadEvent::Complete => return,
        };
        if let Some(meter) = &mut state.meter {
            meter.at(arrived);
        }
    }
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
        assert!(patterns.contains(&"model.safetensors".to_owned()));
        assert!(patterns.iter().all(|pattern| !pattern.contains("onnx") && !pattern.contains("pytorch")));
    }

    #[test]
    fn a_sharded_model_is_fetched_with_its_index_and_all_shards() {
        let patterns = choose(&[SHARD_INDEX, "model-00001-of-00002.safetensors"], None).unwrap();
        assert!(patterns.contains(&SHARD_INDEX.to_owned()) && patterns.contains(&"model-*.safetensors".to_owned()));
    }

    #[test]
    fn with_several_gguf_files_one_must_be_named_and_must_exist() {
        let names = ["a.Q4_0.gguf", "a.Q8_0.gguf"];
        assert!(choose(&names, None).unwrap_err().to_string().contains("a.Q4_0.gguf, a.Q8_0.gguf"));
        assert!(choose(&names, Some("a.Q8_0.gguf")).unwrap().contains(&"a.Q8_0.gguf".to_owned()));
        assert!(choose(&names, Some("b.gguf")).unwrap_err().to_string().contains("org/name has no b.gguf"));
    }
}
