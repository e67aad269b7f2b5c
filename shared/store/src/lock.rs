//! One user of a local store at a time, and the cleaning up after one that died.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tracing::{info, warn};

use crate::error::{Result, StoreError};
use crate::names::is_staging_name;
use crate::store::{Store, blocking};

/// Exclusive use of a local store until it is dropped or the process ends.
#[derive(Debug)]
#[must_use = "the store is free again when the lock is dropped"]
pub struct StoreLock {
    /// `None` for stores that are not local: object stores are shared by design.
    file: Option<File>,
}

const LOCK_FILE: &str = "lock";
const POLL: Duration = Duration::from_millis(50);
/// Longest description of a holder that is read or written.
const MAX_HOLDER_BYTES: u64 = 512;
/// A staged upload this old belongs to a process that died: none takes that long on a local disk.
const ABANDONED: Duration = Duration::from_secs(60);

impl Store {
    /// Takes exclusive use of a local store, waiting up to `wait` for whoever has it. Does nothing for other stores.
    ///
    /// The operating system frees the lock of a process that dies; its leftover temporary files are removed here.
    ///
    /// # Errors
    /// [`StoreError::Locked`] names the process id and the command of the holder.
    pub async fn lock_exclusive(&self, wait: Duration) -> Result<StoreLock> {
        let Some(directory) = self.directory() else { return Ok(StoreLock { file: None }) };
        let path = directory.join(LOCK_FILE);
        let mut file = open(&path)?;
        let deadline = Instant::now() + wait;
        while !try_lock(&file, &path)? {
            if Instant::now() >= deadline {
                let holder = holder(&mut file).unwrap_or_else(|| "another process".to_owned());
                return Err(StoreError::Locked { path: directory.display().to_string(), holder });
            }
            tokio::time::sleep(POLL).await;
        }
        if let Some(previous) = holder(&mut file) {
            info!(previous, "the last user of the store ended without releasing it");
            self.sweep_temporaries(ABANDONED).await?;
        }
        write_holder(&mut file).map_err(|error| StoreError::from_io(&path.display().to_string(), &error))?;
        Ok(StoreLock { file: Some(file) })
    }

    /// Removes what crashed uploads left in a local store, if last written more than `age` ago; returns how many
    /// files. Such files are never listed or read as objects.
    pub async fn sweep_temporaries(&self, age: Duration) -> Result<u64> {
        let Some(directory) = self.directory() else { return Ok(0) };
        let directory = directory.to_owned();
        let swept = blocking(move || Ok(sweep(&directory, age))).await?;
        if swept > 0 {
            info!(swept, "removed temporary files of crashed uploads");
        }
        Ok(swept)
    }
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        let Some(file) = &mut self.file else { return };
        // An empty file tells the next user that this one ended well. Closing it frees the lock in any case.
        if let Err(error) = file.set_len(0) {
            warn!(%error, "store lock could not be cleared");
        }
    }
}

fn open(path: &Path) -> Result<File> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    options.map_err(|error| StoreError::from_io(&path.display().to_string(), &error))
}

fn try_lock(file: &File, path: &Path) -> Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(StoreError::from_io(&path.display().to_string(), &error)),
    }
}

/// Who wrote the lock file, if it is not empty.
fn holder(file: &mut File) -> Option<String> {
    let mut bytes = Vec::new();
    file.rewind().ok()?;
    file.take(MAX_HOLDER_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn write_holder(file: &mut File) -> std::io::Result<()> {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let command: String = words.join(" ").chars().filter(|c| !c.is_control()).take(100).collect();
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "process {}: {command}", std::process::id())
}

fn sweep(directory: &Path, age: Duration) -> u64 {
    let mut swept = 0;
    let mut folders = vec![directory.to_owned()];
    while let Some(folder) = folders.pop() {
        // A folder that vanishes or cannot be read holds nothing that this process must clean.
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && entry.file_name().to_str().is_some_and(is_staging_name)
                && older_than(&entry.path(), age)
            {
                swept += u64::from(std::fs::remove_file(entry.path()).is_ok());
            }
        }
    }
    swept
}

fn older_than(path: &Path, age: Duration) -> bool {
    let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| SystemTime::now().duration_since(modified).is_ok_and(|since| since >= age))
}
