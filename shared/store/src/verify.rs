//! Checks every object against its name, for `doctor`.

use futures::stream::{BoxStream, StreamExt};

use crate::blob;
use crate::error::{Result, StoreError};
use crate::identity::{Identity, STORE_FILE};
use crate::names::{self, BLOBS, BlobName, TEXTS};
use crate::objects::ObjectInfo;
use crate::store::{Store, blocking};
use crate::text_format;

/// What was found out about one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path of the object.
    pub object: String,
    /// What kind of object it is.
    pub kind: ObjectKind,
    /// Its size; 0 if it could not be read.
    pub bytes: u64,
    /// Whether it can be used.
    pub health: Health,
}

/// The kinds of objects whose names verify them. Manifests verify themselves, see [`crate::manifest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// `store.json`.
    Identity,
    /// A source text.
    Text,
    /// A soft prompt.
    Blob,
}

/// Whether an object can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Its bytes match its name.
    Ok,
    /// They do not. [`Store::quarantine`] sets it aside.
    Corrupt {
        /// What does not match.
        reason: String,
    },
    /// It could not be read.
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// How many objects are read at once.
const CONCURRENCY: usize = 4;

impl Store {
    /// Reads and verifies all texts and blobs, and `store.json`. Nothing is moved or changed.
    ///
    /// An error item means that a listing failed; each object that can be listed gives one [`Finding`].
    pub fn verify(&self) -> BoxStream<'static, Result<Finding>> {
        let identity = self.clone();
        let first =
            futures::stream::once(async move { Ok(identity.check(ObjectKind::Identity, STORE_FILE.to_owned()).await) });
        first.chain(self.verify_all(ObjectKind::Text)).chain(self.verify_all(ObjectKind::Blob)).boxed()
    }

    fn verify_all(&self, kind: ObjectKind) -> BoxStream<'static, Result<Finding>> {
        let folder = match kind {
            ObjectKind::Text => TEXTS,
            ObjectKind::Blob | ObjectKind::Identity => BLOBS,
        };
        let store = self.clone();
        let check = move |listed: Result<ObjectInfo>| {
            let store = store.clone();
            async move { Ok(store.check(kind, listed?.path).await) }
        };
        self.list_stream(folder).map(check).buffer_unordered(CONCURRENCY).boxed()
    }

    async fn check(&self, kind: ObjectKind, object: String) -> Finding {
        let (bytes, health) = match self.fetch(&object).await {
            Ok(Some(fetched)) => {
                let size = fetched.bytes.len() as u64;
                (size, self.check_bytes(kind, object.clone(), fetched.bytes).await)
            }
            Ok(None) => (0, Health::Unreadable { reason: "it vanished while it was checked".to_owned() }),
            Err(error) => (0, Health::Unreadable { reason: error.to_string() }),
        };
        Finding { object, kind, bytes, health }
    }

    async fn check_bytes(&self, kind: ObjectKind, path: String, bytes: bytes::Bytes) -> Health {
        let url = self.url().to_owned();
        let checked = blocking(move || Ok(check_one(kind, &url, &path, &bytes))).await;
        match checked {
            Ok(Ok(())) => Health::Ok,
            Ok(Err(reason)) => Health::Corrupt { reason },
            Err(error) => Health::Unreadable { reason: error.to_string() },
        }
    }
}

fn check_one(kind: ObjectKind, url: &str, path: &str, bytes: &[u8]) -> Result<(), String> {
    match kind {
        ObjectKind::Identity => match Identity::parse(url, bytes) {
            Err(StoreError::WrongStore { reason, .. }) => Err(reason),
            other => other.map(drop).map_err(|error| error.to_string()),
        },
        ObjectKind::Text => {
            let hash = names::text_hash(path).ok_or("its path is not that of a text")?;
            text_format::decode(bytes, &hash).map(drop)
        }
        ObjectKind::Blob => {
            let name = BlobName::from_path(path).ok_or("its path is not that of a blob")?;
            blob::verified(&name, bytes).map(drop)
        }
    }
}
