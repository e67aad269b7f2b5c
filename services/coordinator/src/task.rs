use std::time::{Duration, Instant};

use e2llm_api::v1::Row;
use prost::Message;

/// A task that is not done.
#[derive(Debug)]
pub(crate) struct OpenTask {
    pub(crate) rows: PackedRows,
    /// Number of the last attempt handed out; 0 before the first.
    pub(crate) attempt: u32,
    /// Attempts that failed or whose worker fell silent.
    pub(crate) failures: u32,
    /// It, or the task that it was split from, may have cost a worker its life.
    pub(crate) is_suspect: bool,
    pub(crate) state: TaskState,
}

/// Where an open task is.
#[derive(Debug, PartialEq)]
pub(crate) enum TaskState {
    /// Waits for a worker.
    Ready {
        /// Not to be handed out earlier.
        not_before: Instant,
    },
    /// A worker holds the last attempt.
    Leased {
        /// Which one.
        worker: String,
        /// When it has been silent too long.
        until: Instant,
    },
    /// Its results are being written.
    Settling,
    /// That its last attempt failed or was lost is being written: nobody holds it.
    Failing,
}

/// What a report says about an attempt, seen from the task.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(crate) enum Claim {
    /// The reporter holds the lease.
    Holds,
    /// Handed out before this coordinator started; nobody else has it.
    Adopts,
    /// Expired, handed to another worker, or never handed out.
    Stale,
    /// Its outcome is being written at this moment.
    Settling,
}

impl OpenTask {
    pub(crate) fn new(rows: Vec<Row>, not_before: Instant) -> Self {
        Self {
            rows: PackedRows::new(rows),
            attempt: 0,
            failures: 0,
            is_suspect: false,
            state: TaskState::Ready { not_before },
        }
    }

    pub(crate) fn claim(&self, worker: &str, attempt: u32) -> Claim {
        match &self.state {
            TaskState::Settling if attempt == self.attempt => Claim::Settling,
            TaskState::Leased { worker: holder, .. } if holder == worker && attempt == self.attempt => Claim::Holds,
            TaskState::Ready { .. } if attempt > self.attempt => Claim::Adopts,
            _ => Claim::Stale,
        }
    }

    /// Gives the next attempt to `worker`.
    pub(crate) fn lease(&mut self, worker: &str, now: Instant, lease: Duration) {
        self.attempt += 1;
        self.renew(worker, now, lease);
    }

    pub(crate) fn renew(&mut self, worker: &str, now: Instant, lease: Duration) {
        self.state = TaskState::Leased { worker: worker.to_owned(), until: now + lease };
    }

    pub(crate) fn is_expired(&self, now: Instant) -> bool {
        matches!(self.state, TaskState::Leased { until, .. } if until <= now)
    }
}

/// Rows as they stand in the plan, encoded: a million open documents take a third of the memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PackedRows {
    encoded: Box<[u8]>,
    count: u32,
}

/// What [`PackedRows`] are encoded as.
#[derive(Clone, PartialEq, Message)]
struct RowList {
    #[prost(message, repeated, tag = "1")]
    rows: Vec<Row>,
}

impl PackedRows {
    fn new(rows: Vec<Row>) -> Self {
        let count = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        Self { encoded: RowList { rows }.encode_to_vec().into(), count }
    }

    pub(crate) fn len(&self) -> usize {
        self.count as usize
    }

    /// The rows, in the order they came.
    pub(crate) fn unpack(&self) -> Vec<Row> {
        // What was encoded here decodes; an empty list would fail the task's checks, not the process.
        RowList::decode(&*self.encoded).unwrap_or_default().rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    #[test]
    fn only_the_holder_of_the_last_attempt_is_heard() {
        let now = Instant::now();
        let mut task = OpenTask::new(vec![], now);
        task.lease("a", now, LEASE);
        assert_eq!(task.claim("a", 1), Claim::Holds);
        assert_eq!(task.claim("b", 1), Claim::Stale);
        task.state = TaskState::Ready { not_before: now };
        assert_eq!(task.claim("a", 1), Claim::Stale, "an expired lease does not come back");
        task.lease("b", now, LEASE);
        assert_eq!((task.claim("a", 1), task.claim("b", 2)), (Claim::Stale, Claim::Holds));
    }

    #[test]
    fn an_attempt_of_an_earlier_coordinator_is_adopted_while_nobody_else_has_the_task() {
        let now = Instant::now();
        let mut task = OpenTask::new(vec![], now);
        assert_eq!(task.claim("a", 3), Claim::Adopts);
        task.lease("b", now, LEASE);
        assert_eq!(task.claim("a", 3), Claim::Stale);
    }

    #[test]
    fn packed_rows_come_out_as_they_went_in() {
        let rows: Vec<Row> = (0..3).map(|number| Row { number, id: format!("d{number}"), ..Row::default() }).collect();
        let packed = PackedRows::new(rows.clone());
        assert_eq!((packed.len(), packed.unpack()), (3, rows));
    }

    #[test]
    fn a_lease_ends_when_it_is_not_renewed() {
        let now = Instant::now();
        let mut task = OpenTask::new(vec![], now);
        task.lease("a", now, LEASE);
        assert!(!task.is_expired(now + LEASE - Duration::from_millis(1)));
        assert!(task.is_expired(now + LEASE));
        task.renew("a", now + LEASE / 2, LEASE);
        assert!(!task.is_expired(now + LEASE));
    }
}
