//! Stands between the fleet and a real S3 server, and misbehaves on request.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client;
use hyper::server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::net::{TcpListener, TcpStream};

use crate::plan::Misbehaviour;

/// A proxy that runs until its runtime ends.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) address: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: String,
    state: Mutex<Option<(Misbehaviour, ChaCha8Rng)>>,
    faults: AtomicU64,
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    /// Answered by the proxy; `done` if the server has done it all the same.
    Refuse {
        status: StatusCode,
        done: bool,
    },
    /// The connection ends instead of an answer.
    Reset {
        done: bool,
    },
    Delay(Duration),
}

impl Proxy {
    /// Starts one in front of `server` (host and port).
    pub(crate) async fn start(server: String) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let shared = Arc::new(Shared { server, state: Mutex::new(None), faults: AtomicU64::new(0) });
        tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { address, shared })
    }

    /// Misbehaves from now on, as `seed` has it.
    pub(crate) fn misbehave(&self, mode: Misbehaviour, seed: u64) {
        *self.shared.lock() = Some((mode, ChaCha8Rng::seed_from_u64(seed)));
    }

    /// Passes everything on from now on.
    pub(crate) fn heal(&self) {
        *self.shared.lock() = None;
    }

    /// How many requests were not passed on as they should have been.
    pub(crate) fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Misbehaviour, ChaCha8Rng)>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, method: &Method) -> Verdict {
        let verdict = match &mut *self.lock() {
            None => Verdict::Pass,
            Some((mode, rng)) => judge(*mode, rng, method),
        };
        if verdict != Verdict::Pass {
            self.faults.fetch_add(1, Ordering::SeqCst);
        }
        verdict
    }

    async fn forward(&self, request: Request<Full<Bytes>>) -> io::Result<Response<Full<Bytes>>> {
        let stream = TcpStream::connect(&self.server).await?;
        let (mut sender, connection) =
            client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let (parts, body) = sender.send_request(request).await.map_err(io::Error::other)?.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Response::from_parts(parts, Full::new(body)))
    }

    async fn serve(&self, request: Request<Incoming>) -> io::Result<Response<Full<Bytes>>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let verdict = self.judge(&parts.method);
        let request = Request::from_parts(parts, Full::new(body));
        let reset = || io::Error::from(io::ErrorKind::ConnectionReset);
        match verdict {
            Verdict::Pass => self.forward(request).await,
            Verdict::Delay(time) => {
                tokio::time::sleep(time).await;
                self.forward(request).await
            }
            Verdict::Refuse { status, done } => {
                if done {
                    self.forward(request).await?;
                }
                Ok(refusal(status))
            }
            Verdict::Reset { done } => {
                if done {
                    self.forward(request).await?;
                }
                Err(reset())
            }
        }
    }
}

fn judge(mode: Misbehaviour, rng: &mut ChaCha8Rng, method: &Method) -> Verdict {
    // Only what changes something can be done without an answer.
    let done = method != Method::GET && method != Method::HEAD && rng.random_ratio(1, 3);
    match mode {
        Misbehaviour::Errors if rng.random_ratio(3, 4) => {
            let codes = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::TOO_MANY_REQUESTS];
            Verdict::Refuse { status: codes[rng.random_range(0..2)], done }
        }
        Misbehaviour::Resets if rng.random_ratio(2, 5) => Verdict::Reset { done },
        Misbehaviour::Delays => Verdict::Delay(Duration::from_millis(rng.random_range(20..600))),
        _ => Verdict::Pass,
    }
}

/// As S3 asks its clients to slow down.
fn refusal(status: StatusCode) -> Response<Full<Bytes>> {
    let body =
        "<?xml version=\"1.0\"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>";
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    response
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> Infallible {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { shared.serve(request).await }
            });
            // An error of the service ends the connection without an answer, which is what is wanted of it.
            let _ = server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
