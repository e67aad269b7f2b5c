use std::io::{Read, Seek, SeekFrom, Write};

use bytes::Bytes;
use object_store::path::Path as ObjectPath;
use object_store::{MultipartUpload, ObjectStoreExt};
use tempfile::SpooledTempFile;
use zstd::stream::write::Encoder;

use crate::error::{Result, StoreError};
use crate::garbage::unix_ms;
use crate::names::{self, ContentHash};
use crate::objects::Created;
use crate::store::{Store, blocking};
use crate::text_format::{self, HEADER_BYTES};
use crate::utf8::{InvalidAt, Utf8Check};

/// Largest text, in bytes of UTF-8.
pub const MAX_TEXT_BYTES: u64 = 2 << 30;

/// A stored text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextRef {
    /// blake3 of the UTF-8 bytes, 64 lower-case hex digits.
    pub hash: String,
    /// Length of the text in bytes of UTF-8.
    pub bytes: u64,
}

/// Takes a text in pieces and stores it under its hash. Dropped before [`finish`](Self::finish), it leaves nothing.
///
/// Memory does not grow with the text: compressed bytes beyond 8 MiB go to an unnamed temporary file.
pub struct TextWriter {
    store: Store,
    spill: Encoder<'static, Hashing<SpooledTempFile>>,
    text: TextHasher,
    /// The spool failed.
    failed: Option<StoreError>,
}

/// Checks a text that comes in pieces, and names it as [`TextWriter`] does, but stores nothing.
#[derive(Debug, Default)]
pub struct TextHasher {
    hasher: blake3::Hasher,
    utf8: Utf8Check,
    bytes: u64,
    /// The first error: a text with a hole has no name.
    failed: Option<StoreError>,
}

/// Size of the parts in which a large text is uploaded, and the most that is kept in memory.
const PART_BYTES: usize = 8 << 20;

/// Pieces in which a whole text is fed to the writer, so that other tasks run in between.
const PIECE_BYTES: usize = 1 << 20;

const COMPRESSION_LEVEL: i32 = 3;

/// Age from which a text that is put again is written again. Well below any sensible grace period of garbage
/// collection, well above the time in which one command puts a text twice.
const RENEW_AFTER_MS: u64 = 3600 * 1000;

impl TextWriter {
    fn new(store: Store) -> Result<Self> {
        let spool = Hashing { inner: tempfile::spooled_tempfile(PART_BYTES), hasher: blake3::Hasher::new() };
        let spill = Encoder::new(spool, COMPRESSION_LEVEL).map_err(spill_failed)?;
        Ok(Self { store, spill, text: TextHasher::default(), failed: None })
    }

    /// Takes the next piece. Code points may straddle pieces.
    ///
    /// # Errors
    /// [`StoreError::NotUtf8`] with the offset in the whole text; [`StoreError::TooLarge`] beyond
    /// [`MAX_TEXT_BYTES`]; [`StoreError::DiskFull`] when the temporary directory is full.
    ///
    /// After an error the text cannot be finished.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        self.text.write(piece)?;
        let spilled = self.spill.write_all(piece).map_err(spill_failed);
        if let Err(error) = &spilled {
            self.failed.get_or_insert_with(|| error.clone());
        }
        spilled
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.text.bytes
    }

    /// Ends the text and stores it, unless the store has it. One that was stored a while ago is written again, so that
    /// it is young: garbage collection leaves young texts alone, whoever refers to them or is about to.
    pub async fn finish(self) -> Result<TextRef> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let text = self.text.finish()?;
        let hash = ContentHash::parse(&text.hash)?;
        let path = names::text_path(&hash);
        let existing = self.store.info(&path).await?;
        if existing.as_ref().is_some_and(|object| object.age_ms(unix_ms()) < RENEW_AFTER_MS) {
            return Ok(text);
        }
        let spool = self.spill.finish().map_err(spill_failed)?;
        let header = text_format::header(text.bytes, &spool.hasher.finalize());
        let mut parts = Parts::new(header, spool.inner)?;
        let first = parts.next().await?;
        if first.len() < PART_BYTES && existing.is_some() {
            self.store.overwrite(&path, first).await?;
        } else if first.len() < PART_BYTES {
            // An existing object has the same name, hence the same text.
            let (Created::New | Created::Exists) = self.store.create(&path, first).await?;
        } else {
            upload(&self.store, &path, first, parts).await?;
        }
        Ok(text)
    }
}

impl TextHasher {
    /// Takes the next piece. Code points may straddle pieces.
    ///
    /// # Errors
    /// [`StoreError::NotUtf8`] with the offset in the whole text; [`StoreError::TooLarge`] beyond [`MAX_TEXT_BYTES`].
    ///
    /// After an error the text cannot be finished.
    pub fn write(&mut self, piece: &[u8]) -> Result<()> {
        let taken = self.take(piece);
        if let Err(error) = &taken {
            self.failed.get_or_insert_with(|| error.clone());
        }
        taken
    }

    fn take(&mut self, piece: &[u8]) -> Result<()> {
        self.utf8.push(piece).map_err(not_utf8)?;
        self.bytes += piece.len() as u64;
        if self.bytes > MAX_TEXT_BYTES {
            return Err(StoreError::TooLarge { what: "the text".to_owned(), limit: MAX_TEXT_BYTES });
        }
        self.hasher.update(piece);
        Ok(())
    }

    /// Ends the text.
    ///
    /// # Errors
    /// The first error of [`write`](Self::write), or [`StoreError::NotUtf8`] where the last code point has no end.
    pub fn finish(self) -> Result<TextRef> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.utf8.finish().map_err(not_utf8)?;
        Ok(TextRef { hash: ContentHash::from(self.hasher.finalize()).to_string(), bytes: self.bytes })
    }
}

impl std::fmt::Debug for TextWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextWriter").field("bytes", &self.text.bytes).finish_non_exhaustive()
    }
}

impl Store {
    /// Starts a text.
    pub fn text_writer(&self) -> Result<TextWriter> {
        TextWriter::new(self.clone())
    }

    /// Stores a whole text.
    pub async fn put_text(&self, text: &str) -> Result<TextRef> {
        let mut writer = self.text_writer()?;
        for piece in text.as_bytes().chunks(PIECE_BYTES) {
            writer.write(piece)?;
            tokio::task::yield_now().await;
        }
        writer.finish().await
    }

    /// Reads a text and verifies it against `hash`.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`], after which the object is in quarantine.
    pub async fn get_text(&self, hash: &str) -> Result<String> {
        let hash = ContentHash::parse(hash)?;
        let path = names::text_path(&hash);
        let Some(fetched) = self.fetch(&path).await? else {
            return Err(StoreError::NotFound { object: path });
        };
        let bytes = fetched.bytes;
        match blocking(move || Ok(text_format::decode(&bytes, &hash))).await? {
            Ok(text) => Ok(text),
            Err(reason) => Err(self.set_aside(&path, &fetched.meta, reason).await),
        }
    }

    /// Whether the store has a text of this hash. It is verified when it is read.
    pub async fn has_text(&self, hash: &str) -> Result<bool> {
        self.exists(&names::text_path(&ContentHash::parse(hash)?)).await
    }
}

/// Uploads a large text in parts. Atomic as every put; two writers of one name write the same text.
async fn upload(store: &Store, path: &str, first: Bytes, mut parts: Parts) -> Result<()> {
    let failed = |error| StoreError::from_object_store(path, error);
    let location = ObjectPath::from(path);
    let mut upload = store.inner.backend.objects.put_multipart(&location).await.map_err(failed)?;
    let sent = send(upload.as_mut(), first, &mut parts, path).await;
    let Err(error) = sent else { return Ok(()) };
    // The answer to a completed upload may have been lost.
    if store.exists(path).await.unwrap_or(false) {
        return Ok(());
    }
    if let Err(abort) = upload.abort().await {
        tracing::debug!(path, error = %abort, "upload could not be aborted");
    }
    Err(error)
}

async fn send(upload: &mut dyn MultipartUpload, first: Bytes, parts: &mut Parts, path: &str) -> Result<()> {
    let failed = |error| StoreError::from_object_store(path, error);
    let mut part = first;
    while !part.is_empty() {
        upload.put_part(part.into()).await.map_err(failed)?;
        part = parts.next().await?;
    }
    upload.complete().await.map_err(failed)?;
    Ok(())
}

/// The object to store, cut into parts of [`PART_BYTES`]; the last is shorter or empty.
struct Parts {
    header: Option<[u8; HEADER_BYTES]>,
    spool: Option<SpooledTempFile>,
}

impl Parts {
    fn new(header: [u8; HEADER_BYTES], mut spool: SpooledTempFile) -> Result<Self> {
        spool.seek(SeekFrom::Start(0)).map_err(spill_failed)?;
        Ok(Self { header: Some(header), spool: Some(spool) })
    }

    async fn next(&mut self) -> Result<Bytes> {
        let Some(mut spool) = self.spool.take() else { return Ok(Bytes::new()) };
        let mut part = self.header.take().map_or_else(Vec::new, |header| header.to_vec());
        let (part, spool) = blocking(move || {
            let room = (PART_BYTES - part.len()) as u64;
            Read::by_ref(&mut spool).take(room).read_to_end(&mut part).map_err(spill_failed)?;
            Ok((part, spool))
        })
        .await?;
        self.spool = Some(spool);
        Ok(part.into())
    }
}

/// Hashes what is written through it.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

fn not_utf8(InvalidAt(offset): InvalidAt) -> StoreError {
    StoreError::NotUtf8 { offset }
}

fn spill_failed(error: std::io::Error) -> StoreError {
    let folder = std::env::temp_dir();
    StoreError::from_io(&format!("a temporary file in {}", folder.display()), &error)
}
