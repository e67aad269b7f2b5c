//! From a seed to what is done to whom.

use std::fmt;

use e2llm_api::v1::JobKind;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::corpus::DOCUMENTS;
use crate::fleet::Site;

/// Which process is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Finds records.
    Index,
    /// Plans and commits.
    Coordinator,
    /// Does encode tasks.
    Encoder,
    /// Does decode tasks.
    Decoder,
}

impl Role {
    /// As in `e2llm serve ROLE`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Index => "index",
            Role::Coordinator => "coordinator",
            Role::Encoder => "encoder",
            Role::Decoder => "decoder",
        }
    }
}

/// The two stages of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Text to soft prompt.
    Encode,
    /// Soft prompt to text.
    Decode,
}

impl Stage {
    /// As in names of tasks.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Encode => "encode",
            Stage::Decode => "decode",
        }
    }

    /// Who does its tasks.
    pub fn worker(self) -> Role {
        match self {
            Stage::Encode => Role::Encoder,
            Stage::Decode => Role::Decoder,
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9` at a point, when it is reached for the nth time.
    Kill {
        /// Who dies.
        role: Role,
        /// Where.
        point: &'static str,
        /// How often the point was reached then.
        nth: u64,
    },
    /// A worker stands still for longer than its lease, with a finished task in its hands.
    Stop {
        /// Of which stage.
        stage: Stage,
        /// It wakes when the job has ended, not as soon as its lease is over.
        wakes_late: bool,
    },
    /// A document that crashes whoever begins with it.
    Poison {
        /// In which stage.
        stage: Stage,
        /// Which document.
        document: usize,
    },
    /// A bit of a stored soft prompt flips between its writing and its reading.
    CorruptBlob {
        /// Which document's.
        document: usize,
    },
    /// Every write and every fsync to the disk takes so long.
    SlowDisk {
        /// Milliseconds.
        millis: u64,
    },
    /// The disk is full from a point on, for a while.
    FullDisk {
        /// Where the process of `role` is then.
        point: &'static str,
        /// Whose point it is.
        role: Role,
    },
    /// The object store misbehaves from the start, for a while.
    Storage {
        /// How.
        mode: Misbehaviour,
        /// For so long.
        millis: u64,
    },
}

/// What an object store does to its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misbehaviour {
    /// It answers 503 or 429 to three calls of four, to some of them after having done what was asked.
    Errors,
    /// It resets connections, before or after having done what was asked.
    Resets,
    /// It takes its time.
    Delays,
}

/// One run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What all of it follows from.
    pub seed: u64,
    /// Where the store is.
    pub site: Site,
    /// What goes wrong.
    pub fault: Fault,
    /// What the job does.
    pub kind: JobKind,
    /// The documents' order.
    pub(crate) order: Vec<usize>,
}

/// Points of a role, how often each is reached in a run by one process at least, and by which jobs.
type Edges = &'static [(&'static str, u64, Needs)];

/// Which jobs come to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Any,
    /// The decode stage.
    Text,
    /// Kept summaries.
    Summaries,
}

const ENCODER: Edges = &[
    ("encoder.task_received", 1, Needs::Any),
    ("encoder.text_read", 3, Needs::Any),
    ("encoder.blob_written", 3, Needs::Any),
    ("encoder.before_commit", 3, Needs::Any),
    ("encoder.committed", 3, Needs::Any),
    ("encoder.before_report", 1, Needs::Any),
];
const DECODER: Edges = &[
    ("decoder.task_received", 1, Needs::Text),
    ("decoder.blobs_fetched", 3, Needs::Text),
    ("decoder.first_token", 3, Needs::Text),
    ("decoder.generated", 3, Needs::Text),
    ("decoder.summary_kept", 1, Needs::Summaries),
    ("decoder.before_report", 1, Needs::Text),
];
const COORDINATOR: Edges = &[
    ("coordinator.job_created", 1, Needs::Any),
    ("coordinator.page_written", 3, Needs::Any),
    ("coordinator.part_written", 3, Needs::Any),
    ("coordinator.task_done", 3, Needs::Any),
    ("coordinator.before_result", 1, Needs::Any),
    // These come after the death of a worker, and after two in a row.
    ("coordinator.retry_written", 1, Needs::Any),
    ("coordinator.split_written", 1, Needs::Any),
];
const INDEX: Edges = &[
    ("index.manifest_appended", 3, Needs::Any),
    ("index.applied", 3, Needs::Any),
    // Commits are answered before a snapshot, so that work must follow them.
    ("index.snapshot_parts_written", 1, Needs::Text),
    ("index.snapshot_written", 1, Needs::Text),
];

impl Fault {
    /// Whether attempts fail only with those who held them: a worker or a coordinator that is lost is all that happens.
    pub(crate) fn loses_nothing_of_others(self) -> bool {
        matches!(self, Fault::Kill { role: Role::Coordinator, .. })
    }

    /// A job under this fault gives up soon.
    pub(crate) fn poisons(self) -> bool {
        matches!(self, Fault::Poison { .. } | Fault::Kill { point: "coordinator.split_written", .. })
    }
}

impl Plan {
    /// The plan of a seed.
    pub fn of(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let kinds = [JobKind::Encode, JobKind::Summarize, JobKind::Summarize, JobKind::Ask];
        let kind = *kinds.choose(&mut rng).unwrap();
        let mut order: Vec<usize> = (0..DOCUMENTS).collect();
        order.shuffle(&mut rng);
        let (fault, needs) = fault(seed, &mut rng);
        let site = match fault {
            Fault::Storage { .. } => Site::Bucket,
            Fault::Kill { .. } | Fault::Stop { .. } if rng.random_ratio(1, 8) => Site::Bucket,
            _ => Site::Disk,
        };
        let kind = match (needs, kind) {
            (Needs::Summaries, _) | (Needs::Text, JobKind::Encode) => JobKind::Summarize,
            // Questions are embedded by the first encoder alone: while it stands still, their job cannot end.
            (_, JobKind::Ask) if matches!(fault, Fault::Stop { stage: Stage::Encode, wakes_late: true }) => {
                JobKind::Summarize
            }
            (_, kind) => kind,
        };
        Self { seed, site, fault, kind, order }
    }

    /// The first plan from seed `first` on that `is_wanted`.
    pub fn first(first: u64, is_wanted: impl Fn(&Plan) -> bool) -> Self {
        (first..).map(Plan::of).find(is_wanted).expect("some seed gives every plan")
    }

    /// The kind of fault, to choose runs by.
    pub fn name(&self) -> String {
        match self.fault {
            Fault::Kill { role, .. } => format!("kill-{}", role.as_str()),
            Fault::Stop { stage, .. } => format!("stop-{}", stage.worker().as_str()),
            Fault::Poison { stage, .. } => format!("poison-{}", stage.as_str()),
            Fault::CorruptBlob { .. } => "corrupt-blob".to_owned(),
            Fault::SlowDisk { .. } => "slow-disk".to_owned(),
            Fault::FullDisk { .. } => "full-disk".to_owned(),
            Fault::Storage { mode: Misbehaviour::Errors, .. } => "s3-errors".to_owned(),
            Fault::Storage { mode: Misbehaviour::Resets, .. } => "s3-resets".to_owned(),
            Fault::Storage { mode: Misbehaviour::Delays, .. } => "s3-delays".to_owned(),
        }
    }
}

/// Of so many seeds in a row, each takes another fault of the [`repertoire`].
fn fault(seed: u64, rng: &mut ChaCha8Rng) -> (Fault, Needs) {
    let faults = repertoire(rng);
    let size = faults.len() as u64;
    let mut turns: Vec<usize> = (0..faults.len()).collect();
    turns.shuffle(&mut ChaCha8Rng::seed_from_u64(seed / size));
    faults[turns[(seed % size) as usize]]
}

/// Every fault at every point, some more often than others.
fn repertoire(rng: &mut ChaCha8Rng) -> Vec<(Fault, Needs)> {
    let mut faults = Vec::new();
    for (role, edges) in
        [(Role::Encoder, ENCODER), (Role::Decoder, DECODER), (Role::Coordinator, COORDINATOR), (Role::Index, INDEX)]
    {
        for (point, most, needs) in edges {
            faults.push((Fault::Kill { role, point, nth: rng.random_range(1..=*most) }, *needs));
        }
    }
    for (stage, needs) in [(Stage::Encode, Needs::Any), (Stage::Decode, Needs::Text)] {
        faults.extend([true, false].map(|wakes_late| (Fault::Stop { stage, wakes_late }, needs)));
        faults.push((Fault::Poison { stage, document: rng.random_range(0..DOCUMENTS) }, needs));
    }
    for _ in 0..3 {
        faults.push((Fault::CorruptBlob { document: rng.random_range(0..DOCUMENTS) }, Needs::Text));
    }
    for _ in 0..2 {
        faults.push((Fault::SlowDisk { millis: rng.random_range(5..60) }, Needs::Any));
        faults.push((full_disk(rng), Needs::Any));
    }
    use Misbehaviour::{Delays, Errors, Resets};
    for mode in [Errors, Errors, Errors, Resets, Resets, Delays] {
        faults.push((Fault::Storage { mode, millis: rng.random_range(2000..8000) }, Needs::Any));
    }
    faults
}

fn full_disk(rng: &mut ChaCha8Rng) -> Fault {
    let points = [
        (Role::Encoder, "encoder.text_read"),
        (Role::Encoder, "encoder.before_commit"),
        (Role::Coordinator, "coordinator.page_written"),
        (Role::Coordinator, "coordinator.part_written"),
        (Role::Index, "index.manifest_appended"),
    ];
    let (role, point) = *points.choose(rng).unwrap();
    Fault::FullDisk { point, role }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill { point, nth, .. } => write!(f, "at {point} #{nth}"),
            Fault::Stop { wakes_late: true, .. } => write!(f, "until the job has ended"),
            Fault::Stop { wakes_late: false, .. } => write!(f, "past its lease"),
            Fault::Poison { document, .. } | Fault::CorruptBlob { document } => write!(f, "document {document}"),
            Fault::SlowDisk { millis } => write!(f, "{millis} ms a write"),
            Fault::FullDisk { point, .. } => write!(f, "from {point} on"),
            Fault::Storage { millis, .. } => write!(f, "for {:.1} s", *millis as f64 / 1000.0),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_str_name().trim_start_matches("JOB_KIND_").to_lowercase();
        write!(f, "{} {}, {kind} on {}", self.name(), self.fault, self.site)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_plan() {
        assert_eq!(Plan::of(7), Plan::of(7));
        assert_ne!(Plan::of(7), Plan::of(8));
    }

    #[test]
    fn eighty_seeds_hold_every_kind_of_fault_and_every_point() {
        let plans: Vec<Plan> = (0..80).map(Plan::of).collect();
        let names: BTreeSet<String> = plans.iter().map(Plan::name).collect();
        assert_eq!(names.len(), 14, "{names:?}");
        let killed_at =
            |wanted: &str| plans.iter().any(|p| matches!(p.fault, Fault::Kill { point, .. } if point == wanted));
        let missing: Vec<&str> = [ENCODER, DECODER, COORDINATOR, INDEX]
            .concat()
            .into_iter()
            .map(|(point, ..)| point)
            .filter(|point| !killed_at(point))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
