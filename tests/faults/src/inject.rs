//! Does to the fleet what a plan says, at the time it says.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2llm_api::ErrorCode;
use e2llm_runtime::ServiceName;
use e2llm_store::BlobName;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::expect::{ExpectedError, failed_attempts, has_result, records};
use crate::fleet::{Fleet, LEASE};
use crate::job::{Job, Progress, until};
use crate::member::Member;
use crate::plan::{Fault, Misbehaviour, Plan, Role, Stage};

/// The longest wait for a point to be reached.
const LONGEST: Duration = Duration::from_secs(120);
/// The longest wait for a service to say that its disk is full: it looks every 10 s.
const NOTICED: Duration = Duration::from_secs(40);
/// What the coordinator logs of a result that came too late.
const DISMISSED: &str = "result of an attempt that no longer counts";

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Fired {
    /// Processes that died or stood still.
    pub(crate) victims: Vec<u32>,
    /// The row that has to fail.
    pub(crate) error: Option<ExpectedError>,
    /// It fails in the first stage.
    pub(crate) fails_encoding: bool,
    /// How often something happened.
    pub(crate) times: u64,
}

/// One run's surroundings.
pub(crate) struct Injection<'a> {
    pub(crate) fleet: &'a Fleet,
    pub(crate) plan: &'a Plan,
    pub(crate) job: &'a Job,
    pub(crate) progress: &'a Progress,
}

/// Attempts of jobs with a poison document: each costs a lease.
pub(crate) const POISON_ATTEMPTS: u32 = 2;

impl Injection<'_> {
    /// Injects the fault. Until its first wait, nothing of the job has begun.
    ///
    /// # Errors
    /// When the fault did not fire while work was unfinished.
    pub(crate) async fn run(&self) -> Result<Fired> {
        match self.plan.fault {
            Fault::Kill { point: "coordinator.retry_written", .. } => self.kill_after_a_worker().await,
            Fault::Kill { point: "coordinator.split_written", .. } => self.kill_amid_poison().await,
            Fault::Kill { role, point, nth } => self.kill(role, point, nth).await,
            Fault::Stop { stage, wakes_late } => self.stop(stage, wakes_late).await,
            Fault::Poison { stage, document } => self.poison(stage, document).await,
            Fault::CorruptBlob { document } => self.corrupt(document).await,
            Fault::SlowDisk { millis } => self.slow_disk(millis).await,
            Fault::FullDisk { point, role } => self.full_disk(point, role).await,
            Fault::Storage { mode, millis } => self.misbehave(mode, millis).await,
        }
    }

    fn arm(&self, role: Role, point: &str, nth: u64) {
        self.fleet.of(role).for_each(|member| member.points.arm(point, nth));
    }

    /// The first process of the role to be held at the point; the others go on.
    async fn held(&self, role: Role, point: &str) -> Result<&Member> {
        let held = || self.fleet.of(role).find(|member| member.points.is_held(point));
        ensure!(until(self.progress, LONGEST, || held().is_some()).await, "{point} was not reached");
        let held = held().context("held a moment ago")?;
        self.fleet.of(role).filter(|member| member.name != held.name).for_each(|member| member.points.disarm());
        self.is_unfinished().await?;
        Ok(held)
    }

    async fn is_unfinished(&self) -> Result<()> {
        ensure!(!has_result(self.fleet, &self.job.id).await?, "the fault came when the job had ended");
        Ok(())
    }

    async fn kill(&self, role: Role, point: &str, nth: u64) -> Result<Fired> {
        self.arm(role, point, nth);
        let victim = self.held(role, point).await?;
        Ok(Fired { victims: vec![victim.kill()], times: 1, ..Fired::default() })
    }

    /// The coordinator dies when it has noted that a worker has died.
    async fn kill_after_a_worker(&self) -> Result<Fired> {
        self.arm(Role::Coordinator, "coordinator.retry_written", 1);
        let mut fired = self.kill(Role::Encoder, "encoder.task_received", 1).await?;
        let victim = self.held(Role::Coordinator, "coordinator.retry_written").await?;
        fired.victims.push(victim.kill());
        fired.times += 1;
        Ok(fired)
    }

    /// The coordinator dies when it has noted that the rows of a task are to be tried one by one.
    async fn kill_amid_poison(&self) -> Result<Fired> {
        self.arm(Role::Coordinator, "coordinator.split_written", 1);
        let before = self.restarts(Role::Encoder);
        let mut fired = self.spread_poison(Stage::Encode, self.plan.order[0]);
        let victim = self.held(Role::Coordinator, "coordinator.split_written").await?;
        fired.victims.push(victim.kill());
        fired.times = self.count_deaths(Stage::Encode, before).await?;
        Ok(fired)
    }

    async fn stop(&self, stage: Stage, wakes_late: bool) -> Result<Fired> {
        let logs = self.fleet.log_sizes();
        let point = format!("{}.before_report", stage.worker().as_str());
        self.arm(stage.worker(), &point, 1);
        let victim = self.held(stage.worker(), &point).await?;
        let process = victim.stop();
        victim.points.disarm();
        let lost = self.wait_for_loss(wakes_late).await;
        victim.resume();
        lost?;
        let deadline = Instant::now() + LONGEST;
        while !self.fleet.log_since(Role::Coordinator, &logs).contains(DISMISSED) {
            ensure!(Instant::now() < deadline, "the coordinator did not dismiss what {} brought too late", victim.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Fired { victims: vec![process], times: 1, ..Fired::default() })
    }

    /// Waits until a lease is over, or until another worker has done all that was left.
    async fn wait_for_loss(&self, until_the_end: bool) -> Result<()> {
        let deadline = Instant::now() + LONGEST;
        tokio::time::sleep(LEASE).await;
        loop {
            let is_over = if until_the_end {
                self.progress.has_ended()
            } else {
                !failed_attempts(self.fleet, self.job).await?.is_empty()
            };
            if is_over {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "nobody took over what a stopped worker held");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn poison(&self, stage: Stage, document: usize) -> Result<Fired> {
        let before = self.restarts(stage.worker());
        let mut fired = self.spread_poison(stage, document);
        fired.times = self.count_deaths(stage, before).await?;
        Ok(fired)
    }

    fn spread_poison(&self, stage: Stage, document: usize) -> Fired {
        let id = self.document(document);
        self.fleet.of(stage.worker()).for_each(|member| member.points.poison(stage.as_str(), &id));
        let error = ExpectedError {
            id,
            code: "UNAVAILABLE",
            message: "its worker stopped reporting",
            attempts: POISON_ATTEMPTS,
        };
        Fired { error: Some(error), fails_encoding: stage == Stage::Encode, ..Fired::default() }
    }

    /// The id of a document of the corpus.
    fn document(&self, number: usize) -> String {
        crate::corpus::documents().swap_remove(number).id
    }

    /// After the job: its rows were tried together so often, then the poisonous one alone so often again.
    async fn count_deaths(&self, stage: Stage, restarts_before: u32) -> Result<u64> {
        while !self.progress.has_ended() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let trace = self.fleet.of(stage.worker()).flat_map(|member| member.points.trace());
        let point = format!("poison.{}", stage.as_str());
        let deaths = trace.filter(|reached| reached.point == point).count() as u32;
        let (least, most) = (POISON_ATTEMPTS, 2 * POISON_ATTEMPTS);
        ensure!((least..=most).contains(&deaths), "the poison killed {deaths} workers, not {least} to {most}");
        self.fleet.ready().await?;
        let restarts = self.restarts(stage.worker()) - restarts_before;
        ensure!(restarts == deaths, "workers were started {restarts} times again after {deaths} deaths");
        Ok(u64::from(deaths))
    }

    fn restarts(&self, role: Role) -> u32 {
        self.fleet.of(role).map(Member::restarts).sum()
    }

    /// Flips a bit when all is encoded and nothing has been read by decoders.
    async fn corrupt(&self, document: usize) -> Result<Fired> {
        self.arm(Role::Decoder, "decoder.task_received", 1);
        let id = self.document(document);
        let deadline = Instant::now() + LONGEST;
        let record = loop {
            ensure!(!self.progress.has_ended() && Instant::now() < deadline, "{id} was not encoded in time");
            let all = records(self.fleet, self.job).await?;
            let held = self.fleet.of(Role::Decoder).any(|member| member.points.is_held("decoder.task_received"));
            match all.into_iter().find(|record| record.doc_id == id) {
                Some(record) if held => break record,
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        self.is_unfinished().await?;
        let segment = record.segments.first().context("a segment")?;
        let path = BlobName::new(&segment.input_key, &segment.content_hash)?.path();
        e2llm_e2e::flip_byte(&self.fleet.stored_file(&path));
        self.fleet.of(Role::Decoder).for_each(|member| member.points.disarm());
        while !self.progress.has_ended() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let set_aside = self.fleet.store.list("quarantine").await?;
        ensure!(
            set_aside.iter().any(|object| object.contains(&path)),
            "the damaged {path} was not set aside: {set_aside:?}"
        );
        Ok(Fired { times: 1, ..Fired::default() })
    }

    async fn slow_disk(&self, millis: u64) -> Result<Fired> {
        let before = self.fleet.disk.faults();
        self.fleet.disk.slow(millis);
        let fired = self.await_faults(|| self.fleet.disk.faults() - before).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        self.fleet.disk.heal();
        fired?;
        Ok(Fired { times: self.fleet.disk.faults() - before, ..Fired::default() })
    }

    async fn full_disk(&self, point: &str, role: Role) -> Result<Fired> {
        let before = self.fleet.disk.faults();
        let logs = self.fleet.log_sizes();
        self.arm(role, point, 1);
        self.held(role, point).await?;
        self.fleet.disk.fill();
        self.fleet.of(role).for_each(|member| member.points.disarm());
        let noticed = async {
            self.await_faults(|| self.fleet.disk.faults() - before).await?;
            self.await_not_ready().await?;
            self.await_refusal(&logs).await
        };
        let noticed = noticed.await;
        self.fleet.disk.heal();
        noticed?;
        Ok(Fired { times: self.fleet.disk.faults() - before, ..Fired::default() })
    }

    /// A service that writes says that it is not ready.
    async fn await_not_ready(&self) -> Result<()> {
        let deadline = Instant::now() + NOTICED;
        let names = [(Role::Coordinator, ServiceName::Coordinator), (Role::Encoder, ServiceName::Encoder)];
        loop {
            for (role, name) in names {
                let service = format!("{}/storage", name.as_str());
                let mut client = HealthClient::new(self.fleet.endpoint(role)?.channel());
                let answer = client.check(HealthCheckRequest { service }).await;
                if answer.is_ok_and(|answer| answer.into_inner().status() == ServingStatus::NotServing) {
                    return Ok(());
                }
            }
            ensure!(Instant::now() < deadline, "no service says that it is not ready while the disk is full");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Someone was told, or says, that there is no space: what work needs a write waits or is refused.
    async fn await_refusal(&self, logs: &BTreeMap<String, u64>) -> Result<()> {
        let deadline = Instant::now() + NOTICED;
        loop {
            let log = |role| self.fleet.log_since(role, logs);
            let encoder_waits = log(Role::Encoder).contains("waiting for space");
            let coordinator_waits = log(Role::Coordinator).contains("outcome could not be written");
            let refused = self.progress.refusals().contains(&ErrorCode::ResourceExhausted);
            if encoder_waits || coordinator_waits || refused {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "nobody waits for space while the disk is full");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn misbehave(&self, mode: Misbehaviour, millis: u64) -> Result<Fired> {
        let Some(proxy) = &self.fleet.proxy else { bail!("this fault needs a store in a bucket") };
        let before = proxy.faults();
        proxy.misbehave(mode, self.plan.seed);
        let fired = self.await_faults(|| proxy.faults() - before).await;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        proxy.heal();
        fired?;
        Ok(Fired { times: proxy.faults() - before, ..Fired::default() })
    }

    async fn await_faults(&self, count: impl Fn() -> u64) -> Result<()> {
        ensure!(until(self.progress, LONGEST, || count() > 0).await, "nothing went wrong while the job ran");
        self.is_unfinished().await
    }
}
