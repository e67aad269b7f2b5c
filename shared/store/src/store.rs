use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;

use crate::backend::Backend;
use crate::error::{Result, StoreError};
use crate::identity::{Identity, STORE_FILE};
use crate::objects::Created;

/// One store root. Cheap to clone; clones share their connections.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) backend: Backend,
    url: String,
    id: String,
}

impl Store {
    /// Opens the store at `url`: a directory, `file://`, `s3://`, `gs://`, `az://` or `memory://`.
    ///
    /// Endpoint and credentials come from the usual environment variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`);
    /// plain HTTP is used when the S3 endpoint says so. A root without `store.json` becomes a new store.
    ///
    /// # Errors
    /// [`StoreError::InvalidUrl`], [`StoreError::WrongStore`] for a `store.json` of another layout, program or
    /// with damage, and what the operating system or the remote store refuses.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_with(
            url,
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))),
        )
        .await
    }

    /// [`Store::open`] with the given variables instead of the process's environment.
    pub async fn open_with(url: &str, vars: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        let vars: Vec<_> = vars.into_iter().collect();
        Self::from_backend(Backend::open(url, &vars)?, url).await
    }

    /// Opens a store on any object store. `url` appears in messages only.
    pub async fn from_object_store(objects: Arc<dyn ObjectStore>, url: &str) -> Result<Self> {
        Self::from_backend(Backend::shared(objects), url).await
    }

    /// The random id of this root. Derived state compares it before it trusts itself.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The URL it was opened with.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// The directory of a local store.
    pub fn directory(&self) -> Option<&Path> {
        self.inner.backend.directory.as_deref()
    }

    async fn from_backend(backend: Backend, url: &str) -> Result<Self> {
        let nameless = Inner { backend, url: url.to_owned(), id: String::new() };
        let store = Self { inner: Arc::new(nameless) };
        let id = store.identify().await?.id;
        let backend = store.inner.backend.clone();
        Ok(Self { inner: Arc::new(Inner { backend, url: url.to_owned(), id }) })
    }

    async fn identify(&self) -> Result<Identity> {
        if let Some(bytes) = self.get(STORE_FILE).await? {
            return Identity::parse(self.url(), &bytes);
        }
        let fresh = Identity::random();
        let created = self.create(STORE_FILE, fresh.to_bytes()?).await.map_err(|e| self.no_root(e))?;
        if created == Created::New {
            return Ok(fresh);
        }
        let bytes = self.get(STORE_FILE).await?;
        let bytes = bytes.ok_or_else(|| StoreError::NotFound { object: STORE_FILE.to_owned() })?;
        Identity::parse(self.url(), &bytes)
    }

    /// A put answers "not found" only when what holds the objects is missing.
    fn no_root(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::NotFound { .. } => StoreError::InvalidUrl {
                url: self.url().to_owned(),
                reason: "names a bucket or container that does not exist; create it".to_owned(),
            },
            other => other,
        }
    }
}

/// Runs CPU work or blocking I/O on the thread pool made for it.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StoreError::Internal(format!("a worker thread failed: {error}"))),
    }
}
