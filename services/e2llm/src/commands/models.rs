//! `e2llm models`: bundles, models and sample texts, and whether they are on this machine.

mod stored;

use std::process::ExitCode;

use anyhow::{Context, Result};
use e2llm_weights::{Entry, EntryKind, Fetcher, Recheck, State};
use serde_json::{Value, json};

use crate::app::App;
use crate::cli::ModelsCommand;
use crate::output;
use crate::render::bytes;
use crate::settings::SOFT_PROMPTS;

pub(crate) async fn run(app: &App, command: ModelsCommand) -> Result<ExitCode> {
    let fetcher = app.settings.fetcher()?;
    let (json, bundle) = (app.settings.json, app.settings.bundle.clone());
    match &command {
        ModelsCommand::Push { name } => {
            stored::push(&app.settings, fetcher, name.clone().or(bundle)).await?;
            return Ok(ExitCode::SUCCESS);
        }
        ModelsCommand::Pull { name, from_store: true, .. } => {
            stored::pull(&app.settings, &fetcher, name.as_deref().or(bundle.as_deref())).await?;
        }
        _ => {}
    }
    // Reading, hashing and fetching block.
    tokio::task::spawn_blocking(move || match command {
        ModelsCommand::List => list(&fetcher, json),
        ModelsCommand::Push { .. } => Ok(()),
        ModelsCommand::Pull { name, verify, .. } => pull(&fetcher, name.or(bundle).as_deref(), verify, json),
        ModelsCommand::Show { name } => show(&fetcher, name.or(bundle).as_deref(), json),
    })
    .await??;
    Ok(ExitCode::SUCCESS)
}

fn list(fetcher: &Fetcher, json: bool) -> Result<()> {
    let entries = fetcher.list()?;
    if json {
        return entries.iter().try_for_each(|entry| output::print_line(&serde_json::to_string(entry)?));
    }
    let width = entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0);
    entries.iter().try_for_each(|entry| output::print_line(&entry_line(entry, width)))
}

fn entry_line(entry: &Entry, width: usize) -> String {
    let what = if entry.parts.is_empty() { entry.title.clone() } else { entry.parts.join(" + ") };
    let default = if entry.default { " (default)" } else { "" };
    format!(
        "{:width$}  {:<7}  {:<7}  {:>10}  {what}{default}",
        entry.name,
        kind_name(entry.kind),
        state_name(entry.state),
        bytes(entry.bytes)
    )
}

fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Bundle => "bundle",
        EntryKind::Encoder => "encoder",
        EntryKind::Decoder => "decoder",
        EntryKind::Sample => "sample",
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::Present => "present",
        State::Absent => "absent",
        State::Damaged => "damaged",
    }
}

fn pull(fetcher: &Fetcher, name: Option<&str>, verify: bool, json: bool) -> Result<()> {
    // Where a decoder keeps soft prompts: a cache that is mounted read-only must have the place to mount that at.
    // One that is read-only now has it, or is no decoder's.
    let _ = std::fs::create_dir_all(fetcher.cache().join(SOFT_PROMPTS));
    let recheck = if verify { Recheck::All } else { Recheck::Changed };
    for pulled in fetcher.pull(name, recheck)? {
        let done = if pulled.fetched { "fetched" } else { "already there" };
        output::print_line(&if json {
            serde_json::to_string(&pulled)?
        } else {
            format!("{}: {done}, {} in {}", pulled.name, bytes(pulled.bytes), pulled.dir.display())
        })?;
    }
    Ok(())
}

/// A bundle with its parts, or a part alone.
fn show(fetcher: &Fetcher, name: Option<&str>, json: bool) -> Result<()> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => fetcher.catalogue().bundle(None)?.name.clone(),
    };
    let entries = fetcher.list()?;
    let known = || entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
    let wanted = entries.iter().find(|entry| entry.name == name);
    let wanted = wanted.with_context(|| format!("no bundle, model or sample {name:?}; there are {}", known()))?;
    let parts: Vec<&Entry> = entries.iter().filter(|entry| wanted.parts.contains(&entry.name)).collect();
    if json {
        let value: Value = json!({"entry": wanted, "parts": parts});
        return output::print_line(&value.to_string());
    }
    std::iter::once(wanted).chain(parts).try_for_each(|entry| output::print_line(&entry_block(entry)))
}

fn entry_block(entry: &Entry) -> String {
    let dir = entry.dir.as_ref().map(|dir| dir.display().to_string());
    let package = entry.package.as_ref().map(|name| format!("{name} {}", entry.version.as_deref().unwrap_or("")));
    let fields = [
        ("kind", Some(kind_name(entry.kind).to_owned())),
        ("title", Some(entry.title.clone()).filter(|title| !title.is_empty())),
        ("state", Some(state_name(entry.state).to_owned())),
        ("size", Some(bytes(entry.bytes))),
        ("licence", Some(entry.licence.clone())),
        ("package", package),
        ("files", dir),
    ];
    let lines = fields.into_iter().filter_map(|(name, value)| value.map(|value| format!("\n  {name:<8} {value}")));
    format!("{}{}", entry.name, lines.collect::<String>())
}
