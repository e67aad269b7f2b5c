//! The test's side of a process's fail points, see `e2llm_runtime::failpoint`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The directory by which one process is held, and tells what it reached.
#[derive(Debug, Clone)]
pub(crate) struct Points(PathBuf);

/// A point that a process reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) process: u32,
    pub(crate) point: String,
    pub(crate) about: String,
}

impl Points {
    pub(crate) fn new(directory: PathBuf) -> Self {
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    /// Holds the process when it reaches `point` for the `nth` time from now, from 1.
    pub(crate) fn arm(&self, point: &str, nth: u64) {
        static TOKENS: AtomicU64 = AtomicU64::new(0);
        let token = TOKENS.fetch_add(1, Ordering::Relaxed);
        // Renamed into its place, so that it is never read half written.
        let draft = self.0.join("draft");
        fs::write(&draft, format!("{nth} {token}")).unwrap();
        fs::rename(draft, self.0.join(point)).unwrap();
    }

    /// Ends the process whenever it begins with the row `id` of `stage`.
    pub(crate) fn poison(&self, stage: &str, id: &str) {
        fs::write(self.0.join(format!("poison.{stage}")), id).unwrap();
    }

    pub(crate) fn is_held(&self, point: &str) -> bool {
        self.0.join(format!("{point}.held")).exists()
    }

    /// Lets a held process go on; no point is armed any more.
    pub(crate) fn disarm(&self) {
        for file in self.files().filter(|file| !file.ends_with("trace")) {
            // The process may take it away at the same time.
            let _ = fs::remove_file(file);
        }
    }

    /// Forgets where the last process was held.
    pub(crate) fn release_dead(&self) {
        for file in self.files().filter(|file| file.extension().is_some_and(|ending| ending == "held")) {
            fs::remove_file(file).unwrap();
        }
    }

    /// Disarms, and begins a new trace.
    pub(crate) fn clear(&self) {
        self.disarm();
        let _ = fs::remove_file(self.0.join("trace"));
    }

    /// What was reached since the last [`Points::clear`].
    pub(crate) fn trace(&self) -> Vec<Reached> {
        let text = fs::read_to_string(self.0.join("trace")).unwrap_or_default();
        text.lines().filter_map(parse).collect()
    }

    fn files(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path())
    }
}

fn parse(line: &str) -> Option<Reached> {
    let mut words = line.splitn(3, ' ');
    let (process, point) = (words.next()?.parse().ok()?, words.next()?.to_owned());
    Some(Reached { process, point, about: words.next().unwrap_or_default().to_owned() })
}
