//! Objects of `s3://`, `gs://` and `az://` that are inputs and outputs, for code that reads and writes bytes.
//!
//! Readers and writers here are `std::io`'s, because what uses them is synchronous: decompressors, Parquet, line
//! readers. They wait for the network on the caller's thread.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::{Buf, Bytes};
use e2llm_store::open_bucket;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::buffered::BufWriter;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio::time::timeout;
use url::Url;

/// How long a command that ends early may take to abort its upload.
const ABORT_DEADLINE: Duration = Duration::from_secs(5);
const REMOTE: [&str; 7] = ["s3", "s3a", "gs", "az", "azure", "abfs", "abfss"];

/// What a URL names.
#[derive(Debug)]
pub(crate) enum ObjectUrl {
    /// `file://`
    Local(PathBuf),
    /// An object, a prefix or a pattern in a bucket.
    Remote(Object),
}

/// A place in a bucket or container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    /// Such as `s3://bucket`.
    pub(crate) bucket: String,
    /// All after the slash that follows, as it was typed.
    pub(crate) key: String,
}

impl ObjectUrl {
    /// `None` for what is no URL but a path.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>> {
        let Some((scheme, rest)) = text.split_once("://") else { return Ok(None) };
        if scheme == "file" {
            let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
            let path = path.with_context(|| format!("{text} names no absolute path; write file:///dir/file"))?;
            return Ok(Some(ObjectUrl::Local(path)));
        }
        if !REMOTE.contains(&scheme) {
            bail!("{text} has the unknown scheme {scheme:?}; use a path, file://, s3://, gs:// or az://");
        }
        let (host, key) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Some(ObjectUrl::Remote(Object { bucket: format!("{scheme}://{host}"), key: key.to_owned() })))
    }
}

impl Object {
    /// As a URL.
    pub(crate) fn url(&self) -> String {
        format!("{}/{}", self.bucket, self.key)
    }

    /// Another key of the same bucket.
    pub(crate) fn with_key(&self, key: impl Into<String>) -> Self {
        Self { key: key.into(), ..self.clone() }
    }

    fn open(&self) -> Result<(Arc<dyn ObjectStore>, Key)> {
        let key = Key::parse(&self.key).with_context(|| format!("{} is no name of an object", self.url()))?;
        Ok((open_bucket(&self.bucket)?, key))
    }

    /// Reads the object as a stream. Blocks; for threads outside the runtime.
    pub(crate) fn read(&self, runtime: &Handle) -> io::Result<Download> {
        let (store, key) = self.open().map_err(invalid)?;
        let result = runtime.block_on(store.get(&key)).map_err(io_error)?;
        Ok(Download { stream: result.into_stream(), rest: Bytes::new(), runtime: runtime.clone() })
    }

    /// Keys of the objects below this prefix, in the store's order. Blocks; for threads outside the runtime.
    pub(crate) fn list(&self, runtime: &Handle) -> io::Result<Listing> {
        let (store, prefix) = self.with_key(self.key.trim_end_matches('/')).open().map_err(invalid)?;
        let prefix = Some(prefix).filter(|prefix| !prefix.as_ref().is_empty());
        Ok(Listing { stream: store.list(prefix.as_ref()).boxed(), runtime: runtime.clone() })
    }
}

fn invalid(error: anyhow::Error) -> io::Error {
    io::Error::other(format!("{error:#}"))
}

fn io_error(error: object_store::Error) -> io::Error {
    let kind = match &error {
        object_store::Error::NotFound { .. } => io::ErrorKind::NotFound,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            io::ErrorKind::PermissionDenied
        }
        _ => io::ErrorKind::Other,
    };
    let detail = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    io::Error::new(kind, detail)
}

/// An object's bytes.
pub(crate) struct Download {
    stream: BoxStream<'static, object_store::Result<Bytes>>,
    rest: Bytes,
    runtime: Handle,
}

impl Read for Download {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.runtime.block_on(self.stream.next()) {
                Some(bytes) => self.rest = bytes.map_err(io_error)?,
                None => return Ok(0),
            }
        }
        let length = self.rest.len().min(into.len());
        self.rest.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}

/// Keys of a bucket.
pub(crate) struct Listing {
    stream: BoxStream<'static, object_store::Result<object_store::ObjectMeta>>,
    runtime: Handle,
}

impl Iterator for Listing {
    type Item = io::Result<String>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.runtime.block_on(self.stream.next())?;
        Some(next.map(|object| object.location.into()).map_err(io_error))
    }
}

/// An object that is written piece by piece and appears when it is complete. Dropping it leaves nothing behind.
#[derive(Debug)]
pub(crate) struct Upload {
    url: String,
    writer: Option<BufWriter>,
    runtime: Handle,
}

impl Upload {
    /// Begins an upload, after a look at whether the bucket is there. Blocks; for threads of the runtime.
    pub(crate) fn start(object: Object) -> Result<Self> {
        let url = object.url();
        if object.key.is_empty() || object.key.ends_with('/') {
            bail!("{url} names no object; add a file name");
        }
        let (store, key) = object.open()?;
        let runtime = Handle::try_current().context("an upload needs the runtime")?;
        let seen = block_in_place(|| runtime.block_on(store.list(Some(&key)).next()));
        seen.transpose().map_err(io_error).with_context(|| format!("{url}: check the bucket and its credentials"))?;
        Ok(Self { url, writer: Some(BufWriter::new(store, key)), runtime })
    }

    /// The object's URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Makes the object appear.
    pub(crate) fn complete(mut self) -> io::Result<()> {
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        block_in_place(|| self.runtime.block_on(writer.shutdown()))
    }
}

impl Write for Upload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(writer) = &mut self.writer else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let put = writer.put(Bytes::copy_from_slice(bytes));
        block_in_place(|| self.runtime.block_on(put)).map_err(io_error)?;
        Ok(bytes.len())
    }

    /// Pieces go out when they are large enough for the store.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.take() else { return };
        // The store drops what is left of an upload by its own rules if it cannot be told.
        let abort = async { timeout(ABORT_DEADLINE, writer.abort()).await };
        let _ = block_in_place(|| self.runtime.block_on(abort));
    }
}
