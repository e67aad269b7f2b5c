use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use e2llm_api::v1::train_round::Kind;
use e2llm_api::v1::{
    MemberRound, ObjectRef, ObjectiveLoss, Row, SideState, TrainRound, TrainSpec, TrainStatus, TrainTask,
};

use super::commit::{MemberState, RoundRecord, summed};
use super::schedule::{row, starts};

/// Where a training job's rounds stand, in memory.
#[derive(Debug)]
pub(crate) struct Training {
    spec: TrainSpec,
    /// Number of the first row of each round, and of the row after the last.
    starts: Vec<u64>,
    /// Rounds that are committed.
    committed: usize,
    /// The last of them.
    last: RoundRecord,
    totals: Totals,
    /// How far the open round's shares are, by row: steps, losses and tokens.
    open: BTreeMap<u64, (u32, MemberRound)>,
    is_committing: bool,
    /// Since when the open round has its quorum.
    quorum_since: Option<Instant>,
}

/// Sums over committed rounds.
#[derive(Debug, Default)]
struct Totals {
    targets: u64,
    positions: u64,
    busy_us: u64,
    left_out: u32,
    /// Of the last round that had any.
    losses: Vec<ObjectiveLoss>,
}

/// A round that may be committed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Due {
    /// Its number.
    pub(crate) number: u32,
    pub(crate) round: TrainRound,
    /// Its rows.
    pub(crate) rows: std::ops::Range<u64>,
    /// Whether no round follows.
    pub(crate) is_last: bool,
    /// What the round before committed.
    pub(crate) before: RoundRecord,
}

impl Training {
    pub(crate) fn new(spec: TrainSpec) -> Self {
        let starts = starts(&spec);
        Self {
            spec,
            starts,
            committed: 0,
            last: RoundRecord::default(),
            totals: Totals::default(),
            open: BTreeMap::new(),
            is_committing: false,
            quorum_since: None,
        }
    }

    /// The rows of the open round, if one is.
    pub(crate) fn open_rows(&self) -> Option<std::ops::Range<u64>> {
        let round = self.committed;
        Some(*self.starts.get(round)?..*self.starts.get(round + 1)?)
    }

    /// The row `number`, as planning made it.
    pub(crate) fn row(&self, number: u64) -> Option<Row> {
        let (round, member) = self.share(number)?;
        Some(row(&self.starts, round, member))
    }

    fn share(&self, number: u64) -> Option<(usize, u32)> {
        let round = self.starts.partition_point(|start| *start <= number).checked_sub(1)?;
        self.spec.rounds.get(round)?;
        Some((round, u32::try_from(number - self.starts[round]).ok()?))
    }

    /// What the share of row `number` starts from.
    pub(crate) fn task(&self, number: u64) -> Option<TrainTask> {
        let (round, member) = self.share(number)?;
        let last = &self.last;
        // A member that was left out goes on with the moments of one that was not.
        let own = last.members.iter().find(|state| state.member == member).or(last.members.first());
        let MemberState { encoder, decoder, .. } = own.cloned().unwrap_or_default();
        Some(TrainTask {
            round: u32::try_from(round).ok()?,
            member,
            encoder: Some(SideState { parameters: last.encoder.clone(), moments: encoder }),
            decoder: Some(SideState { parameters: last.decoder.clone(), moments: decoder }),
        })
    }

    /// The open round, once all its rows are final; taken until [`Training::put_back`] or [`Training::commit`].
    pub(crate) fn take_due(&mut self, is_final: impl Fn(u64) -> bool) -> Option<Due> {
        let rows = self.open_rows().filter(|_| self.is_due(is_final))?;
        self.is_committing = true;
        let number = self.committed;
        Some(Due {
            number: u32::try_from(number).ok()?,
            round: *self.spec.rounds.get(number)?,
            rows,
            is_last: number + 1 == self.spec.rounds.len(),
            before: self.last.clone(),
        })
    }

    /// Whether every round is committed.
    pub(crate) fn is_complete(&self) -> bool {
        self.committed == self.spec.rounds.len()
    }

    /// Whether the open round is to be committed and nobody does it.
    pub(crate) fn is_due(&self, is_final: impl Fn(u64) -> bool) -> bool {
        !self.is_committing && self.open_rows().is_some_and(|mut rows| rows.all(is_final))
    }

    /// The round could not be committed; it is due again.
    pub(crate) fn put_back(&mut self) {
        self.is_committing = false;
    }

    /// Goes on to the next round.
    pub(crate) fn commit(&mut self, record: RoundRecord) {
        self.totals.add(&record);
        self.committed += 1;
        self.open.clear();
        self.last = record;
        self.is_committing = false;
        self.quorum_since = None;
    }

    /// A share of the open round has taken so many steps.
    pub(crate) fn note(&mut self, row: u64, steps: u32, so_far: MemberRound) {
        if self.open_rows().is_some_and(|rows| rows.contains(&row)) {
            self.open.insert(row, (steps, so_far));
        }
    }

    /// The rows that a quorum does not wait for any longer.
    pub(crate) fn late(&mut self, now: Instant, is_final: impl Fn(u64) -> bool) -> Vec<u64> {
        let Some(rows) = self.open_rows().filter(|_| self.spec.quorum > 0) else { return Vec::new() };
        let finished = rows.clone().filter(|row| is_final(*row)).count() as u64;
        let members = rows.end - rows.start;
        if finished < u64::from(self.spec.quorum).min(members) {
            return Vec::new();
        }
        let since = *self.quorum_since.get_or_insert(now);
        let wait = Duration::from_secs(self.spec.quorum_wait_s.into());
        if now < since + wait { Vec::new() } else { rows.filter(|row| !is_final(*row)).collect() }
    }

    pub(crate) fn status(&self, is_final: impl Fn(u64) -> bool) -> TrainStatus {
        let joint = |round: &&TrainRound| round.kind() == Kind::Joint;
        let steps = |rounds: &[TrainRound]| rounds.iter().filter(joint).map(|round| u64::from(round.steps)).sum();
        let committed = &self.spec.rounds[..self.committed.min(self.spec.rounds.len())];
        let Totals { targets, positions, busy_us, left_out, losses } = &self.totals;
        let shares: Vec<(u32, MemberRound)> =
            self.open.iter().map(|(row, (_, share))| (*row as u32, share.clone())).collect();
        let open = summed(&shares);
        let of_round = self.spec.rounds.get(self.committed).map_or(0, |round| round.steps);
        let own = |row: u64| if is_final(row) { of_round } else { self.open.get(&row).map_or(0, |(steps, _)| *steps) };
        let slowest = self.open_rows().and_then(|rows| rows.map(own).min());
        TrainStatus {
            rounds: u32::try_from(self.spec.rounds.len()).unwrap_or(u32::MAX),
            rounds_committed: u32::try_from(self.committed).unwrap_or(u32::MAX),
            steps: steps(&self.spec.rounds),
            steps_done: steps(committed),
            losses: losses.clone(),
            targets: *targets,
            positions: *positions,
            busy_us: *busy_us,
            bundle: self.last.bundle.clone(),
            left_out: *left_out,
            steps_open: slowest.unwrap_or(0).into(),
            losses_open: open.losses,
            targets_open: open.targets,
        }
    }

    /// The files of the bundle, once it is written.
    pub(crate) fn bundle_files(&self) -> &[ObjectRef] {
        &self.last.bundle_files
    }

    /// Outer rate and momentum.
    pub(crate) fn outer(&self) -> (f64, f64) {
        (self.spec.outer_rate, self.spec.outer_momentum)
    }
}

impl Totals {
    fn add(&mut self, record: &RoundRecord) {
        self.targets += record.targets;
        self.positions += record.positions;
        self.busy_us += record.busy_us;
        self.left_out += record.left_out;
        if !record.losses.is_empty() {
            self.losses.clone_from(&record.losses);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::tests::spec;
    use super::*;

    fn object(path: &str) -> Option<ObjectRef> {
        Some(ObjectRef { path: path.to_owned(), ..ObjectRef::default() })
    }

    fn record(members: &[u32]) -> RoundRecord {
        let state = |member: &u32| MemberState {
            member: *member,
            encoder: object(&format!("e{member}")),
            decoder: object(&format!("d{member}")),
        };
        RoundRecord { encoder: object("E"), members: members.iter().map(state).collect(), ..RoundRecord::default() }
    }

    #[test]
    fn a_round_opens_when_the_one_before_is_committed() {
        let mut training = Training::new(spec());
        assert_eq!(training.open_rows(), Some(0..1));
        assert_eq!(training.take_due(|_| false), None);
        assert_eq!(training.take_due(|_| true).unwrap().rows, 0..1);
        assert_eq!(training.take_due(|_| true), None, "it is being committed");
        training.put_back();
        assert!(training.take_due(|_| true).is_some());
        training.commit(record(&[0]));
        assert_eq!(training.open_rows(), Some(1..3));
        assert_eq!(training.row(2).unwrap().id, "round-000001/member-1");
        for _ in 0..3 {
            training.commit(record(&[0]));
        }
        assert_eq!((training.open_rows(), training.row(6)), (None, None));
    }

    #[test]
    fn a_member_goes_on_with_its_own_moments_or_with_those_of_one_that_counted() {
        let mut training = Training::new(spec());
        training.commit(record(&[0]));
        training.commit(record(&[1]));
        let moments = |number| training.task(number).unwrap().decoder.unwrap().moments.unwrap().path;
        assert_eq!((moments(3), moments(4)), ("d1".to_owned(), "d1".to_owned()));
        let task = training.task(4).unwrap();
        assert_eq!((task.round, task.member), (2, 1));
        assert_eq!(task.encoder.unwrap().parameters.unwrap().path, "E");
    }

    #[test]
    fn the_open_round_is_as_far_as_its_slowest_member() {
        let mut training = Training::new(spec());
        training.commit(record(&[0]));
        let share = |loss, targets| MemberRound {
            losses: vec![ObjectiveLoss { objective: "answer".to_owned(), loss, targets }],
            targets,
            ..MemberRound::default()
        };
        training.note(1, 3, share(2.0, 30));
        assert_eq!(training.status(|_| false).steps_open, 0, "the other member has told nothing yet");
        assert_eq!(training.status(|row| row == 2).steps_open, 3, "the other member has finished");
        training.note(2, 2, share(4.0, 10));
        training.note(9, 9, share(9.0, 9));
        let status = training.status(|_| false);
        assert_eq!((status.steps_open, status.targets_open, status.losses_open[0].loss), (2, 40, 2.5));
        training.commit(record(&[0]));
        assert_eq!(training.status(|_| false).targets_open, 0);
    }

    #[test]
    fn a_quorum_waits_so_long_and_no_longer() {
        let spec = TrainSpec { quorum: 1, quorum_wait_s: 10, ..spec() };
        let mut training = Training::new(spec);
        training.commit(record(&[0]));
        let now = Instant::now();
        assert!(training.late(now, |_| false).is_empty(), "there is no quorum");
        assert!(training.late(now, |row| row == 1).is_empty());
        assert!(training.late(now + Duration::from_secs(9), |row| row == 1).is_empty());
        assert_eq!(training.late(now + Duration::from_secs(10), |row| row == 1), [2]);
        training.commit(record(&[0]));
        assert!(training.late(now + Duration::from_secs(11), |row| row == 3).is_empty(), "the wait begins anew");
    }
}
