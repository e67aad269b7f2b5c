//! The directory of one index: a lock, the sled view, and views that were set aside.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use crate::IndexError;

/// How many views that were set aside are kept for inspection.
const KEPT: usize = 3;

const ASIDE: &str = "set-aside-";

/// A locked index directory:
///
/// ```text
/// <dir>/lock                  held by the one process that may open the view; holds its id
/// <dir>/opening               there while the view is being opened: found later, that attempt died
/// <dir>/view/                 sled
/// <dir>/set-aside-<unix ms>/  a view that could not be trusted
/// ```
///
/// Everything in it can be deleted while no process uses it.
#[derive(Debug)]
pub(crate) struct IndexDir {
    root: PathBuf,
    _lock: File,
}

impl IndexDir {
    /// Creates the directory if need be and locks it for this process.
    pub(crate) fn acquire(root: &Path) -> Result<Self, IndexError> {
        fs::create_dir_all(root).map_err(|error| IndexError::io(root, &error))?;
        let path = root.join("lock");
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = open.map_err(|error| IndexError::io(&path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(root, &mut lock)),
            Err(TryLockError::Error(error)) => return Err(IndexError::io(&path, &error)),
        }
        write_holder(&mut lock).map_err(|error| IndexError::io(&path, &error))?;
        Ok(Self { root: root.to_owned(), _lock: lock })
    }

    /// Where sled keeps the view.
    pub(crate) fn view(&self) -> PathBuf {
        self.root.join("view")
    }

    /// Whether there is a view.
    pub(crate) fn has_view(&self) -> bool {
        fs::read_dir(self.view()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Notes that the view is being opened; `true` if an earlier attempt never came to its end.
    pub(crate) fn begin_opening(&self) -> Result<bool, IndexError> {
        let path = self.root.join("opening");
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
            Err(error) => Err(IndexError::io(&path, &error)),
        }
    }

    /// Notes that the view could be opened, or was not to blame.
    pub(crate) fn end_opening(&self) -> Result<(), IndexError> {
        remove(&self.root.join("opening"), |path| fs::remove_file(path))
    }

    /// Moves the view out of the way and forgets the oldest of those moved before.
    pub(crate) fn set_aside(&self, reason: &str) -> Result<(), IndexError> {
        let view = self.view();
        let mut stamp = unix_ms();
        while self.root.join(format!("{ASIDE}{stamp}")).exists() {
            stamp += 1;
        }
        let aside = self.root.join(format!("{ASIDE}{stamp}"));
        fs::rename(&view, &aside).map_err(|error| IndexError::io(&view, &error))?;
        warn!(reason, aside = %aside.display(), "index view set aside, rebuilding from manifests");
        for old in self.all_set_aside().into_iter().rev().skip(KEPT) {
            remove(&old, |path| fs::remove_dir_all(path))?;
        }
        Ok(())
    }

    /// Removes a view that never became complete.
    pub(crate) fn discard_view(&self) -> Result<(), IndexError> {
        remove(&self.view(), |path| fs::remove_dir_all(path))
    }

    /// Views that were set aside, oldest first.
    pub(crate) fn all_set_aside(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(ASIDE))
            .map(|entry| entry.path())
            .collect();
        found.sort();
        found
    }
}

fn in_use(root: &Path, lock: &mut File) -> IndexError {
    let mut holder = String::new();
    let read = lock.take(32).read_to_string(&mut holder);
    let holder = match (read, holder.trim()) {
        (Ok(_), id) if !id.is_empty() => format!("process {id}"),
        _ => "another process".to_owned(),
    };
    IndexError::InUse { dir: root.display().to_string(), holder }
}

fn write_holder(lock: &mut File) -> io::Result<()> {
    lock.set_len(0)?;
    lock.rewind()?;
    writeln!(lock, "{}", std::process::id())
}

fn remove(path: &Path, how: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), IndexError> {
    match how(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(IndexError::io(path, &error)),
        _ => Ok(()),
    }
}

/// The wall clock names directories and decides nothing.
fn unix_ms() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_millis())
}
