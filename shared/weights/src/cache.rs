//! Where the cache is and how its directories are named.

use crate::error::{IoContext, WeightsError};
use crate::{Progress, Result, Source};
use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The cache directory: `explicit`, else `E2LLM_CACHE`, else `$XDG_CACHE_HOME/e2llm`, else `~/.cache/e2llm`.
/// It need not exist yet; the answer is absolute.
///
/// # Errors
/// [`WeightsError::NoCacheDir`] when nothing names one.
pub fn cache_dir(explicit: Option<&Path>) -> Result<PathBuf> {
    cache_dir_from(explicit, |key| std::env::var_os(key))
}

fn cache_dir_from(explicit: Option<&Path>, env: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf> {
    let var = |key: &str| env(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let dir = explicit
        .map(Path::to_path_buf)
        .or_else(|| var("E2LLM_CACHE"))
        // The XDG specification has relative paths ignored.
        .or_else(|| var("XDG_CACHE_HOME").filter(|p| p.is_absolute()).map(|p| p.join("e2llm")))
        .or_else(|| var("HOME").map(|p| p.join(".cache").join("e2llm")))
        .ok_or(WeightsError::NoCacheDir)?;
    std::path::absolute(&dir).at("resolve", &dir)
}

/// The paths that belong to one source.
#[derive(Debug, Clone)]
pub(crate) struct SourcePaths {
    /// `<cache>/<package>-<version>`: the verified files.
    pub(crate) dir: PathBuf,
    /// What was verified, and how the files looked then.
    pub(crate) ledger: PathBuf,
    /// A pull under way.
    pub(crate) stage: PathBuf,
    lock: PathBuf,
    refused: PathBuf,
}

impl SourcePaths {
    pub(crate) fn new(cache: &Path, source: &Source) -> Self {
        let id = format!("{}-{}", source.package, source.version);
        let pulls = cache.join(".pull");
        Self {
            dir: cache.join(&id),
            ledger: cache.join(format!("{id}.verified.json")),
            lock: pulls.join(format!("{id}.lock")),
            stage: pulls.join(&id),
            refused: cache.join("refused").join(&id),
        }
    }

    /// Waits until no other process pulls this source. Held until dropped, and by no dead process.
    pub(crate) fn lock(&self, progress: Progress) -> Result<File> {
        if let Some(parent) = self.lock.parent() {
            fs::create_dir_all(parent).at("create", parent)?;
        }
        let file = File::options().create(true).append(true).open(&self.lock).at("open", &self.lock)?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                progress.note(&format!("waiting for another process that pulls {}", self.dir.display()));
            }
            Err(TryLockError::Error(source)) => return Err(source).at("lock", &self.lock),
        }
        file.lock().at("lock", &self.lock)?;
        Ok(file)
    }

    /// A new folder for one pull, after removing those of pulls that were killed. Call it with the lock held.
    pub(crate) fn attempt(&self) -> Result<PathBuf> {
        for entry in fs::read_dir(&self.stage).into_iter().flatten().flatten() {
            if entry.path() != self.complete_wheel() {
                discard(&entry.path());
            }
        }
        let attempt = self.stage.join(format!("attempt-{}-{}", std::process::id(), now()));
        fs::create_dir_all(&attempt).at("create", &attempt)?;
        Ok(attempt)
    }

    /// Where a wheel waits that has arrived and been verified.
    pub(crate) fn complete_wheel(&self) -> PathBuf {
        self.stage.join("complete.whl")
    }

    /// Moves a file with wrong content to `<cache>/refused/`, so that it is not used and can still be looked at.
    pub(crate) fn move_aside(&self, path: &Path) -> Result<PathBuf> {
        fs::create_dir_all(&self.refused).at("create", &self.refused)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let target = self.refused.join(format!("{name}.{}", now()));
        fs::rename(path, &target).at("move aside", path)?;
        Ok(target)
    }
}

/// Milliseconds since 1970: only to make names unique.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

/// Removes what an ended pull has left, as far as that can be done: a pip that outlived its killed parent may still be
/// writing there. What stays is removed by the next pull.
pub(crate) fn discard(path: &Path) {
    let removed = match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    if let Err(error) = removed
        && error.kind() != ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "left behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(explicit: Option<&str>, vars: &[(&str, &str)]) -> Result<PathBuf> {
        cache_dir_from(explicit.map(Path::new), |key| {
            vars.iter().find(|(name, _)| *name == key).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_argument_wins_then_the_variable_then_xdg_then_home() {
        let all = [("E2LLM_CACHE", "/e"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(resolve(Some("/arg"), &all).unwrap(), Path::new("/arg"));
        assert_eq!(resolve(None, &all).unwrap(), Path::new("/e"));
        assert_eq!(resolve(None, &all[1..]).unwrap(), Path::new("/x/e2llm"));
        assert_eq!(resolve(None, &all[2..]).unwrap(), Path::new("/h/.cache/e2llm"));
    }

    #[test]
    fn empty_variables_and_a_relative_xdg_directory_count_as_unset() {
        let vars = [("E2LLM_CACHE", ""), ("XDG_CACHE_HOME", "relative"), ("HOME", "/h")];
        assert_eq!(resolve(None, &vars).unwrap(), Path::new("/h/.cache/e2llm"));
    }

    #[test]
    fn without_any_of_them_the_error_names_the_variable_to_set() {
        assert!(resolve(None, &[]).unwrap_err().to_string().contains("E2LLM_CACHE"));
    }

    #[test]
    fn a_relative_argument_becomes_absolute() {
        assert!(resolve(Some("weights"), &[]).unwrap().is_absolute());
    }
}
