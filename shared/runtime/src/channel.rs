//! The client side of a connection, or of several to servers of the same kind.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use tonic::body::Body;
use tower::{Service, ServiceExt};

use crate::reload::Reloading;
use crate::trace;

/// How long an address that failed is tried only when all others have.
const AVOID: Duration = Duration::from_secs(5);
/// How often the addresses of a name are looked up.
const LOOK_UP: Duration = Duration::from_secs(5);

/// What a call is about, such as a document's id: calls about the same go to the same server while that is there, because it has in its
/// caches what the last one needed. To be put into a request's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affinity(u64);

impl Affinity {
    /// To whatever `key` names.
    pub fn to(key: &impl Hash) -> Self {
        Self(hash_of(key))
    }
}

/// Sends calls, with this process's token if it has one. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Channel {
    route: Route,
    token: Option<Arc<Token>>,
}

/// A token in a file, as the header that it is sent in.
pub(crate) type Token = Reloading<HeaderValue>;

#[derive(Debug, Clone)]
enum Route {
    /// One connection.
    One(tonic::transport::Channel),
    /// One to each address of a name.
    Each(Arc<Addresses>),
}

impl Channel {
    pub(crate) fn one(channel: tonic::transport::Channel, token: Option<Arc<Token>>) -> Self {
        Self { route: Route::One(channel), token }
    }

    /// A channel to every address of `host`, looked up again and again. `connect` makes one to an address.
    pub(crate) fn each(
        host: String,
        port: u16,
        connect: impl Fn(SocketAddr) -> tonic::transport::Channel + Send + Sync + 'static,
        token: Option<Arc<Token>>,
    ) -> Self {
        let addresses = Arc::new(Addresses {
            host,
            port,
            connect: Box::new(connect),
            known: Mutex::default(),
            failed: Mutex::default(),
            next: AtomicUsize::new(0),
        });
        let watched = Arc::downgrade(&addresses);
        tokio::spawn(async move {
            while let Some(addresses) = watched.upgrade() {
                addresses.look_up().await;
                drop(addresses);
                tokio::time::sleep(LOOK_UP).await;
            }
        });
        Self { route: Route::Each(addresses), token }
    }
}

impl Service<http::Request<Body>> for Channel {
    type Response = http::Response<Body>;
    type Error = tower::BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        match &mut self.route {
            Route::One(channel) => channel.poll_ready(cx).map_err(Into::into),
            Route::Each(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        if let Some(token) = &self.token {
            request.headers_mut().insert(AUTHORIZATION, (*token.current()).clone());
        }
        trace::inject(request.headers_mut());
        match &mut self.route {
            Route::One(channel) => {
                let answer = channel.call(request);
                Box::pin(async move { Ok(answer.await?) })
            }
            Route::Each(addresses) => {
                let addresses = Arc::clone(addresses);
                Box::pin(async move {
                    let affinity = request.extensions().get::<Affinity>().copied();
                    let (address, channel) = addresses.choose(affinity).await?;
                    let answer = channel.oneshot(request).await;
                    if answer.is_err() {
                        addresses.note_failure(address);
                    }
                    Ok(answer?)
                })
            }
        }
    }
}

/// The servers behind a name.
struct Addresses {
    host: String,
    port: u16,
    connect: Box<dyn Fn(SocketAddr) -> tonic::transport::Channel + Send + Sync>,
    known: Mutex<Vec<(SocketAddr, tonic::transport::Channel)>>,
    /// Those that refused or broke a call, and when.
    failed: Mutex<HashMap<SocketAddr, Instant>>,
    /// Whose turn it is.
    next: AtomicUsize,
}

impl Addresses {
    /// Keeps connections to addresses that are still there. A name that has none at the moment keeps the ones it had.
    async fn look_up(&self) {
        let found = match tokio::net::lookup_host((self.host.as_str(), self.port)).await {
            Ok(found) => found,
            Err(error) => return tracing::debug!(host = self.host, %error, "addresses not found"),
        };
        let mut found: Vec<SocketAddr> = found.collect();
        found.sort();
        found.dedup();
        if found.is_empty() {
            return;
        }
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let before = std::mem::take(&mut *known);
        *known = found
            .into_iter()
            .map(|address| {
                let kept = before.iter().find(|(old, _)| *old == address).map(|(_, channel)| channel.clone());
                (address, kept.unwrap_or_else(|| (self.connect)(address)))
            })
            .collect();
    }

    /// Others are tried first for a while.
    fn note_failure(&self, address: SocketAddr) {
        let mut failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failed.retain(|_, since| since.elapsed() < AVOID);
        failed.insert(address, Instant::now());
    }

    fn is_avoided(&self, address: SocketAddr) -> bool {
        let failed = self.failed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        failed.get(&address).is_some_and(|since| since.elapsed() < AVOID)
    }

    async fn choose(
        &self,
        affinity: Option<Affinity>,
    ) -> Result<(SocketAddr, tonic::transport::Channel), tower::BoxError> {
        if let Some(channel) = self.pick(affinity) {
            return Ok(channel);
        }
        self.look_up().await;
        self.pick(affinity).ok_or_else(|| format!("{} has no addresses", self.host).into())
    }

    fn pick(&self, affinity: Option<Affinity>) -> Option<(SocketAddr, tonic::transport::Channel)> {
        let known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let all: Vec<SocketAddr> = known.iter().map(|(address, _)| *address).collect();
        let good: Vec<SocketAddr> = all.iter().copied().filter(|address| !self.is_avoided(*address)).collect();
        let addresses = if good.is_empty() { all } else { good };
        let address = addresses.get(chosen(&addresses, affinity, turn)?)?;
        known.iter().find(|(known, _)| known == address).cloned()
    }
}

/// With affinity the address that has the highest hash together with it (rendezvous hashing: when a server comes or goes, only its own
/// share of documents moves), otherwise each in turn.
fn chosen(addresses: &[SocketAddr], affinity: Option<Affinity>, turn: usize) -> Option<usize> {
    match affinity {
        Some(Affinity(key)) => (0..addresses.len()).max_by_key(|index| hash_of(&(key, addresses[*index]))),
        None => turn.checked_rem(addresses.len()),
    }
}

/// The same in all processes of one build, so that their clients agree on a document's server.
fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = std::hash::DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").field("host", &self.host).field("port", &self.port).finish_non_exhaustive()
    }
}
