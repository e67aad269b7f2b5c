//! `e2llm doctor`: reads every object of the store, compares the index with its log and with the objects, and on
//! request sets damaged objects aside and makes them anew.
//!
//! It works on the store itself and takes it for itself meanwhile; services need to be stopped.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2llm_index::{DEFAULT_SHARD, IndexService};
use e2llm_store::{BlobName, Health, ObjectKind, Store};
use futures::StreamExt;
use serde_json::json;

mod reencode;

use crate::app::App;
use crate::cli::DoctorArgs;
use crate::failure::warn_line;
use crate::output::print_line;
use crate::render::count;

/// How long to wait for whoever uses the store.
const LOCK_WAIT: Duration = Duration::from_secs(5);

pub(crate) async fn run(app: &App, args: DoctorArgs) -> Result<ExitCode> {
    if app.settings.server.is_some() {
        bail!("doctor works on a store, not through services; stop them, leave out --server and give --store");
    }
    let mut report = Report { json: app.settings.json, ..Default::default() };
    let damaged = examine(app, args.repair, &mut report).await?;
    if args.repair && !damaged.is_empty() {
        let anew = reencode::documents_with(app, &damaged).await?;
        report.repaired += anew;
    }
    report.summarize(app.settings.quiet, args.repair);
    Ok(if report.unrepaired() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks everything; returns the blobs that documents need and that cannot be used.
async fn examine(app: &App, repair: bool, report: &mut Report) -> Result<BTreeSet<BlobName>> {
    must_exist(&app.settings.store)?;
    let store = Store::open(&app.settings.store).await?;
    let _lock = store.lock_exclusive(LOCK_WAIT).await?;
    let sound = check_objects(&store, repair, report).await?;
    let index = IndexService::open(store.clone(), &app.settings.index_dir(&store)?, DEFAULT_SHARD).await?;
    let damaged = check_index(&index, repair, &sound, report).await;
    index.close().await?;
    damaged
}

/// Opening a store makes one; a mistyped path must not.
fn must_exist(store: &str) -> Result<()> {
    let path = store.strip_prefix("file://").unwrap_or(store);
    if !path.contains("://") && !Path::new(path).join("store.json").exists() {
        bail!("no store at {path}; check --store, `e2llm encode` makes one");
    }
    Ok(())
}

/// Paths of the objects that can be used.
async fn check_objects(store: &Store, repair: bool, report: &mut Report) -> Result<BTreeSet<String>> {
    let mut sound = BTreeSet::new();
    let mut findings = store.verify();
    while let Some(finding) = findings.next().await {
        let finding = finding?;
        report.checked += 1;
        let (reason, can_move) = match &finding.health {
            Health::Ok => {
                sound.insert(finding.object);
                continue;
            }
            Health::Corrupt { reason } => (reason, finding.kind != ObjectKind::Identity),
            Health::Unreadable { reason } => (reason, false),
        };
        let mut note = "";
        if repair && can_move {
            store.quarantine(&finding.object).await?;
            note = " (set aside in quarantine/)";
        }
        report.problem(&finding.object, &format!("{} {reason}{note}", finding.object), repair && can_move)?;
    }
    Ok(sound)
}

async fn check_index(
    index: &IndexService,
    repair: bool,
    sound: &BTreeSet<String>,
    report: &mut Report,
) -> Result<BTreeSet<BlobName>> {
    let findings = index.verify().await?;
    let hopeless = if repair { index.repair(&findings).await? } else { findings.clone() };
    for finding in &findings {
        report.problem(&finding.name, &finding.message, !hopeless.contains(finding))?;
    }
    let references = index.referenced().await?;
    let lost_texts = references.texts.iter().filter(|hash| !has_text(sound, hash.as_str()));
    for hash in lost_texts {
        let message = format!("text {hash} is missing or damaged; encode its documents again from their source");
        report.problem(hash.as_str(), &message, false)?;
    }
    let damaged: BTreeSet<BlobName> =
        references.blobs.into_iter().filter(|blob| !sound.contains(&blob.path())).collect();
    for blob in &damaged {
        let message = format!("{} is needed but missing or damaged; --repair encodes its documents again", blob.path());
        report.problem(&blob.path(), &message, false)?;
    }
    Ok(damaged)
}

fn has_text(sound: &BTreeSet<String>, hash: &str) -> bool {
    // The layout of texts, as the store documents it.
    hash.get(..2).is_some_and(|start| sound.contains(&format!("texts/{start}/{hash}.zst")))
}

/// What was found.
#[derive(Debug, Default)]
struct Report {
    json: bool,
    checked: u64,
    problems: u64,
    repaired: u64,
}

impl Report {
    fn problem(&mut self, name: &str, message: &str, repaired: bool) -> Result<()> {
        self.problems += 1;
        self.repaired += u64::from(repaired);
        print_line(&if self.json {
            json!({"name": name, "problem": message, "repaired": repaired}).to_string()
        } else {
            message.to_owned()
        })
        .context("cannot report a problem")
    }

    fn unrepaired(&self) -> u64 {
        self.problems.saturating_sub(self.repaired)
    }

    fn summarize(&self, quiet: bool, repair: bool) {
        if quiet && self.unrepaired() == 0 {
            return;
        }
        let hint = if self.unrepaired() > 0 && !repair { "; --repair does what can be done" } else { "" };
        let (checked, problems, repaired) = (count(self.checked), count(self.problems), count(self.repaired));
        warn_line(&format!("{checked} objects checked, {problems} problems, {repaired} repaired{hint}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_store_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("typo");
        let error = must_exist(&path.display().to_string()).unwrap_err().to_string();
        assert!(error.contains("typo") && error.contains("--store"), "{error}");
        assert!(!path.exists());
        assert!(must_exist("s3://bucket/store").is_ok());
    }

    #[tokio::test]
    async fn a_damaged_text_is_named_and_set_aside_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().display().to_string()).await.unwrap();
        let text = store.put_text("It was a bright cold day in April.").await.unwrap();
        let object = format!("texts/{}/{}.zst", &text.hash.to_string()[..2], text.hash);
        std::fs::write(dir.path().join(&object), b"damage").unwrap();
        let mut report = Report::default();
        let sound = check_objects(&store, false, &mut report).await.unwrap();
        assert!(!sound.contains(&object));
        assert_eq!((report.problems, report.unrepaired()), (1, 1));
        let mut report = Report::default();
        check_objects(&store, true, &mut report).await.unwrap();
        assert_eq!((report.problems, report.unrepaired()), (1, 0));
        assert!(!dir.path().join(&object).exists());
        assert!(dir.path().join("quarantine").exists());
    }

    #[tokio::test]
    async fn a_sound_store_has_no_problems() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().display().to_string()).await.unwrap();
        let text = store.put_text("text").await.unwrap();
        let mut report = Report::default();
        let sound = check_objects(&store, false, &mut report).await.unwrap();
        assert!(has_text(&sound, &text.hash.to_string()), "{sound:?}");
        assert_eq!(report.problems, 0);
    }
}
