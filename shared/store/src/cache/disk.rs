use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tracing::warn;

use crate::error::{Result, StoreError};
use crate::names::ContentHash;

/// Begins the names of files that are not whole yet.
const PARTIAL: &str = ".partial-";

/// Files named by the hash of their bytes, the least used deleted when their budget is full. Failures cost a fetch, no more.
///
/// One process owns the directory: two of them on one directory keep twice the budget at most.
#[derive(Debug, Clone)]
pub(super) struct DiskCache {
    directory: Arc<Path>,
    sizes: Cache<ContentHash, u32>,
}

impl DiskCache {
    /// Takes over what an earlier process left.
    pub(super) fn open(directory: PathBuf, budget: u64) -> Result<Self> {
        let directory: Arc<Path> = directory.into();
        let evicted = directory.clone();
        let sizes = Cache::builder()
            .max_capacity(budget)
            .weigher(|_, size: &u32| *size)
            .eviction_policy(EvictionPolicy::lru())
            .eviction_listener(move |hash: Arc<ContentHash>, _, cause| {
                // A file that was written again is the same file.
                if cause != RemovalCause::Replaced {
                    remove(&evicted.join(hash.as_str()));
                }
            })
            .build();
        let cache = Self { directory, sizes };
        match cache.take_over() {
            Ok(()) => Ok(cache),
            Err(error) => Err(StoreError::from_io(&cache.directory.display().to_string(), &error)),
        }
    }

    /// Counts whole files, the oldest first; deletes those that a killed process left half written.
    fn take_over(&self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            let (name, meta) = (entry.file_name(), entry.metadata()?);
            let Some(name) = name.to_str().filter(|_| meta.is_file()) else { continue };
            match ContentHash::parse(name) {
                Ok(hash) => found.push((meta.modified()?, hash, super::weight(meta.len() as usize))),
                Err(_) if name.starts_with(PARTIAL) => remove(&entry.path()),
                Err(_) => {}
            }
        }
        found.sort();
        found.into_iter().for_each(|(_, hash, size)| self.sizes.insert(hash, size));
        self.sizes.run_pending_tasks();
        Ok(())
    }

    pub(super) fn get(&self, hash: &ContentHash) -> Option<Vec<u8>> {
        self.sizes.get(hash)?;
        match fs::read(self.path(hash)) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                warn!(%hash, %error, "a cached soft prompt cannot be read, fetching it again");
                self.sizes.invalidate(hash);
                None
            }
        }
    }

    pub(super) fn put(&self, hash: &ContentHash, bytes: &[u8]) {
        match self.write(hash, bytes) {
            Ok(_) => {
                self.sizes.insert(hash.clone(), super::weight(bytes.len()));
                // At once, so that the budget holds for the disk too.
                self.sizes.run_pending_tasks();
            }
            Err(error) => warn!(%hash, %error, "cannot keep a soft prompt on the local disk"),
        }
    }

    fn write(&self, hash: &ContentHash, bytes: &[u8]) -> io::Result<File> {
        let mut file = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(&self.directory)?;
        file.write_all(bytes)?;
        Ok(file.persist(self.path(hash))?)
    }

    pub(super) fn remove(&self, hash: &ContentHash) {
        self.sizes.invalidate(hash);
        self.sizes.run_pending_tasks();
    }

    fn path(&self, hash: &ContentHash) -> PathBuf {
        self.directory.join(hash.as_str())
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            warn!(path = %path.display(), %error, "cannot delete a cached soft prompt");
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: usize) -> ContentHash {
        ContentHash::of(&number.to_le_bytes())
    }

    fn kept(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_least_used_goes_first_and_the_disk_holds_no_more_than_the_budget() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(folder.path().join("new"), 300).unwrap();
        (0..3).for_each(|number| cache.put(&hash(number), &[number as u8; 100]));
        assert_eq!(cache.get(&hash(0)).unwrap(), [0; 100]);
        cache.put(&hash(2), &[2; 100]);
        cache.put(&hash(3), &[3; 100]);
        let mut expected: Vec<_> = [0, 2, 3].map(|number| hash(number).to_string()).to_vec();
        expected.sort();
        assert_eq!(kept(&folder.path().join("new")), expected);
        assert_eq!(cache.get(&hash(1)), None);
    }

    #[test]
    fn the_next_process_takes_over_whole_files_within_its_budget() {
        let folder = tempfile::tempdir().unwrap();
        let cache = DiskCache::open(folder.path().to_owned(), 1000).unwrap();
        for (number, age) in [(0, 30), (1, 20), (2, 10)] {
            cache.put(&hash(number), &[0; 100]);
            let file = File::options().write(true).open(folder.path().join(hash(number).as_str())).unwrap();
            file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 - age)).unwrap();
        }
        fs::write(folder.path().join(format!("{PARTIAL}x")), "half").unwrap();
        fs::write(folder.path().join("mine"), "not the cache's").unwrap();
        let next = DiskCache::open(folder.path().to_owned(), 200).unwrap();
        assert_eq!(next.get(&hash(0)), None, "the oldest");
        assert_eq!(next.get(&hash(2)).unwrap(), [0; 100]);
        let mut expected = vec![hash(1).to_string(), hash(2).to_string(), "mine".to_owned()];
        expected.sort();
        assert_eq!(kept(folder.path()), expected);
    }

    #[test]
    fn a_file_where_the_directory_should_be_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        let error = DiskCache::open(path.clone(), 200).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}
