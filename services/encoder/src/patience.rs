//! Waiting for space: what is encoded already is not encoded again because the disk is full for a while.

use std::time::{Duration, Instant};

use e2llm_api::ErrorCode;
use tracing::warn;

use crate::error::EncodeError;

/// The first wait; each further one is twice as long, up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How long one write waits for a full store or index.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    doc_id: &'a str,
    patience: Duration,
    /// Since when there is no space, and how long to wait next.
    full: Option<(Instant, Duration)>,
}

impl<'a> Wait<'a> {
    /// Waits at most `patience` in all.
    pub(crate) fn new(doc_id: &'a str, patience: Duration) -> Self {
        Self { doc_id, patience, full: None }
    }

    /// Returns when the write that failed with `error` is to be tried again.
    ///
    /// # Errors
    /// The error itself, if it is not for want of space or patience has run out.
    pub(crate) async fn after(&mut self, error: EncodeError) -> Result<(), EncodeError> {
        if error.code() != ErrorCode::ResourceExhausted {
            return Err(error);
        }
        if self.full.is_none() {
            warn!(doc_id = self.doc_id, %error, patience_s = self.patience.as_secs(), "waiting for space");
        }
        let (since, next) = self.full.unwrap_or_else(|| (Instant::now(), FIRST_WAIT));
        let left = self.patience.saturating_sub(since.elapsed());
        if left.is_zero() {
            return Err(error);
        }
        self.full = Some((since, (next * 2).min(LONGEST_WAIT)));
        tokio::time::sleep(next.min(left)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use e2llm_store::StoreError;

    use super::*;

    fn full() -> EncodeError {
        StoreError::DiskFull { object: "blobs/ab".into() }.into()
    }

    #[tokio::test]
    async fn a_full_disk_is_waited_for_until_patience_ends() {
        let began = Instant::now();
        let patience = Duration::from_millis(150);
        let mut wait = Wait::new("a", patience);
        let mut tries = 1;
        let error = loop {
            match wait.after(full()).await {
                Ok(()) => tries += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), ErrorCode::ResourceExhausted);
        assert!(began.elapsed() >= patience);
        assert_eq!(tries, 3, "at the start, after 100 ms, and at the end");
    }

    #[tokio::test]
    async fn other_failures_are_not_waited_for() {
        let mut wait = Wait::new("a", Duration::from_secs(30));
        assert!(wait.after(EncodeError::Stopped("test".into())).await.is_err());
    }
}
