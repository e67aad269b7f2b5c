use std::sync::Arc;

use e2llm_api::ErrorCode;
use e2llm_api::v1::train_round::Kind;
use e2llm_api::v1::{MemberRound, ObjectRef, ObjectiveLoss, Stage};
use e2llm_runtime::failpoint::reach_with;
use prost::Message;
use tracing::{info, warn};

use super::average::{Mean, Parameters};
use super::rounds::Due;
use crate::CoordinatorError;
use crate::engine::Engine;
use crate::ids::JobId;
use crate::job::Source;

type Result<T> = std::result::Result<T, CoordinatorError>;

/// `train/<job>/rounds/<%06d>/commit`: what counts of a round.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct RoundRecord {
    #[prost(string, tag = "1")]
    pub(crate) writer: String,
    /// Parameters after the round: encoder side and decoder side.
    #[prost(message, optional, tag = "2")]
    pub(crate) encoder: Option<ObjectRef>,
    #[prost(message, optional, tag = "3")]
    pub(crate) decoder: Option<ObjectRef>,
    /// Velocities of the outer step.
    #[prost(message, optional, tag = "4")]
    pub(crate) encoder_velocity: Option<ObjectRef>,
    #[prost(message, optional, tag = "5")]
    pub(crate) decoder_velocity: Option<ObjectRef>,
    /// The quorum.
    #[prost(message, repeated, tag = "6")]
    pub(crate) members: Vec<MemberState>,
    /// Means over the members' target tokens.
    #[prost(message, repeated, tag = "7")]
    pub(crate) losses: Vec<ObjectiveLoss>,
    #[prost(uint64, tag = "8")]
    pub(crate) targets: u64,
    #[prost(uint64, tag = "9")]
    pub(crate) positions: u64,
    #[prost(uint64, tag = "10")]
    pub(crate) busy_us: u64,
    #[prost(uint32, tag = "11")]
    pub(crate) left_out: u32,
    /// Fingerprint of the bundle that an export has written.
    #[prost(string, tag = "12")]
    pub(crate) bundle: String,
    /// Its files.
    #[prost(message, repeated, tag = "13")]
    pub(crate) bundle_files: Vec<ObjectRef>,
}

/// A member of a quorum and what it left.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct MemberState {
    #[prost(uint32, tag = "1")]
    pub(crate) member: u32,
    #[prost(message, optional, tag = "2")]
    pub(crate) encoder: Option<ObjectRef>,
    #[prost(message, optional, tag = "3")]
    pub(crate) decoder: Option<ObjectRef>,
}

/// One side of the system.
#[derive(Clone, Copy)]
enum Side {
    Encoder,
    Decoder,
}

impl Engine {
    /// Commits the open round of a training job if it is due, and opens the next one. Called after whatever may have
    /// made it due; what fails is tried again at the next call.
    pub(crate) async fn advance_training(self: &Arc<Self>, id: &JobId) {
        while let Ok(Some(due)) = self.with_job(id, |job| job.take_due_round()) {
            let number = due.number;
            match self.commit_round(id, due).await {
                Ok(Some(record)) => {
                    info!(job_id = %id, round = number, left_out = record.left_out, "round committed");
                    let now = self.now();
                    let opened = self.with_job(id, |job| job.round_committed(record, now));
                    if let Err(error) = opened.and_then(|opened| opened) {
                        warn!(job_id = %id, %error, "the next round could not be opened");
                        return;
                    }
                    self.wake(Stage::Train);
                    self.remove_old_round(id, number).await;
                    self.finish_if_complete(id).await;
                }
                Ok(None) => return self.give_up_training(id, number).await,
                Err(error) => {
                    warn!(job_id = %id, round = number, %error, "round could not be committed; trying again");
                    // The job may have been deleted meanwhile.
                    let _ = self.with_job(id, |job| job.round_put_back());
                    return;
                }
            }
        }
    }

    /// Without a single member there are no parameters to go on from.
    async fn give_up_training(&self, id: &JobId, round: u32) {
        warn!(job_id = %id, round, "no member finished the round; the job is cancelled");
        if let Err(error) = self.cancel(id).await {
            warn!(job_id = %id, %error, "the job could not be cancelled");
        }
    }

    /// Writes what counts of a round; `None` if no member has anything to count.
    async fn commit_round(&self, id: &JobId, due: Due) -> Result<Option<RoundRecord>> {
        if let Some(record) = self.journal.round(id, due.number).await? {
            return Ok(Some(record));
        }
        let before = [self.before(&due, Side::Encoder).await?, self.before(&due, Side::Decoder).await?];
        let (shares, [encoder, decoder]) = self.averaged(id, &due, &before).await?;
        let [encoder_before, decoder_before] = before;
        if shares.is_empty() && !due.is_last {
            return Ok(None);
        }
        let mut record = RoundRecord { left_out: due.round.members - shares.len() as u32, ..summed(&shares) };
        record.members = shares.iter().map(state).collect();
        (record.encoder, record.encoder_velocity) =
            self.outer_step(id, &due, encoder_before, encoder, Side::Encoder).await?;
        (record.decoder, record.decoder_velocity) =
            self.outer_step(id, &due, decoder_before, decoder, Side::Decoder).await?;
        reach_with("coordinator.round_averaged", due.number);
        let record = self.journal.commit_round(id, due.number, record).await?;
        reach_with("coordinator.round_committed", due.number);
        Ok(Some(record))
    }

    /// What the members of a round report, in their order; those that failed or were left out are not among them.
    async fn shares(&self, id: &JobId, due: &Due) -> Result<Vec<(u32, MemberRound)>> {
        let sources = self.with_job(id, |job| job.final_rows(due.rows.start, due.round.members as usize))?;
        let mut shares = Vec::new();
        for (number, source) in sources {
            let Source::Part(part) = source else { continue };
            let rows = self.journal.part(id, &part).await?;
            let share = rows.into_iter().find(|row| row.number == number).and_then(|row| row.member);
            let member = u32::try_from(number - due.rows.start).unwrap_or(u32::MAX);
            shares.extend(share.filter(|share| !share.left_out).map(|share| (member, share)));
        }
        Ok(shares)
    }

    /// The shares that count, and the means of both sides. A member whose state is damaged, gone or of another shape is left
    /// out: it must not hold up the round.
    async fn averaged(
        &self,
        id: &JobId,
        due: &Due,
        before: &[Option<Parameters>; 2],
    ) -> Result<(Vec<(u32, MemberRound)>, [Mean; 2])> {
        // A stage may begin with another ratio, and so with other shapes; within one they stay.
        let expected = |before: &Option<Parameters>| match before {
            Some(before) if due.round.first_step > 0 => Mean::like(before),
            _ => Mean::default(),
        };
        let [mut encoder, mut decoder] = before.each_ref().map(expected);
        let mut counted = Vec::new();
        for (member, share) in self.shares(id, due).await? {
            if due.round.kind() != Kind::Export
                && let Err(reason) = self.add(&share, [&mut encoder, &mut decoder]).await?
            {
                warn!(job_id = %id, round = due.number, member, reason, "a member's state cannot be used; it is left out");
                continue;
            }
            counted.push((member, share));
        }
        Ok((counted, [encoder, decoder]))
    }

    /// Adds both sides of a share to their means, or neither: then says why.
    async fn add(&self, share: &MemberRound, means: [&mut Mean; 2]) -> Result<std::result::Result<(), String>> {
        let mut sides = Vec::new();
        for (object, mean) in [&share.encoder, &share.decoder].into_iter().zip(means) {
            let Some(object) = object else { continue };
            match self.parameters(object).await {
                Ok(parameters) if mean.accepts(&parameters) => sides.push((mean, parameters)),
                Ok(_) => return Ok(Err(format!("{} has other parameters than the round", object.path))),
                Err(error) if matches!(error.code(), ErrorCode::Corrupt | ErrorCode::NotFound) => {
                    return Ok(Err(error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        sides.into_iter().for_each(|(mean, parameters)| mean.add(parameters));
        Ok(Ok(()))
    }

    /// New parameters and velocity of one side.
    async fn outer_step(
        &self,
        id: &JobId,
        due: &Due,
        before: Option<Parameters>,
        mean: Mean,
        side: Side,
    ) -> Result<(Option<ObjectRef>, Option<ObjectRef>)> {
        let (unchanged, velocity) = side.before(&due.before);
        let Some(mean) = mean.finish() else { return Ok((unchanged, velocity)) };
        // Where shapes have changed with the stage there is no way from the old parameters to the new.
        let before = before.filter(|before| before.is_like(&mean));
        let mut old_velocity = match &velocity {
            Some(object) => self.parameters(object).await?,
            None => Parameters::default(),
        };
        let (rate, momentum) = self.with_job(id, |job| job.outer())?;
        let step = move || {
            let Some(before) = before else { return Ok((mean.write()?, None)) };
            let stepped = before.step(&mean, &mut old_velocity, rate, momentum)?;
            let velocity = if momentum > 0.0 { Some(old_velocity.write()?) } else { None };
            Ok((stepped.write()?, velocity))
        };
        let stepped: std::result::Result<_, String> = blocking(step).await?;
        let path = format!("{}/{}", round_folder(id, due.number), side.name());
        let corrupt = |reason| CoordinatorError::Corrupt { path: path.clone(), reason };
        let (parameters, velocity) = stepped.map_err(corrupt)?;
        let store = self.journal.store();
        let parameters = store.put_named(&path, SUFFIX, parameters).await?;
        let velocity = match velocity {
            Some(bytes) => Some(store.put_named(&format!("{path}-velocity"), SUFFIX, bytes).await?),
            None => None,
        };
        Ok((Some(parameters), velocity))
    }

    /// Parameters that a round of joint training starts from.
    async fn before(&self, due: &Due, side: Side) -> Result<Option<Parameters>> {
        match side.before(&due.before).0 {
            Some(object) if due.round.kind() == Kind::Joint => Ok(Some(self.parameters(&object).await?)),
            _ => Ok(None),
        }
    }

    async fn parameters(&self, object: &ObjectRef) -> Result<Parameters> {
        let bytes = self.journal.store().get_named(object).await?;
        let read = blocking(move || Parameters::read(&bytes)).await?;
        read.map_err(|reason| CoordinatorError::Corrupt { path: object.path.clone(), reason })
    }

    /// Deletes the tensors of the round before the one just committed: nothing starts from them any more.
    async fn remove_old_round(&self, id: &JobId, committed: u32) {
        let Some(old) = committed.checked_sub(1) else { return };
        if let Err(error) = self.journal.remove_round_tensors(id, old).await {
            warn!(job_id = %id, round = old, %error, "tensors of an old round are kept until the job is deleted");
        }
    }
}

/// Ending of tensor objects.
pub(crate) const SUFFIX: &str = ".safetensors";

/// Where a round's objects are.
pub(crate) fn round_folder(job: &JobId, round: u32) -> String {
    format!("train/{job}/rounds/{round:06}")
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Side::Encoder => "encoder",
            Side::Decoder => "decoder",
        }
    }

    fn before(self, record: &RoundRecord) -> (Option<ObjectRef>, Option<ObjectRef>) {
        match self {
            Side::Encoder => (record.encoder.clone(), record.encoder_velocity.clone()),
            Side::Decoder => (record.decoder.clone(), record.decoder_velocity.clone()),
        }
    }
}

fn state((member, share): &(u32, MemberRound)) -> MemberState {
    MemberState { member: *member, encoder: share.encoder.clone(), decoder: share.decoder.clone() }
}

/// Sums and means over the members.
pub(super) fn summed(shares: &[(u32, MemberRound)]) -> RoundRecord {
    let mut record = RoundRecord::default();
    for (_, share) in shares {
        record.targets += share.targets;
        record.positions += share.positions;
        record.busy_us += share.busy_us;
        record.bundle.clone_from(&share.bundle);
        record.bundle_files.clone_from(&share.bundle_files);
        for ObjectiveLoss { objective, loss, targets } in &share.losses {
            let known = record.losses.iter().position(|sum| sum.objective == *objective);
            let at = known.unwrap_or(record.losses.len());
            if known.is_none() {
                record.losses.push(ObjectiveLoss { objective: objective.clone(), ..ObjectiveLoss::default() });
            }
            record.losses[at].loss += loss * *targets as f64;
            record.losses[at].targets += targets;
        }
    }
    record.losses.iter_mut().for_each(|sum| sum.loss /= sum.targets.max(1) as f64);
    record
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let stopped = |error: tokio::task::JoinError| CoordinatorError::Stopped(error.to_string());
    tokio::task::spawn_blocking(work).await.map_err(stopped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_means_over_the_members_tokens() {
        let share = |loss, targets| {
            let losses = vec![ObjectiveLoss { objective: "reconstruct".to_owned(), loss, targets }];
            (0, MemberRound { losses, targets, ..MemberRound::default() })
        };
        let record = summed(&[share(1.0, 30), share(2.0, 10)]);
        assert_eq!(record.targets, 40);
        assert!((record.losses[0].loss - 1.25).abs() < 1e-12);
    }
}
