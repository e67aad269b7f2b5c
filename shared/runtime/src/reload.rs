//! Files that are read again when they change: certificates and tokens that are renewed while a process serves.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

/// The least time between two looks at the files.
const EVERY: Duration = Duration::from_secs(2);

/// What was made of some files, made anew when one of them has changed.
///
/// A change that cannot be read is logged, and what was made before stays in use: a half-written file must not take a server down.
pub(crate) struct Reloading<T> {
    files: Vec<PathBuf>,
    make: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    every: Duration,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Arc<T>,
    /// Of the files that it was made of.
    stamps: Vec<Option<Stamp>>,
    /// Why the last change could not be used.
    failed: Option<String>,
    looked: Instant,
}

/// Changes when a file does. A secret of Kubernetes is a link that is moved, which the modification time of its target shows.
type Stamp = (SystemTime, u64);

impl<T> Reloading<T> {
    /// Makes it for the first time.
    ///
    /// # Errors
    /// Those of `make`.
    pub(crate) fn new(
        files: Vec<PathBuf>,
        make: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // Stamps are taken first: a change in between is then seen as one.
        let stamps = stamps(&files);
        let state = State { value: Arc::new(make()?), stamps, failed: None, looked: Instant::now() };
        Ok(Self { files, make: Box::new(make), every: EVERY, state: Mutex::new(state) })
    }

    /// What the files say now, at most two seconds old.
    pub(crate) fn current(&self) -> Arc<T> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.looked.elapsed() >= self.every {
            state.looked = Instant::now();
            let stamps = stamps(&self.files);
            if stamps != state.stamps {
                self.make_again(&mut state, stamps);
            }
        }
        Arc::clone(&state.value)
    }

    fn make_again(&self, state: &mut State<T>, stamps: Vec<Option<Stamp>>) {
        match (self.make)() {
            Ok(value) => {
                *state = State { value: Arc::new(value), stamps, failed: None, looked: state.looked };
                tracing::info!(files = ?self.files, "read again after a change");
            }
            // Tried again at the next look: it may be that the file could not be opened, not what is in it.
            Err(reason) if state.failed.as_ref() == Some(&reason) => {}
            Err(reason) => {
                tracing::error!(reason, "a changed file cannot be used; what was read before stays in use");
                state.failed = Some(reason);
            }
        }
    }
}

impl<T> fmt::Debug for Reloading<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloading").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Option<Stamp> {
    let about = std::fs::metadata(file).ok()?;
    Some((about.modified().ok()?, about.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_again_and_a_damaged_one_is_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("number");
        std::fs::write(&file, "1").unwrap();
        let read = {
            let file = file.clone();
            move || std::fs::read_to_string(&file).unwrap().parse::<u32>().map_err(|error| error.to_string())
        };
        let mut number = Reloading::new(vec![file.clone()], read).unwrap();
        number.every = Duration::ZERO;
        assert_eq!(*number.current(), 1);
        std::fs::write(&file, "22").unwrap();
        assert_eq!(*number.current(), 22);
        std::fs::write(&file, "oops").unwrap();
        assert_eq!(*number.current(), 22);
        std::fs::write(&file, "333").unwrap();
        assert_eq!(*number.current(), 333);
    }
}
