//! From a store URL to the clients that serve it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::error::{Result, StoreError};

/// The clients of one store root.
#[derive(Debug, Clone)]
pub(crate) struct Backend {
    /// Retries what is idempotent.
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// Never retries: after a retry inside the client, "already exists" could mean our own earlier attempt.
    pub(crate) creates: Arc<dyn ObjectStore>,
    /// Directory of a local store.
    pub(crate) directory: Option<PathBuf>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One request with its body: the largest blobs take seconds, a stalled server must not take minutes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The client of a bucket or container such as `s3://bucket`, for objects that are no store's: inputs and outputs.
/// Configured by the environment as a store is; retries what is idempotent.
///
/// # Errors
/// [`StoreError::InvalidUrl`] if the URL names no bucket or the environment does not say how to reach it.
pub fn open_bucket(url: &str) -> Result<Arc<dyn ObjectStore>> {
    let vars: Vec<(String, String)> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    Ok(Backend::open(url, &vars)?.objects)
}

impl Backend {
    /// Opens `url`; `vars` are environment variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
    pub(crate) fn open(url: &str, vars: &[(String, String)]) -> Result<Self> {
        if !url.contains("://") {
            return Self::local(Path::new(url));
        }
        let invalid = |reason: String| StoreError::InvalidUrl { url: url.to_owned(), reason };
        let parsed = Url::parse(url).map_err(|error| invalid(format!("is not a URL ({error})")))?;
        match parsed.scheme() {
            "file" => {
                let path = parsed
                    .to_file_path()
                    .map_err(|()| invalid("names a host or no absolute path; write file:///dir".to_owned()))?;
                Self::local(&path)
            }
            "memory" => Ok(Self::shared(Arc::new(InMemory::new()))),
            "s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss" => Self::remote(&parsed, vars, invalid),
            scheme => Err(invalid(format!("has the unknown scheme {scheme:?}"))),
        }
    }

    /// One client for everything. For stores whose puts have a certain outcome, and for fault injection.
    pub(crate) fn shared(objects: Arc<dyn ObjectStore>) -> Self {
        Self { creates: Arc::clone(&objects), objects, directory: None }
    }

    fn local(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        if name.is_empty() {
            let reason = "is empty".to_owned();
            return Err(StoreError::InvalidUrl { url: name, reason });
        }
        std::fs::create_dir_all(path).map_err(|error| StoreError::from_io(&name, &error))?;
        // fsync, because an acknowledged commit must survive a power cut as it does in a remote store.
        let files = LocalFileSystem::new_with_prefix(path)
            .map_err(|error| StoreError::from_object_store(&name, error))?
            .with_fsync(true)
            // Soft prompts and jobs have folders of their own: without this, each would leave an empty one behind.
            .with_automatic_cleanup(true);
        let directory = std::fs::canonicalize(path).map_err(|error| StoreError::from_io(&name, &error))?;
        Ok(Self { directory: Some(directory), ..Self::shared(Arc::new(files)) })
    }

    fn remote(url: &Url, vars: &[(String, String)], invalid: impl Fn(String) -> StoreError) -> Result<Self> {
        let bucket = match (url.host_str(), url.username()) {
            (None | Some(""), _) => return Err(invalid("names no bucket".to_owned())),
            // abfss://container@account.host/prefix
            (Some(_), container) if !container.is_empty() => container,
            (Some(host), _) => host,
        };
        let prefix = ObjectPath::from_url_path(url.path()).map_err(|error| invalid(error.to_string()))?;
        let client = |retry: RetryConfig| -> Result<Arc<dyn ObjectStore>> {
            let built = build(url, bucket, vars, retry).map_err(|error| {
                let detail = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                invalid(format!("cannot be opened: {detail}"))
            })?;
            Ok(Arc::new(PrefixStore::new(built, prefix.clone())))
        };
        let once = RetryConfig { max_retries: 0, ..patient() };
        Ok(Self { objects: client(patient())?, creates: client(once)?, directory: None })
    }
}

/// Bounded and jittered: a store that recovers within a minute costs time only.
fn patient() -> RetryConfig {
    let backoff =
        BackoffConfig { init_backoff: Duration::from_millis(100), max_backoff: Duration::from_secs(5), base: 2. };
    RetryConfig { backoff, max_retries: 10, retry_timeout: Duration::from_secs(60) }
}

fn build(
    url: &Url,
    bucket: &str,
    vars: &[(String, String)],
    retry: RetryConfig,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    match url.scheme() {
        "s3" | "s3a" => build_s3(bucket, vars, retry),
        "gs" => build_gcs(bucket, vars, retry),
        _ => build_azure(url, vars, retry),
    }
}

fn build_s3(bucket: &str, vars: &[(String, String)], retry: RetryConfig) -> object_store::Result<Arc<dyn ObjectStore>> {
    let plain_http =
        settings(vars, "AWS_").any(|(key, value)| key.starts_with("aws_endpoint") && value.starts_with("http://"));
    let defaults = AmazonS3Builder::new()
        .with_client_options(client_options().with_allow_http(plain_http))
        .with_retry(retry)
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    let configured = settings(vars, "AWS_").fold(defaults, |builder, (key, value)| match key.parse() {
        Ok(key) => builder.with_config(key, value),
        Err(_) => builder,
    });
    Ok(Arc::new(configured.with_bucket_name(bucket).build()?))
}

fn build_gcs(
    bucket: &str,
    vars: &[(String, String)],
    retry: RetryConfig,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let defaults = GoogleCloudStorageBuilder::new().with_client_options(client_options()).with_retry(retry);
    let configured = settings(vars, "GOOGLE_").fold(defaults, |builder, (key, value)| match key.parse() {
        Ok(key) => builder.with_config(key, value),
        Err(_) => builder,
    });
    Ok(Arc::new(configured.with_bucket_name(bucket).build()?))
}

fn build_azure(url: &Url, vars: &[(String, String)], retry: RetryConfig) -> object_store::Result<Arc<dyn ObjectStore>> {
    let defaults = MicrosoftAzureBuilder::new().with_client_options(client_options()).with_retry(retry);
    let configured = settings(vars, "AZURE_").fold(defaults, |builder, (key, value)| match key.parse() {
        Ok(key) => builder.with_config(key, value),
        Err(_) => builder,
    });
    // The URL may carry the account as well as the container: the builder knows all forms.
    Ok(Arc::new(configured.with_url(url.as_str()).build()?))
}

fn client_options() -> ClientOptions {
    ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT)
}

/// The variables that begin with `prefix`, keys in lower case as the builders name them.
fn settings<'a>(vars: &'a [(String, String)], prefix: &'a str) -> impl Iterator<Item = (String, &'a str)> {
    vars.iter()
        .filter(move |(key, _)| key.starts_with(prefix))
        .map(|(key, value)| (key.to_ascii_lowercase(), value.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(url: &str) -> String {
        Backend::open(url, &[]).unwrap_err().to_string()
    }

    #[test]
    fn a_url_that_cannot_be_a_store_is_refused_with_the_remedy() {
        for url in ["", "ftp://host/x", "s3://", "file://relative/x", "http://[", "s3:///prefix"] {
            let message = refusal(url);
            assert!(message.contains("use a directory, file:///dir, s3://bucket/prefix"), "{message}");
        }
    }

    #[test]
    fn remote_urls_open_without_touching_the_network() {
        let vars = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let aws = vars(&[
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:1"),
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
        ]);
        assert!(Backend::open("s3://bucket/some/prefix", &aws).is_ok());
        let gcs = vars(&[("GOOGLE_SKIP_SIGNATURE", "true")]);
        assert!(Backend::open("gs://bucket/prefix", &gcs).is_ok());
        let azure = vars(&[("AZURE_STORAGE_ACCOUNT_NAME", "account"), ("AZURE_SKIP_SIGNATURE", "true")]);
        assert!(Backend::open("az://container/prefix", &azure).is_ok());
    }
}
