use std::collections::BTreeMap;
use std::time::Instant;

use e2llm_api::v1::{MemberRound, ObjectRef, ObjectiveLoss};
use e2llm_train::{Objective, Progress};

pub(super) fn microseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// What a share adds up to.
#[derive(Default)]
pub(super) struct Totals {
    /// Nats and target tokens by objective.
    losses: BTreeMap<Objective, (f64, u64)>,
    targets: u64,
    positions: u64,
}

impl Totals {
    pub(super) fn add(&mut self, progress: &Progress) {
        for (objective, loss) in &progress.losses {
            let (nats, tokens) = self.losses.entry(*objective).or_default();
            *nats += loss.loss * loss.tokens as f64;
            *tokens += loss.tokens as u64;
        }
        self.targets += progress.targets as u64;
        self.positions += progress.positions as u64;
    }

    /// Losses and tokens so far.
    pub(super) fn so_far(&self) -> MemberRound {
        let losses = self.losses.iter().map(|(objective, (nats, targets))| ObjectiveLoss {
            objective: objective.as_str().to_owned(),
            loss: nats / (*targets).max(1) as f64,
            targets: *targets,
        });
        MemberRound {
            losses: losses.collect(),
            positions: self.positions,
            targets: self.targets,
            ..MemberRound::default()
        }
    }

    /// The share's report.
    pub(super) fn member(&self, encoder: ObjectRef, decoder: ObjectRef, started: Instant) -> MemberRound {
        MemberRound { encoder: Some(encoder), decoder: Some(decoder), busy_us: microseconds(started), ..self.so_far() }
    }
}
