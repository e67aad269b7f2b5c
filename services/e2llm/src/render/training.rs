use e2llm_api::v1::{MemberRound, ObjectiveLoss, TrainStatus};
use serde_json::{Map, Value, json};

use super::count;

/// Where training stands, for programs.
pub(crate) fn training_json(train: &TrainStatus) -> Value {
    json!({
        "rounds": train.rounds, "rounds_committed": train.rounds_committed, "steps": train.steps,
        "steps_done": train.steps_done, "losses": losses_json(&train.losses), "targets": train.targets,
        "steps_open": train.steps_open, "losses_open": losses_json(&train.losses_open),
        "targets_open": train.targets_open, "positions": train.positions, "busy_s": train.busy_us as f64 / 1e6, "left_out": train.left_out,
        "bundle": train.bundle,
    })
}

/// Such as `round 3/12, step 60/240, reconstruct 3.12`.
pub(crate) fn training_text(train: &TrainStatus) -> String {
    let TrainStatus { rounds, rounds_committed, steps, steps_done, steps_open, .. } = train;
    let done = count(steps_done + steps_open);
    let mut text = format!("round {rounds_committed}/{rounds}, step {done}/{}", count(*steps));
    let losses = if train.losses_open.is_empty() { &train.losses } else { &train.losses_open };
    for ObjectiveLoss { objective, loss, .. } in losses {
        text += &format!(", {objective} {loss:.3}");
    }
    if train.left_out > 0 {
        text += &format!(", {} shares left out", train.left_out);
    }
    if !train.bundle.is_empty() {
        text += &format!(", bundle {}", super::clean(&train.bundle));
    }
    text
}

/// One member's share of a round.
pub(super) fn member_json(member: &MemberRound) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("left_out".into(), member.left_out.into());
    object.insert("losses".into(), losses_json(&member.losses));
    object.insert("targets".into(), member.targets.into());
    object.insert("positions".into(), member.positions.into());
    object.insert("seconds".into(), (member.busy_us as f64 / 1e6).into());
    if !member.bundle.is_empty() {
        object.insert("bundle".into(), member.bundle.clone().into());
    }
    object
}

/// Such as `reconstruct 3.12 over 4,000 target tokens in 80.2 s`.
pub(super) fn member_text(member: &MemberRound) -> String {
    if member.left_out {
        return "left out: it came too late".to_owned();
    }
    if !member.bundle.is_empty() {
        return format!("bundle {}", super::clean(&member.bundle));
    }
    let losses = member.losses.iter().map(|l| format!("{} {:.3}", l.objective, l.loss)).collect::<Vec<_>>();
    let seconds = member.busy_us as f64 / 1e6;
    format!("{} over {} target tokens in {seconds:.1} s", losses.join(", "), count(member.targets))
}

fn losses_json(losses: &[ObjectiveLoss]) -> Value {
    let of = |l: &ObjectiveLoss| (l.objective.clone(), json!({"loss": l.loss, "targets": l.targets}));
    Value::Object(losses.iter().map(of).collect())
}
