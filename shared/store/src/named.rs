//! Objects whose name and hash travel together: states of training and bundles, too large for messages and written once.

use bytes::Bytes;
use e2llm_api::v1::ObjectRef;

use crate::error::{Result, StoreError};
use crate::objects::Created;
use crate::store::Store;

impl Store {
    /// Writes `bytes` as `<prefix>-<first 16 digits of their blake3><suffix>` and returns what to read them by. Equal
    /// bytes under one prefix are one object.
    ///
    /// # Errors
    /// Those of [`Store::create`].
    pub async fn put_named(&self, prefix: &str, suffix: &str, bytes: Bytes) -> Result<ObjectRef> {
        let name = blake3::hash(&bytes).to_hex();
        self.put_verified(&format!("{prefix}-{}{suffix}", &name[..16]), bytes).await
    }

    /// Writes `bytes` under a name that stands for them. What is there already is read: if it is damaged it goes into
    /// quarantine and is written again.
    ///
    /// # Errors
    /// Those of [`Store::create`]; [`StoreError::Corrupt`] if the damaged object could not be replaced.
    pub async fn put_verified(&self, path: &str, bytes: Bytes) -> Result<ObjectRef> {
        let object = ObjectRef {
            path: path.to_owned(),
            blake3: blake3::hash(&bytes).to_hex().to_string(),
            bytes: bytes.len() as u64,
        };
        if self.create(path, bytes.clone()).await? == Created::New {
            return Ok(object);
        }
        match self.get_named(&object).await {
            Ok(_) => return Ok(object),
            Err(StoreError::Corrupt { .. } | StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        if self.create(path, bytes).await? == Created::Exists {
            // Someone else has replaced it, or it could not be moved away.
            self.get_named(&object).await?;
        }
        Ok(object)
    }

    /// Reads an object and verifies it.
    ///
    /// # Errors
    /// [`StoreError::NotFound`]; [`StoreError::Corrupt`], after which the object is in quarantine.
    pub async fn get_named(&self, object: &ObjectRef) -> Result<Bytes> {
        let Some(fetched) = self.fetch(&object.path).await? else {
            return Err(StoreError::NotFound { object: object.path.clone() });
        };
        if *blake3::hash(&fetched.bytes).to_hex() == *object.blake3 {
            return Ok(fetched.bytes);
        }
        let reason = format!("its blake3 is not {}", object.blake3);
        Err(self.set_aside(&object.path, &fetched.meta, reason).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_come_back_by_their_reference_and_only_unchanged() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().to_str().unwrap()).await.unwrap();
        let object = store.put_named("train/j/rounds/000000/member-0", ".safetensors", "state".into()).await.unwrap();
        assert!(object.path.starts_with("train/j/rounds/000000/member-0-") && object.path.ends_with(".safetensors"));
        assert_eq!(store.get_named(&object).await.unwrap(), "state");
        let again = store.put_named("train/j/rounds/000000/member-0", ".safetensors", "state".into()).await.unwrap();
        assert_eq!(again, object);
        std::fs::write(directory.path().join(&object.path), "stale").unwrap();
        assert!(matches!(store.get_named(&object).await, Err(StoreError::Corrupt { .. })));
        assert!(matches!(store.get_named(&object).await, Err(StoreError::NotFound { .. })), "it was set aside");
        let _created = store.create(&object.path, "stale").await.unwrap();
        let written = store.put_verified(&object.path, "state".into()).await.unwrap();
        assert_eq!((written, store.get_named(&object).await.unwrap()), (object.clone(), "state".into()));
    }
}
