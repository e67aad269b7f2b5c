//! `e2llm sync`: makes the collection equal to a corpus. New and changed documents are encoded as one job; then those
//! that the corpus does not hold any more are deleted from the index.
//!
//! Nothing is deleted on a guess. A document is gone when it was stored before the command began, and the inputs were
//! read to their ends, and none of their rows, not even one that failed, has its id.

mod changes;
mod gone;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2llm_api::v1::{JobKind, JobSpec};
use tokio::sync::oneshot;

use super::bulk::common_spec;
use super::dry_run::{Prepared, Verdict};
use super::source;
use crate::app::App;
use crate::cli::SyncArgs;
use crate::failure::{Interrupted, SOME_FAILED, warn_line};
use crate::input::{self, Report};
use crate::job::{self, Chosen, Rows};
use crate::local::{Needs, Services};
use changes::{Change, Changes};
use gone::{Gone, Stored};

pub(crate) async fn run(app: &App, args: SyncArgs) -> Result<ExitCode> {
    if args.dry_run {
        return plan(app, args).await;
    }
    let inputs = source::sources(app, args.inputs.clone()).await?;
    let (parts, report) = input::read_with_report(inputs, args.columns.clone());
    let rows = app.interruptible(Rows::look_ahead(parts)).await?;
    let services = app.services(Needs::Models).await?;
    let result = sync(app, &args, &services, rows, report).await;
    services.stop().await;
    result
}

async fn sync(
    app: &App,
    args: &SyncArgs,
    services: &Services,
    rows: Rows,
    report: oneshot::Receiver<Report>,
) -> Result<ExitCode> {
    let collection = app.settings.collection.as_str();
    let stored = app.interruptible(Stored::list(services, collection)).await??;
    let mut changes = Changes::new(app, stored);
    if !rows.are_none() {
        let spec = JobSpec { kind: JobKind::Encode.into(), ..Default::default() };
        let spec = args.options.apply_to(common_spec(app, services, spec).await?)?;
        let encoded = job::run(services, spec, rows, &Chosen::fresh(), &mut changes, &app.shutdown).await;
        encoded.map_err(|error| if error.is::<Interrupted>() { interrupted().into() } else { error })?;
    }
    let report = report.await.context("the inputs were not read to their end; nothing was deleted, run it again")?;
    let deletion = app.interruptible(delete(args, services, collection, &report, &mut changes)).await;
    let kept = deletion.map_err(|_| interrupted())??;
    changes.finish(args.dry_run)?;
    finish(kept, &changes)
}

fn interrupted() -> Interrupted {
    let hint = "run the same command again to go on; what is encoded is not encoded again".to_owned();
    Interrupted { hint: Some(hint) }
}

/// Deletes what is gone. If that cannot be known, says why.
async fn delete(
    args: &SyncArgs,
    services: &Services,
    collection: &str,
    report: &Report,
    changes: &mut Changes<'_>,
) -> Result<Option<String>> {
    if let Some(unread) = &report.unread {
        return Ok(Some(unread.clone()));
    }
    let mut gone = Gone::new(services, collection, &args.prefix);
    while let Some(ids) = gone.next(report, changes.stored()).await? {
        if !ids.is_empty() {
            must_hold_documents(args, report, collection)?;
        }
        for id in gone.delete(ids).await? {
            changes.add(&id, &Change::Deleted)?;
        }
    }
    Ok(None)
}

/// An empty corpus is more often a mistake than a wish.
fn must_hold_documents(args: &SyncArgs, report: &Report, collection: &str) -> Result<()> {
    if report.is_empty() && !args.allow_empty {
        bail!(
            "the inputs hold no documents, so all of collection {collection} with prefix {:?} would be deleted; \
             check the inputs, or give --allow-empty if that is meant",
            args.prefix
        );
    }
    Ok(())
}

fn finish(kept: Option<String>, changes: &Changes<'_>) -> Result<ExitCode> {
    if let Some(unread) = &kept {
        warn_line(&format!("nothing was deleted, for it is not known which documents there are: {unread}"));
    }
    Ok(match (kept, changes.failed()) {
        (Some(_), _) => ExitCode::FAILURE,
        (None, 0) => ExitCode::SUCCESS,
        (None, _) => SOME_FAILED.into(),
    })
}

/// What a run would do.
async fn plan(app: &App, args: SyncArgs) -> Result<ExitCode> {
    let inputs = source::sources(app, args.inputs.clone()).await?;
    let prepared = Prepared::start(app).await?;
    let result = app.interruptible(show_plan(app, &args, &prepared, inputs)).await;
    prepared.stop().await;
    result?
}

async fn show_plan(app: &App, args: &SyncArgs, prepared: &Prepared, inputs: Vec<input::Input>) -> Result<ExitCode> {
    let collection = app.settings.collection.as_str();
    let (parts, report) = input::read_with_report(inputs, args.columns.clone());
    let stored = match prepared.services() {
        Some(services) => Stored::list(services, collection).await?,
        None => Stored::default(),
    };
    let mut changes = Changes::new(app, stored);
    let counter = prepared.counter(app)?;
    let counted = counter.count(parts, |id, verdict| {
        changes.add(
            id,
            &match verdict {
                Verdict::New => Change::New,
                Verdict::Changed | Verdict::Annotated => Change::Changed,
                Verdict::Unchanged | Verdict::Stored => Change::Unchanged,
                Verdict::Failed(error) => Change::Failed(error.clone()),
            },
        )
    });
    counted.await?;
    let report = report.await.context("the inputs were not read to their end; run it again")?;
    if report.unread.is_none()
        && let Some(services) = prepared.services()
    {
        let mut gone = Gone::new(services, collection, &args.prefix);
        while let Some(ids) = gone.next(&report, changes.stored()).await? {
            if !ids.is_empty() {
                must_hold_documents(args, &report, collection)?;
            }
            ids.iter().try_for_each(|id| changes.add(id, &Change::Deleted))?;
        }
    }
    changes.finish(args.dry_run)?;
    finish(report.unread, &changes)
}
