//! What garbage collection of blobs and texts keeps in the store. The index decides and deletes; see its module `gc`.
//!
//! ```text
//! gc/marks/<%020d>   names of objects that nothing referred to, and when that was seen; create-only
//! gc/sweeping        there while texts are being deleted: who is about to rely on texts waits until it is gone
//! gc/swept           there once anything has ever been deleted: from then on a commit looks whether its blobs exist
//! ```

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use e2llm_api::v1;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use tracing::warn;

use crate::error::Result;
use crate::manifest::seal;
use crate::names::{self, BLOBS, BlobName, ContentHash, GARBAGE, QUARANTINE, TEXTS};
use crate::objects::{Created, ObjectInfo};
use crate::store::Store;

/// Bytes of a hash.
const HASH: usize = 32;
/// How often one who waits for the end of a sweep looks.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Names a blob or a text in few bytes, for there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectName {
    /// A soft prompt.
    Blob {
        /// What it was made from.
        input_key: [u8; HASH],
        /// Hash of its bytes.
        content_hash: [u8; HASH],
    },
    /// A source text.
    Text([u8; HASH]),
}

/// Half a hash: enough to tell objects apart. Were two ever alike, one of them would be kept for nothing.
pub type ObjectKey = [u8; HASH / 2];

impl ObjectName {
    /// The name in the form that [`Display`](fmt::Display) gives: `<input key>/<content hash>` of a blob, the hash of
    /// a text.
    ///
    /// # Errors
    /// [`StoreError::InvalidName`](crate::StoreError::InvalidName)
    pub fn parse(name: &str) -> Result<Self> {
        match name.split_once('/') {
            Some((input_key, content_hash)) => Ok(Self::from(&BlobName::new(input_key, content_hash)?)),
            None => Ok(Self::from(&ContentHash::parse(name)?)),
        }
    }

    /// Whether it is a text.
    pub fn is_text(&self) -> bool {
        matches!(self, Self::Text(_))
    }

    /// Tells it from other objects.
    pub fn key(&self) -> ObjectKey {
        let (Self::Blob { content_hash: hash, .. } | Self::Text(hash)) = self;
        let mut key = ObjectKey::default();
        key.copy_from_slice(&hash[..HASH / 2]);
        key
    }

    /// Where the object is.
    pub fn path(&self) -> String {
        match self {
            Self::Blob { input_key, content_hash } => {
                BlobName { input_key: hash(*input_key), content_hash: hash(*content_hash) }.path()
            }
            Self::Text(bytes) => names::text_path(&hash(*bytes)),
        }
    }

    /// The name behind a path, if it is that of a blob or text.
    pub fn of_path(path: &str) -> Option<Self> {
        let blob = || BlobName::from_path(path).as_ref().map(Self::from);
        names::text_hash(path).as_ref().map(Self::from).or_else(blob)
    }
}

impl From<&BlobName> for ObjectName {
    fn from(name: &BlobName) -> Self {
        Self::Blob { input_key: name.input_key.to_bytes(), content_hash: name.content_hash.to_bytes() }
    }
}

impl From<&ContentHash> for ObjectName {
    fn from(text: &ContentHash) -> Self {
        Self::Text(text.to_bytes())
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob { input_key, content_hash } => write!(f, "{}/{}", hash(*input_key), hash(*content_hash)),
            Self::Text(bytes) => hash(*bytes).fmt(f),
        }
    }
}

fn hash(bytes: [u8; HASH]) -> ContentHash {
    blake3::Hash::from_bytes(bytes).into()
}

/// Objects that were seen to be unused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Its number among marks.
    pub number: u64,
    /// When they were seen to be unused, in milliseconds since 1970.
    pub unix_ms: u64,
    /// What was unused.
    pub names: Vec<ObjectName>,
}

impl Store {
    /// All texts, then all blobs, as listings give them. What has another name is passed over with a warning.
    pub fn collectable(&self) -> BoxStream<'static, Result<(ObjectName, ObjectInfo)>> {
        let listed = self.list_stream(TEXTS).chain(self.list_stream(BLOBS));
        let named = listed.filter_map(|object| {
            let named = match object {
                Ok(object) => match ObjectName::of_path(&object.path) {
                    Some(name) => Some(Ok((name, object))),
                    None => {
                        warn!(path = object.path, "neither a text nor a blob by its name, ignored");
                        None
                    }
                },
                Err(error) => Some(Err(error)),
            };
            std::future::ready(named)
        });
        named.boxed()
    }

    /// Damaged texts and blobs that were set aside, each with the name it had.
    pub fn quarantined(&self) -> BoxStream<'static, Result<(ObjectName, ObjectInfo)>> {
        let named = self.list_stream(QUARANTINE).try_filter_map(|object| {
            let was = object.path.strip_prefix(QUARANTINE).and_then(|path| path.strip_prefix('/')?.rsplit_once('.'));
            let name = was.and_then(|(path, _random)| ObjectName::of_path(path));
            std::future::ready(Ok(name.map(|name| (name, object))))
        });
        named.boxed()
    }

    /// Numbers of all marks, ascending.
    pub async fn marks(&self) -> Result<Vec<u64>> {
        let paths = self.list(&format!("{GARBAGE}/marks")).await?;
        Ok(paths.iter().filter_map(|path| path.rsplit('/').next()?.parse().ok()).collect())
    }

    /// Writes a mark under the first number that is free after all there are.
    pub async fn create_mark(&self, unix_ms: u64, names: &[ObjectName]) -> Result<u64> {
        let mut body = v1::GarbageMark { unix_ms, ..Default::default() };
        for name in names {
            match name {
                ObjectName::Blob { input_key, content_hash } => {
                    body.blobs.extend_from_slice(input_key);
                    body.blobs.extend_from_slice(content_hash);
                }
                ObjectName::Text(hash) => body.texts.extend_from_slice(hash),
            }
        }
        let (bytes, _) = seal::seal(&body);
        let bytes = bytes::Bytes::from(bytes);
        let mut number = self.marks().await?.last().map_or(1, |last| last + 1);
        while self.create(&mark_path(number), bytes.clone()).await? == Created::Exists {
            number += 1;
        }
        Ok(number)
    }

    /// Reads a mark; `None` if there is none of this number.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`](crate::StoreError::Corrupt): it is moved to quarantine; what it named will be marked anew.
    pub async fn read_mark(&self, number: u64) -> Result<Option<Mark>> {
        let path = mark_path(number);
        let Some(fetched) = self.fetch(&path).await? else { return Ok(None) };
        let opened = seal::open::<v1::GarbageMark>(&path, &fetched.bytes).map_err(|error| error.to_string());
        match opened.and_then(|(body, _)| names_of(&body)) {
            Ok((unix_ms, names)) => Ok(Some(Mark { number, unix_ms, names })),
            Err(reason) => Err(self.set_aside(&path, &fetched.meta, reason).await),
        }
    }

    /// Removes a mark.
    pub async fn delete_mark(&self, number: u64) -> Result<()> {
        self.delete(&mark_path(number)).await
    }

    /// Announces that texts will be deleted. Only the index calls this.
    pub async fn begin_text_sweep(&self, unix_ms: u64) -> Result<()> {
        let (Created::New | Created::Exists) = self.create(&sweeping(), unix_ms.to_string()).await?;
        Ok(())
    }

    /// Takes the announcement back: no text is being deleted.
    pub async fn end_text_sweep(&self) -> Result<()> {
        self.delete(&sweeping()).await
    }

    /// Returns when no texts are being deleted.
    ///
    /// Who then finds a text can rely on it, provided that whoever sweeps next learns of that: a coordinator says that
    /// rows are being submitted, and is asked only after the sweep was announced.
    pub async fn wait_for_text_sweep(&self) -> Result<()> {
        while self.exists(&sweeping()).await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Whether anything was ever deleted as garbage.
    pub async fn has_swept(&self) -> Result<bool> {
        self.exists(&swept()).await
    }

    /// Notes that something is about to be deleted as garbage.
    pub async fn note_sweep(&self) -> Result<()> {
        let (Created::New | Created::Exists) = self.create(&swept(), "").await?;
        Ok(())
    }
}

fn mark_path(number: u64) -> String {
    format!("{GARBAGE}/marks/{number:020}")
}

fn sweeping() -> String {
    format!("{GARBAGE}/sweeping")
}

fn swept() -> String {
    format!("{GARBAGE}/swept")
}

fn names_of(body: &v1::GarbageMark) -> Result<(u64, Vec<ObjectName>), String> {
    let (blobs, rest) = body.blobs.as_chunks::<{ 2 * HASH }>();
    let (texts, more) = body.texts.as_chunks::<HASH>();
    if !rest.is_empty() || !more.is_empty() {
        return Err("names part of an object".to_owned());
    }
    let blob = |pair: &[u8; 2 * HASH]| {
        let (mut input_key, mut content_hash) = ([0; HASH], [0; HASH]);
        input_key.copy_from_slice(&pair[..HASH]);
        content_hash.copy_from_slice(&pair[HASH..]);
        ObjectName::Blob { input_key, content_hash }
    };
    let names = blobs.iter().map(blob).chain(texts.iter().map(|hash| ObjectName::Text(*hash)));
    Ok((body.unix_ms, names.collect()))
}

pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_to_its_path_and_back() {
        let hash = ContentHash::of(b"text");
        let blob = BlobName { input_key: ContentHash::of(b"in"), content_hash: ContentHash::of(b"out") };
        for (name, path) in [(ObjectName::from(&hash), names::text_path(&hash)), (ObjectName::from(&blob), blob.path())]
        {
            assert_eq!(name.path(), path);
            assert_eq!(ObjectName::of_path(&path), Some(name));
            assert_eq!(ObjectName::parse(&name.to_string()), Ok(name));
        }
        assert_eq!(ObjectName::from(&hash).to_string(), hash.to_string());
        assert_eq!(ObjectName::of_path("jobs/a/spec"), None);
        assert!(ObjectName::parse("ab/cd").is_err());
    }
}
