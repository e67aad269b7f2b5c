use std::task::{Context, Poll};
use std::time::Instant;

use e2llm_api::{ErrorCode, status};
use futures::future::{Either, Ready, ready};
use http::header::AUTHORIZATION;
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use super::{Auth, Caller, Role, Seen, required_role};
use crate::overloaded;

/// Lets calls through whose token may make them, and tells the service who the [`Caller`] is.
#[derive(Debug, Clone)]
pub(crate) struct AuthLayer(pub(crate) Auth);

impl<S> Layer<S> for AuthLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { auth: self.0.clone(), inner }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Guarded<S> {
    auth: Auth,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Guarded<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, S::Error>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let (caller, verdict) = self.auth.judge(&request);
        if let Some(seen) = request.extensions().get::<Seen>() {
            // It is noted once.
            let _ = seen.set(caller.clone());
        }
        if let Err(refusal) = verdict {
            return Either::Left(ready(Ok(refusal.into_http::<Body>())));
        }
        request.extensions_mut().insert(caller);
        Either::Right(self.inner.call(request))
    }
}

impl Auth {
    /// Who calls, as far as that is known, and whether the call may be made.
    fn judge<B>(&self, request: &http::Request<B>) -> (Caller, Result<(), Status>) {
        let Auth::Tokens(tokens) = self else { return (Caller::default(), Ok(())) };
        let Some(needed) = required_role(request.uri().path()) else { return (Caller::default(), Ok(())) };
        let secret = match bearer(request) {
            Ok(secret) => secret,
            Err(refusal) => return (Caller::unknown(), Err(refusal)),
        };
        let Some(token) = tokens.find(secret) else {
            let message = "this token is not known here, or no longer; ask the operator for one";
            return (Caller::unknown(), Err(status(ErrorCode::Unauthenticated, message)));
        };
        let caller = Caller::of(token.clone());
        let counted = token.count(Instant::now()).map_err(|wait| {
            let per_minute = token.requests_per_minute.unwrap_or(0);
            overloaded(format!("token {:?} may make {per_minute} calls a minute; come again later", token.name), wait)
        });
        let allowed = if caller.may(needed) { Ok(()) } else { Err(forbidden(&caller, token.role, needed)) };
        (caller, counted.and(allowed))
    }
}

fn bearer<B>(request: &http::Request<B>) -> Result<&str, Status> {
    let missing = |message: &str| status(ErrorCode::Unauthenticated, message);
    let header = request.headers().get(AUTHORIZATION);
    let header = header.ok_or_else(|| missing("no token: send `authorization: Bearer TOKEN`, or give --token-file"))?;
    let text = header.to_str().ok().and_then(|text| text.split_once(' '));
    match text {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("bearer") => Ok(secret.trim()),
        _ => Err(missing("the header `authorization` is not `Bearer TOKEN`")),
    }
}

fn forbidden(caller: &Caller, role: Role, needed: Role) -> Status {
    let message = format!("token {:?} has the role {role}; this call needs {needed}", caller.name());
    status(ErrorCode::PermissionDenied, message)
}
