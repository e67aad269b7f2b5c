//! `e2llm doctor`: reads every object of the store, compares the index with its log and with the objects, and on
//! request sets damaged objects aside and makes them anew.
//!
//! It works on the store itself and takes it for itself meanwhile; services need to be stopped.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use e2llm_index::{DEFAULT_SHARD, IndexService};
use e2llm_store::{BlobName, Health, ObjectKind, Store};
use futures::StreamExt;

mod reencode;
mod report;

use crate::app::App;
use crate::cli::DoctorArgs;
use crate::local::keep_shards;
use report::Report;

/// How long to wait for whoever uses the store.
const LOCK_WAIT: Duration = Duration::from_secs(5);

pub(crate) async fn run(app: &App, args: DoctorArgs) -> Result<ExitCode> {
    if app.settings.server.is_some() {
        bail!("doctor works on a store, not through services; stop them, leave out --server and give --store");
    }
    let mut report = Report::default();
    let outcome = app.interruptible(work(app, args.repair, &mut report)).await;
    // Whatever stopped it: what was found and set aside has to be known.
    report.print(app.settings.json, app.settings.quiet, args.repair)?;
    outcome??;
    Ok(if report.unrepaired() == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn work(app: &App, repair: bool, report: &mut Report) -> Result<()> {
    let damaged = examine(app, repair, report).await?;
    if repair && !damaged.is_empty() {
        let whole = reencode::documents_with(app, &damaged).await?;
        whole.iter().for_each(|blob| report.repaired(&blob.path()));
    }
    Ok(())
}

/// Checks everything; returns the blobs that documents need and that cannot be used.
async fn examine(app: &App, repair: bool, report: &mut Report) -> Result<BTreeSet<BlobName>> {
    must_exist(&app.settings.store)?;
    let store = Store::open(&app.settings.store).await?;
    // Before anything is set aside: of an index of several shards it could not tell what is needed.
    keep_shards(&store, 1).await?;
    let _lock = store.lock_exclusive(LOCK_WAIT).await?;
    let sound = check_objects(&store, repair, report).await?;
    let index = IndexService::open(store.clone(), &app.settings.index_dir(&store)?, DEFAULT_SHARD).await?;
    let damaged = check_index(&index, repair, &sound, report).await;
    index.close().await?;
    damaged
}

/// Opening a store makes one; a mistyped path must not.
pub(super) fn must_exist(store: &str) -> Result<()> {
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
            Health::Corrupt { reason } => (format!("is corrupt: {reason}"), finding.kind != ObjectKind::Identity),
            Health::Unreadable { reason } => (format!("cannot be read: {reason}"), false),
        };
        let moved = if repair && can_move { store.quarantine(&finding.object).await? } else { None };
        let message = match &moved {
            Some(place) => format!("{reason}; set aside as {place}"),
            None => reason,
        };
        report.problem(&finding.object, &message, moved.is_some());
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
        report.problem(&finding.name, &finding.message, repair && !hopeless.contains(finding));
    }
    let references = index.referenced().await?;
    for text in references.texts.iter().map(|hash| text_path(hash.as_str())).filter(|path| !sound.contains(path)) {
        let message = "is the text of documents and cannot be used; encode them again from their source";
        report.problem(&text, message, false);
    }
    let damaged: BTreeSet<BlobName> =
        references.blobs.into_iter().filter(|blob| !sound.contains(&blob.path())).collect();
    for blob in &damaged {
        let message = "is the soft prompt of documents and cannot be used; --repair encodes them again";
        report.problem(&blob.path(), message, false);
    }
    Ok(damaged)
}

/// The layout of texts, as the store documents it.
fn text_path(hash: &str) -> String {
    format!("texts/{}/{hash}.zst", hash.get(..2).unwrap_or_default())
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
        let object = text_path(&text.hash.to_string());
        std::fs::write(dir.path().join(&object), b"damage").unwrap();
        let mut report = Report::default();
        let sound = check_objects(&store, false, &mut report).await.unwrap();
        assert!(!sound.contains(&object));
        assert_eq!(report.unrepaired(), 1);
        let mut report = Report::default();
        check_objects(&store, true, &mut report).await.unwrap();
        assert_eq!(report.unrepaired(), 0);
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
        assert!(sound.contains(&text_path(&text.hash.to_string())), "{sound:?}");
        assert_eq!(report.unrepaired(), 0);
    }
}
