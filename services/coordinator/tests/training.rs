//! Training jobs: rounds open one after the other, are averaged, and survive whoever is lost.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Cluster, HandWorker, small};
use e2llm_api::ErrorCode;
use e2llm_api::v1::train_round::Kind;
use e2llm_api::v1::*;
use e2llm_runtime::code_of;
use e2llm_store::Store;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

/// One parameter of one number, with a moment beside it.
fn state(side: &str, value: f32) -> Vec<u8> {
    let (value, moment) = (value.to_le_bytes(), 9f32.to_le_bytes());
    let view = |bytes| TensorView::new(Dtype::F32, vec![1], bytes).unwrap();
    let tensors = [(format!("{side}.value.w"), view(&value[..])), (format!("{side}.first.w"), view(&moment[..]))];
    serialize(tensors, None).unwrap()
}

async fn value(store: &Store, object: &ObjectRef, side: &str) -> f32 {
    let bytes = store.get_named(object).await.unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(&format!("{side}.value.w")).unwrap();
    f32::from_le_bytes(tensor.data().try_into().unwrap())
}

fn round(kind: Kind, members: u32) -> TrainRound {
    TrainRound { kind: kind.into(), members, steps: 5, ..Default::default() }
}

/// Two rounds of two members, then the export.
async fn spec(cluster: &Cluster, job: &str) -> JobSpec {
    let piece = TextPiece { text: b"{\"id\":\"a\",\"text\":\"b\"}\n".to_vec() };
    let stored = cluster.client().put_text(tokio_stream::iter([piece])).await.unwrap().into_inner();
    let train = TrainSpec {
        recipe: "seed: 1".into(),
        data: stored.text.into_iter().collect(),
        members: 2,
        rounds: vec![round(Kind::Joint, 2), round(Kind::Joint, 2), round(Kind::Export, 1)],
        outer_rate: 1.0,
        bundle_name: "b".into(),
        ..Default::default()
    };
    JobSpec { train: Some(train), ..common::spec(JobKind::Train, job) }
}

/// Finishes a share: both sides end at `value`.
async fn finish(cluster: &Cluster, worker: &mut HandWorker, task: &Task, value: f32) {
    let train = task.train.as_ref().unwrap();
    let prefix = format!("train/{}/rounds/{:06}/member-{}-{}", task.job_id, train.round, train.member, worker.id);
    let put = async |side: &str| {
        let (prefix, state) = (format!("{prefix}-{side}"), state(side, value));
        Some(cluster.store.put_named(&prefix, ".safetensors", state.into()).await.unwrap())
    };
    let losses = vec![ObjectiveLoss { objective: "reconstruct".into(), loss: f64::from(value), targets: 10 }];
    let member = MemberRound {
        encoder: put("adapter").await,
        decoder: put("lora").await,
        losses,
        targets: 10,
        ..Default::default()
    };
    succeed(worker, task, member).await;
}

async fn succeed(worker: &mut HandWorker, task: &Task, member: MemberRound) {
    let Row { number, id, .. } = task.rows[0].clone();
    let answer = worker.succeed(task, vec![RowResult { number, id, member: Some(member), ..Default::default() }]).await;
    assert_eq!(answer.acknowledged.len(), 1);
}

/// The next tasks of a worker, once there are any.
async fn take(worker: &mut HandWorker, slots: u32) -> Vec<Task> {
    for _ in 0..100 {
        let tasks = worker.take(slots).await;
        if !tasks.is_empty() {
            return tasks;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no task came");
}

async fn until(cluster: &Cluster, job: &str, done: impl Fn(&JobStatus) -> bool) -> JobStatus {
    for _ in 0..200 {
        let status = cluster.status(job).await;
        if done(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the job stays {:?}", cluster.status(job).await);
}

#[tokio::test]
async fn rounds_follow_one_another_from_the_members_mean_to_the_bundle() {
    let cluster = Cluster::start(small()).await;
    let rows = cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap().rows;
    assert_eq!(rows, 5);
    let mut worker = cluster.worker("w", Stage::Train);
    let first = take(&mut worker, 9).await;
    assert_eq!(first.len(), 2, "the second round waits for the first");
    assert!(first[0].train.as_ref().unwrap().encoder.as_ref().unwrap().parameters.is_none());
    finish(&cluster, &mut worker, &first[0], 1.0).await;
    assert!(worker.take(9).await.is_empty());
    finish(&cluster, &mut worker, &first[1], 4.0).await;
    let second = take(&mut worker, 9).await;
    let TrainTask { encoder, decoder, .. } = second[1].train.clone().unwrap();
    let (encoder, decoder) = (encoder.unwrap(), decoder.unwrap());
    assert_eq!(value(&cluster.store, &encoder.parameters.unwrap(), "adapter").await, 2.5);
    assert_eq!(value(&cluster.store, &decoder.parameters.unwrap(), "lora").await, 2.5);
    let own = encoder.moments.unwrap();
    assert!(own.path.contains("member-1-") && cluster.store.get_named(&own).await.is_ok());
    let status = cluster.status("j").await.train.unwrap();
    assert_eq!((status.rounds, status.rounds_committed, status.steps, status.steps_done), (3, 1, 10, 5));
    assert_eq!((status.targets, status.losses[0].loss), (20, 2.5));
    for task in &second {
        finish(&cluster, &mut worker, task, 3.0).await;
    }
    let export = take(&mut worker, 9).await;
    assert!(!cluster.store.exists(&own.path).await.unwrap(), "nothing starts from the first round any more");
    succeed(&mut worker, &export[0], MemberRound { bundle: "f00d".into(), ..Default::default() }).await;
    let ended = until(&cluster, "j", |status| status.state == "succeeded").await;
    let train = ended.train.unwrap();
    assert_eq!((ended.rows_failed, train.bundle.as_str(), train.rounds_committed), (0, "f00d", 3));
}

#[tokio::test]
async fn a_new_coordinator_goes_on_in_the_same_round() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Train);
    for task in take(&mut worker, 2).await {
        finish(&cluster, &mut worker, &task, 2.0).await;
    }
    let half = take(&mut worker, 1).await;
    finish(&cluster, &mut worker, &half[0], 2.0).await;
    let cluster = cluster.restart().await;
    let mut worker = cluster.worker("w2", Stage::Train);
    let rest = take(&mut worker, 9).await;
    assert_eq!((rest.len(), rest[0].rows[0].id.as_str()), (1, "round-000001/member-1"));
    finish(&cluster, &mut worker, &rest[0], 4.0).await;
    let export = take(&mut worker, 9).await;
    let parameters = export[0].train.clone().unwrap().encoder.unwrap().parameters.unwrap();
    assert_eq!(value(&cluster.store, &parameters, "adapter").await, 3.0);
}

#[tokio::test]
async fn a_round_whose_coordinator_died_before_it_was_committed_is_committed_by_the_next() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Train);
    for task in take(&mut worker, 2).await {
        finish(&cluster, &mut worker, &task, 2.0).await;
    }
    until(&cluster, "j", |status| status.train.as_ref().unwrap().rounds_committed == 1).await;
    cluster.store.delete("train/j/rounds/000000/commit").await.unwrap();
    let cluster = cluster.restart().await;
    let tasks = take(&mut cluster.worker("w", Stage::Train), 9).await;
    assert_eq!(tasks[0].train.as_ref().unwrap().round, 1);
}

#[tokio::test]
async fn a_quorum_goes_on_without_a_member_that_is_late() {
    let cluster = Cluster::start(small()).await;
    let mut spec = spec(&cluster, "j").await;
    let train = spec.train.as_mut().unwrap();
    (train.quorum, train.quorum_wait_s) = (1, 10);
    cluster.submit(spec, vec![]).await.unwrap();
    let (mut a, mut late) = (cluster.worker("a", Stage::Train), cluster.worker("late", Stage::Train));
    let (one, other) = (take(&mut a, 1).await.remove(0), take(&mut late, 1).await.remove(0));
    finish(&cluster, &mut a, &one, 7.0).await;
    assert!(a.take(9).await.is_empty());
    cluster.clock.advance(Duration::from_secs(9));
    late.holds(&other).await;
    assert!(a.take(9).await.is_empty(), "the quorum still waits");
    cluster.clock.advance(Duration::from_secs(2));
    let next = take(&mut a, 9).await;
    assert_eq!(next.len(), 2);
    let parameters = next[0].train.clone().unwrap().decoder.unwrap().parameters.unwrap();
    assert_eq!(value(&cluster.store, &parameters, "lora").await, 7.0);
    assert_eq!(late.holds(&other).await.revoked.len(), 1);
    assert_eq!(cluster.status("j").await.train.unwrap().left_out, 1);
}

#[tokio::test]
async fn a_lost_members_share_is_done_by_another_from_the_same_start() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap();
    let lost = take(&mut cluster.worker("lost", Stage::Train), 1).await.remove(0);
    cluster.clock.advance(Duration::from_secs(20));
    let mut worker = cluster.worker("w", Stage::Train);
    worker.take(0).await;
    cluster.clock.advance(Duration::from_secs(20));
    let tasks = take(&mut worker, 9).await;
    let again = tasks.iter().find(|task| task.rows == lost.rows).expect("the lost share is handed out again");
    assert_eq!((&again.train, again.attempt), (&lost.train, 2));
}

#[tokio::test]
async fn a_member_whose_state_is_damaged_is_left_out_of_its_round() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Train);
    let tasks = take(&mut worker, 9).await;
    finish(&cluster, &mut worker, &tasks[0], 7.0).await;
    // The other member names a state whose bytes are not those it wrote.
    let put = async |side: &str, bytes: Vec<u8>| {
        Some(
            cluster
                .store
                .put_named(&format!("train/j/rounds/000000/member-1-w-{side}"), ".safetensors", bytes.into())
                .await
                .unwrap(),
        )
    };
    let (encoder, decoder) = (put("adapter", state("adapter", 1.0)).await, put("lora", state("lora", 1.0)).await);
    let path = decoder.clone().unwrap().path;
    cluster.store.delete(&path).await.unwrap();
    let _created = cluster.store.create(&path, "damaged").await.unwrap();
    succeed(&mut worker, &tasks[1], MemberRound { encoder, decoder, targets: 10, ..Default::default() }).await;
    let next = take(&mut worker, 9).await;
    let parameters = |state: Option<SideState>| state.unwrap().parameters.unwrap();
    let TrainTask { encoder, decoder, .. } = next[0].train.clone().unwrap();
    assert_eq!(value(&cluster.store, &parameters(encoder), "adapter").await, 7.0, "neither side of it counts");
    assert_eq!(value(&cluster.store, &parameters(decoder), "lora").await, 7.0);
    let train = cluster.status("j").await.train.unwrap();
    assert_eq!((train.left_out, train.targets), (1, 10));
}

/// What a member leaves whose parameters are of another shape: a pair of numbers.
async fn finish_with_pairs(cluster: &Cluster, worker: &mut HandWorker, task: &Task) {
    let train = task.train.as_ref().unwrap();
    let put = async |side: &str| {
        let pair = [2f32, 4.0].map(f32::to_le_bytes).concat();
        let view = TensorView::new(Dtype::F32, vec![2], &pair).unwrap();
        let state = serialize([(format!("{side}.value.w"), view)], None).unwrap();
        let prefix = format!("train/j/rounds/{:06}/member-{}-pairs-{side}", train.round, train.member);
        Some(cluster.store.put_named(&prefix, ".safetensors", state.into()).await.unwrap())
    };
    let member = MemberRound { encoder: put("adapter").await, decoder: put("lora").await, ..Default::default() };
    succeed(worker, task, member).await;
}

#[tokio::test]
async fn shapes_may_change_with_the_stage() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Train);
    for task in take(&mut worker, 2).await {
        finish(&cluster, &mut worker, &task, 2.0).await;
    }
    for task in take(&mut worker, 2).await {
        finish_with_pairs(&cluster, &mut worker, &task).await;
    }
    let export = take(&mut worker, 9).await;
    let object = export[0].train.clone().unwrap().encoder.unwrap().parameters.unwrap();
    let bytes = cluster.store.get_named(&object).await.unwrap();
    assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor("adapter.value.w").unwrap().shape(), [2]);
}

#[tokio::test]
async fn within_a_stage_a_member_of_another_shape_is_left_out_even_if_it_is_the_first() {
    let cluster = Cluster::start(small()).await;
    let mut spec = spec(&cluster, "j").await;
    spec.train.as_mut().unwrap().rounds[1].first_step = 5;
    cluster.submit(spec, vec![]).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Train);
    for task in take(&mut worker, 2).await {
        finish(&cluster, &mut worker, &task, 2.0).await;
    }
    let tasks = take(&mut worker, 2).await;
    finish_with_pairs(&cluster, &mut worker, &tasks[0]).await;
    finish(&cluster, &mut worker, &tasks[1], 6.0).await;
    let export = take(&mut worker, 9).await;
    let object = export[0].train.clone().unwrap().encoder.unwrap().parameters.unwrap();
    assert_eq!(value(&cluster.store, &object, "adapter").await, 6.0);
    assert_eq!(cluster.status("j").await.train.unwrap().left_out, 1);
}

#[tokio::test]
async fn a_bundle_is_sent_whole_or_as_an_error() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap();
    let get = async || -> Result<Vec<(String, usize)>, tonic::Status> {
        let request = GetBundleRequest { job_id: "j".into() };
        let mut pieces = cluster.client().get_bundle(request).await?.into_inner();
        let mut files: Vec<(String, usize)> = Vec::new();
        while let Some(BundlePiece { file, bytes }) = pieces.message().await? {
            match files.last_mut().filter(|(known, _)| *known == file) {
                Some((_, length)) => *length += bytes.len(),
                None => files.push((file, bytes.len())),
            }
        }
        Ok(files)
    };
    assert_eq!(code_of(&get().await.unwrap_err()), ErrorCode::NotFound, "nothing is trained yet");
    let mut worker = cluster.worker("w", Stage::Train);
    for _ in 0..2 {
        for task in take(&mut worker, 2).await {
            finish(&cluster, &mut worker, &task, 2.0).await;
        }
    }
    let export = take(&mut worker, 9).await;
    let put = async |name: &str, bytes: Vec<u8>| {
        cluster.store.put_verified(&format!("bundles/f00d/{name}"), bytes.into()).await.unwrap()
    };
    let bundle_files = vec![put("bundle.json", vec![1; 3]).await, put("lora.safetensors", vec![2; 3 << 20]).await];
    let member = MemberRound { bundle: "f00d".into(), bundle_files, ..Default::default() };
    succeed(&mut worker, &export[0], member).await;
    until(&cluster, "j", |status| status.state == "succeeded").await;
    let sent = get().await.unwrap();
    assert_eq!(sent, [("bundle.json".to_owned(), 3), ("lora.safetensors".to_owned(), 3 << 20)]);
    cluster.store.delete("bundles/f00d/lora.safetensors").await.unwrap();
    let _created = cluster.store.create("bundles/f00d/lora.safetensors", "damaged").await.unwrap();
    assert_eq!(code_of(&get().await.unwrap_err()), ErrorCode::Corrupt);
}

#[tokio::test]
async fn members_tell_how_far_they_are_and_only_those_that_hold_their_share() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Train);
    let tasks = take(&mut worker, 9).await;
    let progress = |task: &Task, steps| {
        let losses = vec![ObjectiveLoss { objective: "answer".into(), loss: 2.0, targets: 8 }];
        let so_far = Some(MemberRound { losses, targets: 8, ..Default::default() });
        ShareProgress { task: Some(common::reference(task)), steps, so_far }
    };
    let told = ReportStatusRequest {
        in_progress: tasks.iter().map(common::reference).collect(),
        progress: vec![progress(&tasks[0], 4), progress(&tasks[1], 2)],
        ..Default::default()
    };
    worker.report(told.clone()).await;
    let train = cluster.status("j").await.train.unwrap();
    assert_eq!((train.steps_done, train.steps_open, train.targets_open), (0, 2, 16));
    assert_eq!(train.losses_open[0].loss, 2.0);
    cluster
        .worker("other", Stage::Train)
        .report(ReportStatusRequest { progress: vec![progress(&tasks[1], 5)], ..told })
        .await;
    assert_eq!(cluster.status("j").await.train.unwrap().steps_open, 2, "what others say of a share does not count");
}

#[tokio::test]
async fn a_round_that_nobody_finishes_ends_the_job() {
    let cluster = Cluster::start(small()).await;
    cluster.submit(spec(&cluster, "j").await, vec![]).await.unwrap();
    let mut worker = cluster.worker("w", Stage::Train);
    for task in take(&mut worker, 9).await {
        worker.fail(&task, ErrorCode::InvalidArgument).await;
    }
    let status = until(&cluster, "j", |status| status.state == "cancelled").await;
    assert_eq!(status.rows_failed, 2);
}

#[tokio::test]
async fn data_must_be_in_the_store_and_is_held_until_the_job_ends() {
    let cluster = Cluster::start(small()).await;
    let mut missing = spec(&cluster, "j").await;
    missing.train.as_mut().unwrap().data[0].hash = blake3::hash(b"other").to_hex().to_string();
    let error = cluster.submit(missing, vec![]).await.unwrap_err();
    assert_eq!(code_of(&error), ErrorCode::ObjectGone);
    let good = spec(&cluster, "k").await;
    let hash = good.train.as_ref().unwrap().data[0].hash.clone();
    cluster.submit(good, vec![]).await.unwrap();
    let mut held = cluster.client().held_texts(HeldTextsRequest {}).await.unwrap().into_inner();
    let mut hashes = Vec::new();
    while let Some(message) = held.message().await.unwrap() {
        hashes.extend(message.text_hashes);
    }
    assert!(hashes.contains(&hash));
}
