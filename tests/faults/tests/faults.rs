//! A dozen runs that between them hold every kind of fault and every role; `cargo xtask faults` runs many more.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

use e2llm_faults::{Fault, Fleet, Keep, Plan, Role, Site, Stage, run};

type Wanted = fn(&Plan) -> bool;

/// Runs the first plan that fits each wish, one after the other on one fleet.
async fn all_hold(site: Site, wanted: &[Wanted]) {
    let fleet = Fleet::start(site).await.unwrap();
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    for is_wanted in wanted {
        let plan = Plan::first(0, |plan| plan.site == site && is_wanted(plan));
        let report = run(&fleet, &plan, &logs, Keep::Failures).await;
        eprintln!("{}", report.line());
        let repeat = format!("cargo xtask faults --seeds 1 --first {}", plan.seed);
        assert!(report.is_sound(), "{}\nlogs: {:?}; repeat it: {repeat}", report.line(), report.logs);
    }
}

fn kills(plan: &Plan, wanted: Role) -> bool {
    matches!(plan.fault, Fault::Kill { role, .. } if role == wanted)
}

fn kills_at(plan: &Plan, wanted: &str) -> bool {
    matches!(plan.fault, Fault::Kill { point, .. } if point == wanted)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_outlives_the_death_of_its_workers_and_of_those_they_depend_on() {
    let wanted: [Wanted; 5] = [
        |plan| kills_at(plan, "encoder.blob_written"),
        |plan| kills_at(plan, "decoder.first_token"),
        |plan| kills_at(plan, "coordinator.part_written"),
        |plan| kills_at(plan, "coordinator.page_written"),
        |plan| kills(plan, Role::Index),
    ];
    all_hold(Site::Disk, &wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_worker_brings_after_its_lease_does_not_count() {
    let wanted: [Wanted; 2] = [
        |plan| matches!(plan.fault, Fault::Stop { stage: Stage::Encode, wakes_late: false }),
        |plan| matches!(plan.fault, Fault::Stop { stage: Stage::Decode, wakes_late: true }),
    ];
    all_hold(Site::Disk, &wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_crashes_workers_fails_alone() {
    let wanted: [Wanted; 1] = [|plan| plan.name() == "poison-decode"];
    all_hold(Site::Disk, &wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_soft_prompt_and_a_slow_or_full_disk_change_no_result() {
    let wanted: [Wanted; 3] =
        [|plan| plan.name() == "corrupt-blob", |plan| plan.name() == "slow-disk", |plan| plan.name() == "full-disk"];
    all_hold(Site::Disk, &wanted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_that_refuses_or_resets_calls_changes_no_result() {
    let wanted: [Wanted; 2] = [|plan| plan.name() == "s3-errors", |plan| plan.name() == "s3-resets"];
    all_hold(Site::Bucket, &wanted).await;
}
