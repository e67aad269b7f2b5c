//! One file from the hub into its cache, whole or not at all.

use super::status;
use crate::ModelRef;
use crate::progress::{Meter, Progress};
use hf_hub::CacheRepo;
use hf_hub::api::sync::{Api, ApiError, ApiRepo};
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

/// Attempts per file, each from where the last one broke off.
const ATTEMPTS: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// What to fetch, from where and into which cache.
pub(super) struct Transfer<'a> {
    pub(super) remote: &'a Api,
    pub(super) files: &'a ApiRepo,
    pub(super) local: &'a CacheRepo,
    pub(super) name: &'a str,
}

impl Transfer<'_> {
    /// Fetches the file to `place`, its name in the snapshot, unless it is there.
    pub(super) fn run(&self, place: &Path, model: &ModelRef, progress: Progress) -> Result<(), ApiError> {
        let mut attempt = 1;
        loop {
            match self.attempt(place, Bar::new(progress, model)) {
                Err(error) if attempt < ATTEMPTS && may_pass(&error) => {
                    tracing::debug!(file = self.name, attempt, %error, "download broke off, taking it up again");
                }
                done => return done,
            }
            std::thread::sleep(FIRST_DELAY * 2_u32.pow(attempt - 1));
            attempt += 1;
        }
    }

    fn attempt(&self, place: &Path, bar: Bar) -> Result<(), ApiError> {
        if place.is_file() {
            return Ok(());
        }
        let metadata = self.remote.metadata(&self.files.url(self.name))?;
        let (blob, size) = (self.local.blob_path(metadata.etag()), metadata.size() as u64);
        if length(&blob) == Some(size) {
            return link(&blob, place);
        }
        let partial = blob.with_extension("part");
        if length(&partial).is_some_and(|arrived| arrived >= size) {
            // Nothing is left to ask for, so that the hub would refuse to go on: begin anew.
            fs::remove_file(&partial)?;
        }
        self.files.download_with_progress(self.name, bar)?;
        match length(&blob) {
            Some(arrived) if arrived == size => Ok(()),
            arrived => {
                fs::remove_file(place)?;
                fs::remove_file(&blob)?;
                let arrived = arrived.unwrap_or_default();
                let message = format!("{} ended after {arrived} of {size} bytes", self.name);
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, message).into())
            }
        }
    }
}

/// The same content under another commit: linked, not fetched again.
fn link(blob: &Path, place: &Path) -> Result<(), ApiError> {
    if let Some(dir) = place.parent() {
        fs::create_dir_all(dir)?;
    }
    match fs::hard_link(blob, place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(()),
    }
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// Broken connections and a busy hub pass; a full disk or a wrong name does not.
fn may_pass(error: &ApiError) -> bool {
    match (status(error), error) {
        (Some(code), _) => code == 429 || code >= 500,
        (None, ApiError::RequestError(_) | ApiError::LockAcquisition(_)) => true,
        (None, ApiError::IoError(inner)) => {
            use io::ErrorKind::{PermissionDenied, QuotaExceeded, StorageFull};
            !matches!(inner.kind(), StorageFull | QuotaExceeded | PermissionDenied)
        }
        _ => false,
    }
}

/// How far the file is.
struct Bar {
    progress: Progress,
    model: String,
    arrived: u64,
    meter: Option<Meter>,
}

impl Bar {
    fn new(progress: Progress, model: &ModelRef) -> Self {
        Self { progress, model: model.to_string(), arrived: 0, meter: None }
    }
}

impl hf_hub::api::Progress for Bar {
    // Called twice per file: before it is opened, and when its bytes begin to come.
    fn init(&mut self, size: usize, filename: &str) {
        self.arrived = 0;
        let label = || format!("{} {filename}", self.model);
        if self.meter.is_none() {
            self.meter = Some(Meter::start(self.progress, &label(), size as u64));
        }
    }

    fn update(&mut self, size: usize) {
        self.arrived += size as u64;
        if let Some(meter) = &mut self.meter {
            meter.at(self.arrived);
        }
    }

    fn finish(&mut self) {
        if let Some(meter) = self.meter.take() {
            meter.done();
        }
    }
}
