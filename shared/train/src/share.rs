//! Training in rounds: what a recipe is cut into when several members train it together.
//!
//! A member takes its local steps from the parameters of the round before and its own moments, on the samples that are
//! its own, so a share is a function of what names it: whoever does it again gets the same. At one local step per round
//! and the plain mean of the members that is synchronous training; with more it is DiLoCo (arXiv 2311.08105).

use std::collections::{BTreeMap, HashMap};

use candle_core::Tensor;

use crate::corpus::Corpus;
use crate::error::{Result, TrainError};
use crate::recipe::{Recipe, Stage};
use crate::sample::{Sample, Sampler};
use crate::session::EncoderSession;
use crate::trainer::{Progress, Trainer};

/// Consecutive steps of one stage that all members take before they meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Index of the stage.
    pub stage: usize,
    /// First step, 0-based, within the stage.
    pub first_step: usize,
    /// Steps.
    pub steps: usize,
    /// Number of the first sample of the first step.
    pub first_sample: u64,
}

/// A round as one member sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The round.
    pub round: Round,
    /// Which member, 0-based.
    pub member: usize,
    /// How many share the round's samples.
    pub members: usize,
}

/// The rounds of a recipe's stages, of at most `local_steps` steps each; none crosses two stages.
///
/// # Errors
/// When a batch cannot be shared evenly.
pub fn rounds(recipe: &Recipe, local_steps: usize, members: usize) -> Result<Vec<Round>> {
    if local_steps == 0 || members == 0 {
        return Err(TrainError::Invalid("local steps and members must be at least 1".to_owned()));
    }
    let mut rounds = Vec::new();
    let mut first_sample = 0;
    for (index, stage) in recipe.stages.iter().enumerate() {
        if !stage.batch.is_multiple_of(members) {
            let (number, batch) = (index + 1, stage.batch);
            return Err(TrainError::Invalid(format!(
                "stage {number} has a batch of {batch}, which {members} members cannot share; make it a multiple"
            )));
        }
        for first_step in (0..stage.steps).step_by(local_steps) {
            let steps = local_steps.min(stage.steps - first_step);
            rounds.push(Round { stage: index, first_step, steps, first_sample });
            first_sample += (steps * stage.batch) as u64;
        }
    }
    Ok(rounds)
}

impl Share {
    /// The member's samples of step `step` (from the round's first): those that one process would draw, every
    /// `members`-th of them.
    fn samples(
        &self,
        recipe: &Recipe,
        stage: &Stage,
        sampler: &Sampler,
        corpus: &Corpus,
        step: usize,
    ) -> Result<Vec<Sample>> {
        let first = self.round.first_sample + (step * stage.batch) as u64;
        let own = (self.member..stage.batch).step_by(self.members);
        own.map(|number| sampler.draw(corpus, &stage.mix, stage.chunks, recipe.seed, first + number as u64)).collect()
    }

    /// Takes the share's steps. `report` sees each and says whether to go on.
    ///
    /// # Errors
    /// [`TrainError::Stopped`] when `report` says no.
    pub fn run<S: EncoderSession>(
        &self,
        recipe: &Recipe,
        trainer: &mut Trainer<S>,
        sampler: &Sampler,
        corpus: &Corpus,
        mut report: impl FnMut(usize, &Progress) -> bool,
    ) -> Result<()> {
        let stage = recipe.stages.get(self.round.stage).ok_or_else(|| {
            TrainError::Invalid(format!(
                "the recipe has {} stages, no stage {}",
                recipe.stages.len(),
                self.round.stage + 1
            ))
        })?;
        let mut sampler = sampler.clone();
        sampler.configure(stage);
        for step in 0..self.round.steps {
            let samples = self.samples(recipe, stage, &sampler, corpus, step)?;
            let number = self.round.first_step + step;
            let progress = trainer.step(&samples, stage.schedule(number), number)?;
            if !report(step + 1, &progress) {
                return Err(TrainError::Stopped);
            }
        }
        Ok(())
    }
}

/// The state to restore: that of a fresh start, under the moments of an earlier share, under committed parameters.
pub fn overlay(
    fresh: BTreeMap<String, Tensor>,
    moments: Option<HashMap<String, Tensor>>,
    parameters: Option<HashMap<String, Tensor>>,
) -> HashMap<String, Tensor> {
    let mut state: HashMap<String, Tensor> = fresh.into_iter().collect();
    state.extend(moments.unwrap_or_default());
    state.extend(parameters.unwrap_or_default());
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        let stage = |steps: usize| {
            format!(
                "{{ steps: {steps}, batch: 4, max_target: 8, chunks: [1, 1], mix: [[reconstruct, 1.0]], warm_up: 0, \
                 final_rate: 1.0, adapter: {{ learning_rate: 1.0e-3 }}, lora: {{ learning_rate: 1.0e-3 }} }}"
            )
        };
        let (first, second) = (stage(5), stage(2));
        let text = format!(
            "{{ seed: 1, ratio: 4, chunk_tokens: 64, lora_rank: 2, lora_scale: 2.0, stages: [{first}, {second}] }}"
        );
        Recipe::parse(&text).unwrap()
    }

    #[test]
    fn rounds_cover_all_steps_and_samples_and_cross_no_stage() {
        let cut: Vec<_> =
            rounds(&recipe(), 3, 2).unwrap().iter().map(|r| (r.stage, r.first_step, r.steps, r.first_sample)).collect();
        assert_eq!(cut, [(0, 0, 3, 0), (0, 3, 2, 12), (1, 0, 2, 20)]);
    }

    #[test]
    fn a_batch_that_cannot_be_shared_is_refused() {
        let error = rounds(&recipe(), 3, 3).unwrap_err().to_string();
        assert!(error.contains("batch of 4, which 3 members"), "{error}");
        assert!(rounds(&recipe(), 0, 1).is_err());
    }
}
