//! What a result is written to, and how it becomes visible as a whole.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use tempfile::NamedTempFile;

use crate::objects::{ObjectUrl, Upload};

/// The place of one result.
#[derive(Debug)]
pub(crate) enum Destination {
    /// A file beside its final name; dropped unless it is renamed.
    File { path: PathBuf, file: NamedTempFile },
    /// Something that cannot be renamed over, such as `/dev/stdout` or a named pipe.
    Device { path: PathBuf, file: File },
    /// An object that appears when its upload is completed.
    Object(Box<Upload>),
}

impl Destination {
    /// Opens the value of `option`: a path or a URL.
    pub(super) fn open(option: &str, path: &Path) -> Result<Self> {
        let url = path.to_str().map(ObjectUrl::parse).transpose()?.flatten();
        match url {
            Some(ObjectUrl::Local(path)) => Self::local(option, &path),
            Some(ObjectUrl::Remote(object)) => {
                let upload = Upload::start(object).with_context(|| format!("cannot write {option}"))?;
                Ok(Destination::Object(Box::new(upload)))
            }
            None => Self::local(option, path),
        }
    }

    fn local(option: &str, path: &Path) -> Result<Self> {
        let metadata = path.metadata().ok();
        let path = path.to_owned();
        if metadata.as_ref().is_some_and(|metadata| metadata.is_dir()) {
            bail!("{option} {} is a directory; name a file in it", path.display());
        }
        if metadata.is_some_and(|metadata| !metadata.is_file()) {
            let opened = File::options().write(true).open(&path);
            let file = opened.with_context(|| format!("cannot write to {option} {}", path.display()))?;
            return Ok(Destination::Device { path, file });
        }
        let file = temporary_beside(&path).map_err(|error| {
            // The error's text has the temporary file's name, which says nothing to the user.
            let (path, kind) = (path.display(), error.kind());
            anyhow!("cannot write {option} {path} ({kind}); check that its directory exists and is writable")
        })?;
        Ok(Destination::File { path, file })
    }

    /// What went wrong when writing fails.
    pub(super) fn failure(&self) -> String {
        let (name, check) = match self {
            Destination::File { path, .. } | Destination::Device { path, .. } => {
                (path.display().to_string(), "the space on its disk")
            }
            Destination::Object(upload) => (upload.url().to_owned(), "the object store and its credentials"),
        };
        format!("cannot write {name}; nothing was written under that name, check {check}")
    }

    /// Makes what was written visible under its name.
    pub(super) fn commit(self) -> Result<()> {
        let failure = self.failure();
        match self {
            Destination::Device { mut file, .. } => file.flush().context(failure),
            Destination::Object(upload) => upload.complete().context(failure),
            Destination::File { path, file } => {
                file.as_file().sync_all().context(failure.clone())?;
                file.persist(&path).map_err(|error| error.error).context(failure)?;
                Ok(())
            }
        }
    }
}

impl Write for Destination {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Destination::File { file, .. } => file.write(bytes),
            Destination::Device { file, .. } => file.write(bytes),
            Destination::Object(upload) => upload.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Destination::File { file, .. } => file.flush(),
            Destination::Device { file, .. } => file.flush(),
            Destination::Object(upload) => upload.flush(),
        }
    }
}

fn temporary_beside(path: &Path) -> io::Result<NamedTempFile> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(path.file_name().unwrap_or_default());
    // As any new file: the process's umask applies.
    let permissions = Permissions::from_mode(0o666);
    tempfile::Builder::new().prefix(&prefix).suffix(".tmp").permissions(permissions).tempfile_in(directory)
}
