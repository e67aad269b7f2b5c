use std::sync::Mutex;
use std::time::{Duration, Instant};

/// So many calls a minute, and as many at once: a bucket that is refilled evenly.
#[derive(Debug)]
pub(crate) struct RateLimit {
    per_minute: u32,
    state: Mutex<(f64, Instant)>,
}

impl RateLimit {
    pub(crate) fn new(per_minute: u32, now: Instant) -> Self {
        Self { per_minute, state: Mutex::new((f64::from(per_minute), now)) }
    }

    /// Takes one call.
    ///
    /// # Errors
    /// How long until there is one.
    pub(crate) fn take(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (left, then) = *state;
        let per_second = f64::from(self.per_minute) / 60.0;
        let refilled = left + now.saturating_duration_since(then).as_secs_f64() * per_second;
        let left = refilled.min(f64::from(self.per_minute));
        if left < 1.0 {
            *state = (left, now);
            return Err(Duration::from_secs_f64((1.0 - left) / per_second));
        }
        *state = (left - 1.0, now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_calls_and_the_next_one_is_told_when() {
        let start = Instant::now();
        let limit = RateLimit::new(2, start);
        assert!(limit.take(start).is_ok() && limit.take(start).is_ok());
        assert_eq!(limit.take(start).unwrap_err(), Duration::from_secs(30));
        assert!(limit.take(start + Duration::from_secs(29)).is_err());
        assert!(limit.take(start + Duration::from_secs(31)).is_ok());
        let later = start + Duration::from_secs(3600);
        assert!(limit.take(later).is_ok() && limit.take(later).is_ok(), "no more than a minute's calls are saved up");
        assert!(limit.take(later).is_err());
    }
}
