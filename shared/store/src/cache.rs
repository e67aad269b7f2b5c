//! Documents kept near the decoder that reads them again and again.

mod disk;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use e2llm_api::v1::Segment;
use moka::future::Cache;
use moka::policy::EvictionPolicy;
use tracing::warn;

use crate::blob::{SoftPrompt, verified};
use crate::error::{Result, StoreError};
use crate::names::{BlobName, ContentHash};
use crate::store::{Store, blocking};
use disk::DiskCache;

/// How much a [`ReadCache`] keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes of soft prompts and texts in memory.
    pub memory: u64,
    /// Where soft prompts of a remote store are kept as files, and how many bytes of them.
    pub disk: Option<(PathBuf, u64)>,
}

/// Soft prompts and texts by content hash: verified ones in memory, soft prompts' bytes on a local disk, the rest from the store.
///
/// Each tier forgets what was not used for longest when its budget is full. Callers that want the same object at the same time share
/// one fetch. Bytes from the disk are verified as those from the store; damaged ones are fetched anew. What was deleted from the store
/// may stay here until its space is needed; no record names it any more.
#[derive(Debug, Clone)]
pub struct ReadCache {
    store: Store,
    prompts: Cache<String, Arc<SoftPrompt>>,
    texts: Cache<String, Arc<str>>,
    disk: Option<DiskCache>,
}

/// One part in so many of the memory is for texts: a soft prompt in f16 takes about 70 times the space of its text.
const TEXT_SHARE: u64 = 8;

impl ReadCache {
    /// A cache in front of `store`. The disk tier is not used for a store in a local directory, which is as near, and where its own
    /// directory cannot be: that is logged.
    pub fn new(store: Store, limits: CacheLimits) -> Self {
        let disk = match limits.disk {
            Some((directory, bytes)) if bytes > 0 && store.directory().is_none() => DiskCache::open(directory, bytes)
                .inspect_err(|error| warn!(%error, "soft prompts are not kept on the local disk"))
                .ok(),
            _ => None,
        };
        let text = limits.memory / TEXT_SHARE;
        let prompts = Cache::builder()
            .max_capacity(limits.memory - text)
            .weigher(|_: &String, prompt: &Arc<SoftPrompt>| weight(prompt.size()))
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let texts = Cache::builder()
            .max_capacity(text)
            .weigher(|_: &String, text: &Arc<str>| weight(text.len()))
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { store, prompts, texts, disk }
    }

    /// The soft prompt that a record names, as [`Store::get_blob`].
    ///
    /// # Errors
    /// Those of [`Store::get_blob`].
    pub async fn soft_prompt(&self, segment: &Segment) -> Result<Arc<SoftPrompt>> {
        let name = BlobName::new(&segment.input_key, &segment.content_hash)?;
        count("memory", self.prompts.contains_key(&segment.content_hash));
        let fetched = self.prompts.try_get_with_by_ref(&segment.content_hash, self.fetch(segment, &name)).await;
        let prompt = fetched.map_err(Arc::unwrap_or_clone)?;
        // Another record may have brought it here.
        prompt.check_record(&name, segment)?;
        Ok(prompt)
    }

    /// A text, as [`Store::get_text`].
    ///
    /// # Errors
    /// Those of [`Store::get_text`].
    pub async fn text(&self, hash: &str) -> Result<Arc<str>> {
        let fetch = async { Ok::<_, StoreError>(Arc::from(self.store.get_text(hash).await?)) };
        self.texts.try_get_with_by_ref(hash, fetch).await.map_err(Arc::unwrap_or_clone)
    }

    async fn fetch(&self, segment: &Segment, name: &BlobName) -> Result<Arc<SoftPrompt>> {
        let Some(disk) = &self.disk else { return Ok(Arc::new(self.store.get_blob(segment).await?)) };
        let kept = from_disk(disk.clone(), name.clone()).await?;
        count("disk", kept.is_some());
        if let Some(prompt) = kept {
            return Ok(Arc::new(prompt));
        }
        let (prompt, bytes) = self.store.get_blob_and_bytes(segment).await?;
        to_disk(disk.clone(), name.content_hash.clone(), bytes).await?;
        Ok(Arc::new(prompt))
    }
}

fn count(cache: &'static str, hit: bool) {
    let result = if hit { "hit" } else { "miss" };
    metrics::counter!("e2llm_cache_requests_total", "cache" => cache, "result" => result).increment(1);
}

fn weight(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Reads from the disk what is whole there.
async fn from_disk(disk: DiskCache, name: BlobName) -> Result<Option<SoftPrompt>> {
    blocking(move || {
        let Some(bytes) = disk.get(&name.content_hash) else { return Ok(None) };
        match verified(&name, &bytes) {
            Ok(prompt) => Ok(Some(prompt)),
            Err(reason) => {
                warn!(hash = %name.content_hash, reason, "a cached soft prompt is damaged, fetching it again");
                disk.remove(&name.content_hash);
                Ok(None)
            }
        }
    })
    .await
}

async fn to_disk(disk: DiskCache, hash: ContentHash, bytes: Bytes) -> Result<()> {
    blocking(move || {
        disk.put(&hash, &bytes);
        Ok(())
    })
    .await
}
