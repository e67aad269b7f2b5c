//! A training job's rows: one per member of each round, in order. Nobody submits them; they follow from the spec.

use e2llm_api::v1::train_round::Kind;
use e2llm_api::v1::{JobSpec, Row, Stage, TrainRound, TrainSpec};

use crate::CoordinatorError;
use crate::ids::TaskId;
use crate::records::{PlanPage, TaskCut};

/// Most members of a round.
const MAX_MEMBERS: u32 = 1_000;
/// Most shares of all rounds: every one is a row of a plan that is one page.
const MAX_SHARES: u64 = 100_000;

/// Checks what the coordinator depends on; the recipe is the members' business.
pub(super) fn check(spec: &TrainSpec) -> Result<(), CoordinatorError> {
    let bad = |problem: String| Err(CoordinatorError::BadSpec(problem));
    if spec.recipe.trim().is_empty() || spec.data.is_empty() {
        return bad("training needs a recipe and data; name both".to_owned());
    }
    if spec.members == 0 || spec.members > MAX_MEMBERS {
        return bad(format!("{} members; give 1 to {MAX_MEMBERS}", spec.members));
    }
    if spec.quorum > spec.members {
        return bad(format!("a quorum of {} of {} members cannot be reached", spec.quorum, spec.members));
    }
    if !(0.0..=2.0).contains(&spec.outer_rate) || spec.outer_rate == 0.0 || !(0.0..1.0).contains(&spec.outer_momentum) {
        let (rate, momentum) = (spec.outer_rate, spec.outer_momentum);
        return bad(format!(
            "outer rate {rate} and momentum {momentum}; give a rate in (0, 2] and a momentum in [0, 1)"
        ));
    }
    let of_whole =
        |round: &&TrainRound| round.kind() == Kind::Unspecified || !(1..=spec.members).contains(&round.members);
    if let Some(round) = spec.rounds.iter().find(of_whole) {
        return bad(format!(
            "a round of kind {:?} with {} members; give it 1 to {}",
            round.kind(),
            round.members,
            spec.members
        ));
    }
    let shares = starts(spec).last().copied().unwrap_or(0);
    if shares == 0 || shares > MAX_SHARES {
        return bad(format!("{shares} shares of rounds; give 1 to {MAX_SHARES}"));
    }
    Ok(())
}

/// Number of the first row of each round, and of the row after the last.
pub(super) fn starts(spec: &TrainSpec) -> Vec<u64> {
    let mut next = 0;
    let mut starts = vec![0];
    for round in &spec.rounds {
        next += u64::from(round.members);
        starts.push(next);
    }
    starts
}

/// The row of one member's share.
pub(super) fn row(starts: &[u64], round: usize, member: u32) -> Row {
    let number = starts.get(round).copied().unwrap_or_default() + u64::from(member);
    Row { number, id: format!("round-{round:06}/member-{member}"), ..Row::default() }
}

/// The whole plan: all rows, and the tasks of the first round.
pub(crate) fn plan(spec: &JobSpec) -> Result<PlanPage, CoordinatorError> {
    let Some(train) = &spec.train else {
        return Err(CoordinatorError::BadSpec("a training job without what to train; fill in `train`".to_owned()));
    };
    check(train)?;
    let starts = starts(train);
    let shares =
        train.rounds.iter().enumerate().flat_map(|(round, r)| (0..r.members).map(move |member| (round, member)));
    let rows = shares.map(|(round, member)| row(&starts, round, member)).collect();
    let first = train.rounds.first().map_or(0, |round| u64::from(round.members));
    Ok(PlanPage { rows, tasks: cuts(0..first), last: true, ..PlanPage::default() })
}

/// One task per row.
pub(super) fn cuts(rows: std::ops::Range<u64>) -> Vec<TaskCut> {
    rows.map(|number| TaskCut::new(TaskId::new(Stage::Train, number), vec![number])).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One round of pretraining, two of two members, one of export.
    pub(crate) fn spec() -> TrainSpec {
        let round = |kind: Kind, members| TrainRound { kind: kind.into(), members, steps: 4, ..TrainRound::default() };
        TrainSpec {
            recipe: "seed: 1".to_owned(),
            data: vec![Default::default()],
            members: 2,
            rounds: vec![
                round(Kind::Pretrain, 1),
                round(Kind::Joint, 2),
                round(Kind::Joint, 2),
                round(Kind::Export, 1),
            ],
            outer_rate: 1.0,
            ..TrainSpec::default()
        }
    }

    #[test]
    fn every_share_of_every_round_is_a_row_and_the_first_round_is_ready() {
        let job = JobSpec { train: Some(spec()), ..JobSpec::default() };
        let page = plan(&job).unwrap();
        let ids: Vec<&str> = page.rows.iter().map(|row| row.id.as_str()).collect();
        let expected = ["round-000000/member-0", "round-000001/member-0", "round-000001/member-1"];
        assert_eq!(ids[..3], expected);
        assert_eq!((ids.len(), ids[5]), (6, "round-000003/member-0"));
        assert!(page.rows.iter().map(|row| row.number).eq(0..6));
        assert_eq!(page.tasks, [TaskCut { task_id: "train-00000000".to_owned(), rows: vec![0] }]);
    }

    #[test]
    fn a_spec_that_cannot_be_trained_is_refused_with_its_value() {
        let refused = |change: fn(&mut TrainSpec)| {
            let mut spec = spec();
            change(&mut spec);
            check(&spec).unwrap_err().to_string()
        };
        assert!(refused(|s| s.quorum = 3).contains("quorum of 3 of 2"));
        assert!(refused(|s| s.members = 0).contains("0 members"));
        assert!(refused(|s| s.outer_rate = f64::NAN).contains("outer rate NaN"));
        assert!(refused(|s| s.outer_momentum = 1.0).contains("momentum 1"));
        assert!(refused(|s| s.rounds[1].members = 3).contains("with 3 members"));
        assert!(refused(|s| s.rounds.clear()).contains("0 shares"));
        assert!(refused(|s| s.recipe = " ".to_owned()).contains("needs a recipe"));
    }
}
