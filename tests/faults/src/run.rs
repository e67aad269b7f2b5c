//! One run: a job, a fault, and what became of it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use e2llm_runtime::Endpoint;
use serde_json::{Value, json};

use crate::corpus;
use crate::expect::{forget, violations};
use crate::fleet::Fleet;
use crate::inject::{Injection, POISON_ATTEMPTS};
use crate::job::{Job, Outcome, Progress};
use crate::plan::{Plan, Role};

/// What became of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// What was to happen.
    pub plan: Plan,
    /// How often the fault struck while work was unfinished; `None` if it did not.
    pub fired: Option<u64>,
    /// How long the job took, with its fault.
    pub seconds: f64,
    /// Attempts that failed or were lost.
    pub retries: u64,
    /// What does not hold. Empty: all is well.
    pub violations: Vec<String>,
    /// Where logs and traces are kept, if something does not hold.
    pub logs: Option<PathBuf>,
}

impl Report {
    /// Whether the fault fired and everything held.
    pub fn is_sound(&self) -> bool {
        self.violations.is_empty() && self.fired.is_some()
    }

    /// As one line for people.
    pub fn line(&self) -> String {
        let Self { plan, seconds, retries, .. } = self;
        let fired = self.fired.map_or_else(|| "did not fire".to_owned(), |times| format!("fired {times}x"));
        let verdict = if self.is_sound() { "ok".to_owned() } else { format!("FAILED: {}", self.violations.join("; ")) };
        format!(
            "seed {:<4} {:<70} {fired:<12} {seconds:>5.1} s  retries {retries:<2} {verdict}",
            plan.seed,
            plan.to_string()
        )
    }

    /// As one object for programs.
    pub fn json(&self) -> Value {
        json!({
            "seed": self.plan.seed,
            "fault": self.plan.name(),
            "plan": self.plan.to_string(),
            "fired": self.fired,
            "seconds": self.seconds,
            "retries": self.retries,
            "ok": self.is_sound(),
            "violations": self.violations,
            "logs": self.logs,
        })
    }
}

/// Which runs' logs are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Those of runs that fail.
    Failures,
    /// All.
    All,
}

/// Runs a plan on a fleet. Logs and traces are kept in `logs`, each run's by itself.
pub async fn run(fleet: &Fleet, plan: &Plan, logs: &Path, keep: Keep) -> Report {
    let began = Instant::now();
    let mut report =
        Report { plan: plan.clone(), fired: None, seconds: 0.0, retries: 0, violations: Vec::new(), logs: None };
    let sizes = fleet.log_sizes();
    if let Err(error) = attempt(fleet, &mut report).await {
        report.violations.push(format!("{error:#}"));
    }
    if report.seconds == 0.0 {
        report.seconds = began.elapsed().as_secs_f64();
    }
    if !report.is_sound() || keep == Keep::All {
        let target = logs.join(format!("seed-{}", plan.seed));
        match fleet.keep_logs(&sizes, &target) {
            Ok(()) => report.logs = Some(target),
            Err(error) => report.violations.push(format!("logs cannot be kept: {error:#}")),
        }
    }
    report
}

async fn attempt(fleet: &Fleet, report: &mut Report) -> Result<()> {
    fleet.clean().await?;
    let plan = report.plan.clone();
    let job = job_of(&plan);
    let coordinator = fleet.endpoint(Role::Coordinator)?;
    let began = Instant::now();
    let progress = Progress::default();
    let injection = Injection { fleet, plan: &plan, job: &job, progress: &progress };
    // The fault is armed before the job is submitted: futures that are joined are polled in this order.
    let (fired, ended) = tokio::join!(injection.run(), timed(&job, &coordinator, &progress, began));
    let (outcome, seconds) = ended;
    report.seconds = seconds;
    let outcome = outcome?;
    report.retries = outcome.status.retries;
    let fired = fired?;
    report.fired = Some(fired.times);
    fleet.disk.heal();
    fleet.ready().await?;
    report.violations = violations(fleet, &plan, &job, &outcome, &fired).await?;
    forget(fleet, &job).await
}

async fn timed(job: &Job, coordinator: &Endpoint, progress: &Progress, began: Instant) -> (Result<Outcome>, f64) {
    let outcome = job.run(coordinator, progress).await;
    (outcome, began.elapsed().as_secs_f64())
}

fn job_of(plan: &Plan) -> Job {
    let mut documents: Vec<_> = corpus::documents().into_iter().map(Some).collect();
    Job {
        id: format!("seed-{}", plan.seed),
        kind: plan.kind,
        documents: plan.order.iter().filter_map(|number| documents[*number].take()).collect(),
        max_attempts: if plan.fault.poisons() { POISON_ATTEMPTS } else { 0 },
    }
}
