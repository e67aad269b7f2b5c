use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use e2llm_api::ErrorCode;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status};
use tracing::debug;

/// Standard metadata by which a server says when to come again, in milliseconds.
const PUSHBACK_KEY: &str = "grpc-retry-pushback-ms";

/// How an idempotent call is repeated.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// Tries in all. Default: 5.
    pub tries: u32,
    /// How long one try may take. Default: 10 s.
    pub deadline: Duration,
    /// Longest wait after the first failure; it doubles with each further one. Default: 100 ms.
    pub first_delay: Duration,
    /// Longest wait between two tries. Default: 5 s.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            tries: 5,
            deadline: Duration::from_secs(10),
            first_delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(5),
        }
    }
}

impl RetryPolicy {
    /// The wait after `failures` failures in a row: exponential, with jitter over its upper half.
    pub fn delay(&self, failures: u32) -> Duration {
        let doubled = self.first_delay.saturating_mul(1 << failures.saturating_sub(1).min(16));
        doubled.min(self.max_delay).mul_f64(rand::random_range(0.5..=1.0))
    }
}

/// A call that failed for good: what, where, how often it was tried, how long that took and why.
#[derive(Debug)]
pub struct CallError {
    /// The RPC.
    pub call: &'static str,
    /// The server.
    pub address: String,
    /// Tries made.
    pub tries: u32,
    /// Time from the first try to the last answer.
    pub elapsed: Duration,
    /// The last answer.
    pub status: Status,
}

impl CallError {
    /// The code of the last answer.
    pub fn code(&self) -> ErrorCode {
        code_of(&self.status)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { call, address, tries, elapsed, status } = self;
        if *tries <= 1 && !self.code().is_retriable() {
            return f.write_str(status.message());
        }
        let plural = if *tries == 1 { "try" } else { "tries" };
        let cause = cause_of(status);
        write!(f, "{call} at {address} failed after {tries} {plural} in {:.1} s: {cause}", elapsed.as_secs_f64())
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for Status {
    fn from(error: CallError) -> Status {
        e2llm_api::status(error.code(), error.to_string())
    }
}

/// A request that the server and the client give up after `deadline`.
///
/// The deadline covers the time to the response's first byte; streams that follow are not cut.
pub fn with_deadline<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// The code a status carries; failures of the connection itself count as [`ErrorCode::Unavailable`].
pub fn code_of(status: &Status) -> ErrorCode {
    let expired = status.code() == Code::Cancelled && status.message() == "Timeout expired";
    // Only statuses made on this side of the wire have a source.
    let broken = matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled) && status.source().is_some();
    if expired || broken { ErrorCode::Unavailable } else { ErrorCode::of(status) }
}

/// `RESOURCE_EXHAUSTED` with the time after which to come again.
pub fn overloaded(message: impl Into<String>, retry_after: Duration) -> Status {
    let mut status = e2llm_api::status(ErrorCode::ResourceExhausted, message);
    let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    status.metadata_mut().insert(PUSHBACK_KEY, millis.into());
    status
}

/// Runs the idempotent `call` until it succeeds, fails with a code that is not retriable, or tries run out.
///
/// `attempt` is called once per try and must build its request anew.
pub async fn retry<T, F, Fut>(
    policy: &RetryPolicy,
    call: &'static str,
    address: &str,
    mut attempt: F,
) -> Result<T, CallError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Status>>,
{
    let started = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        let status = match timeout(policy.deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded(format!("no answer within {:?}", policy.deadline)),
        };
        if tries >= policy.tries || !code_of(&status).is_retriable() {
            return Err(CallError { call, address: address.to_owned(), tries, elapsed: started.elapsed(), status });
        }
        let delay = pushback(&status).map_or_else(|| policy.delay(tries), |asked| asked.min(policy.max_delay));
        debug!(call, address, tries, ?delay, cause = cause_of(&status), "call failed; trying again");
        sleep(delay).await;
    }
}

fn pushback(status: &Status) -> Option<Duration> {
    let millis = status.metadata().get(PUSHBACK_KEY)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// The status's message and, for failures of the connection, the innermost reason.
pub fn cause_of(status: &Status) -> String {
    let mut innermost = None;
    let mut source = status.source();
    while let Some(error) = source {
        innermost = Some(error.to_string());
        source = error.source();
    }
    match innermost {
        Some(reason) if reason != status.message() => format!("{} ({reason})", status.message()),
        _ => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn quick() -> RetryPolicy {
        RetryPolicy { tries: 3, first_delay: Duration::from_millis(1), ..Default::default() }
    }

    #[tokio::test]
    async fn a_retriable_failure_is_repeated_until_it_succeeds() {
        let (policy, tries) = (quick(), Cell::new(0));
        let outcome = retry(&policy, "Get", "a:1", || async {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err(Status::unavailable("not yet")) } else { Ok(tries.get()) }
        });
        assert_eq!(outcome.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_failure_that_would_repeat_itself_is_not_retried() {
        let policy = quick();
        let failed = retry(&policy, "Get", "a:1", || async { Err::<(), _>(Status::not_found("no document \"x\"")) });
        let error = failed.await.unwrap_err();
        assert_eq!((error.tries, error.code()), (1, ErrorCode::NotFound));
        assert_eq!(error.to_string(), "no document \"x\"");
    }

    #[tokio::test]
    async fn running_out_of_tries_says_where_how_often_and_how_long() {
        let policy = quick();
        let failed = retry(&policy, "Get", "a:1", || async { Err::<(), _>(Status::unavailable("refused")) });
        let message = failed.await.unwrap_err().to_string();
        assert!(message.starts_with("Get at a:1 failed after 3 tries in 0.0 s: refused"), "{message}");
    }

    #[tokio::test]
    async fn a_call_that_never_answers_ends_at_its_deadline() {
        let policy = RetryPolicy { tries: 2, deadline: Duration::from_millis(20), ..quick() };
        let failed = retry(&policy, "Get", "a:1", std::future::pending::<Result<(), Status>>);
        let error = failed.await.unwrap_err();
        assert_eq!((error.tries, error.code()), (2, ErrorCode::Unavailable));
        assert!(error.elapsed >= Duration::from_millis(40), "{error}");
    }

    #[tokio::test]
    async fn the_servers_hint_decides_when_to_come_again() {
        let (policy, tries) = (quick(), Cell::new(0));
        let started = Instant::now();
        let outcome = retry(&policy, "Ask", "a:1", || async {
            tries.set(tries.get() + 1);
            if tries.get() == 1 { Err(overloaded("queue is full", Duration::from_millis(80))) } else { Ok(()) }
        });
        outcome.await.unwrap();
        assert!(started.elapsed() >= Duration::from_millis(80), "the policy alone would wait a millisecond");
    }
}
