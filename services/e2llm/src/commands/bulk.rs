//! What `encode`, `summarize` and `ask --input` share: read rows, run a job, show it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use e2llm_api::v1::{JobKind, JobSpec, RowResult};
use glob::MatchOptions;
use tokio::sync::mpsc;

use super::stored;
use crate::app::App;
use crate::cli::{OutputArgs, StoredArgs};
use crate::failure::Interrupted;
use crate::input::{self, Input, Part};
use crate::job::{self, Rows};
use crate::local::{Needs, Services};
use crate::objects::ObjectUrl;
use crate::output::Output;
use crate::view::View;

/// Where the rows of a job come from.
pub(super) enum Source {
    /// Read on this side.
    Parts(mpsc::Receiver<Part>),
    /// Documents of the index whose metadata meets all conditions.
    Where(Vec<String>),
}

/// Runs a job of `kind` over the rows; the fields of `spec` that all jobs share are filled in here.
pub(super) async fn run(
    app: &App,
    kind: JobKind,
    spec: JobSpec,
    source: Source,
    output: &OutputArgs,
) -> Result<ExitCode> {
    let output = Output::open(output, app.settings.json)?;
    let (services, rows) = match source {
        Source::Parts(parts) => {
            let rows = app.interruptible(Rows::look_ahead(parts)).await?;
            if let Some(failures) = rows.only_failures() {
                if failures.is_empty() {
                    bail!("the input holds no documents; give a directory with .txt or .md files, a text, or a .jsonl");
                }
                return only_failures(app, kind, &failures, output);
            }
            (app.services(Needs::Models).await?, rows)
        }
        Source::Where(conditions) => {
            let services = app.services(Needs::Models).await?;
            let listed = stored::documents(&services, app.settings.collection.as_str(), conditions);
            match app.interruptible(Rows::look_ahead(listed)).await {
                Ok(rows) if rows.only_failures().is_none_or(|failures| !failures.is_empty()) => (services, rows),
                nothing => {
                    services.stop().await;
                    nothing?;
                    bail!("no stored document meets the conditions; `e2llm docs list` shows what there is");
                }
            }
        }
    };
    submit(app, kind, spec, services, rows, output).await
}

fn only_failures(app: &App, kind: JobKind, failures: &[RowResult], output: Output) -> Result<ExitCode> {
    let mut view = View::new(kind, output, app.settings.quiet);
    failures.iter().try_for_each(|row| view.row(row))?;
    view.finish(app.settings.quiet)
}

async fn submit(
    app: &App,
    kind: JobKind,
    spec: JobSpec,
    services: Services,
    rows: Rows,
    output: Output,
) -> Result<ExitCode> {
    let mut view = View::new(kind, output, app.settings.quiet);
    let job_id = job::new_id();
    let collection = app.settings.collection.to_string();
    let spec = JobSpec { kind: kind.into(), collection, job_id: job_id.clone(), ..spec };
    let result = job::run(&services, spec, rows, &mut view, &app.shutdown).await;
    services.stop().await;
    match result {
        Ok(()) => view.finish(app.settings.quiet),
        Err(error) if error.is::<Interrupted>() => Err(how_to_go_on(kind, &job_id, view.tally().rows).into()),
        Err(error) => Err(error),
    }
}

fn how_to_go_on(kind: JobKind, job_id: &str, rows: u64) -> Interrupted {
    let again = "run the same command again to go on";
    let hint = match kind {
        JobKind::Ask => format!("{again}; the {rows} answers so far: e2llm jobs result {job_id}"),
        JobKind::Summarize => format!(
            "{again}, what is encoded is not encoded again; the {rows} summaries so far: \
             e2llm jobs result {job_id}"
        ),
        JobKind::Encode | JobKind::Unspecified => format!("{again}, what is encoded is not encoded again"),
    };
    Interrupted { hint: Some(hint) }
}

/// The sources behind what was typed; fetches sample texts on first use.
pub(super) async fn sources(app: &App, inputs: Vec<String>) -> Result<Vec<Input>> {
    let mut sources = Vec::new();
    for input in inputs {
        sources.push(match input.strip_prefix("sample:") {
            Some(name) => sample(app, name.to_owned()).await?,
            None if input == "-" && sources.contains(&Input::Stdin) => bail!("`-` stands twice; give it once"),
            None if input == "-" => Input::Stdin,
            None => match ObjectUrl::parse(&input)? {
                Some(ObjectUrl::Remote(object)) => Input::Object(object),
                Some(ObjectUrl::Local(path)) => Input::Path(path),
                None if is_pattern(&input) => {
                    sources.extend(matching(&input)?);
                    continue;
                }
                None => Input::Path(input.into()),
            },
        });
    }
    Ok(sources)
}

/// Documents that are already encoded.
pub(super) fn stored(args: StoredArgs) -> Result<Source> {
    Ok(match args.ids_from {
        Some(list) => Source::Parts(input::read_ids(list_source(&list)?)),
        None => Source::Where(args.conditions),
    })
}

/// The one source of a list: a file, an object, or `-`.
pub(super) fn list_source(input: &str) -> Result<Input> {
    Ok(match ObjectUrl::parse(input)? {
        Some(ObjectUrl::Remote(object)) => Input::Object(object),
        Some(ObjectUrl::Local(path)) => Input::Path(path),
        None if input == "-" => Input::Stdin,
        None => Input::Path(input.into()),
    })
}

/// Whether it has to be expanded here; shells do it themselves unless it is quoted.
fn is_pattern(input: &str) -> bool {
    has_wildcard(input) && !Path::new(input).exists()
}

/// The files that a pattern such as `corpus/**/*.md` matches, in the order of their paths. Like the shell, it passes over
/// hidden names that it does not name.
fn matching(pattern: &str) -> Result<Vec<Input>> {
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let paths = glob::glob_with(pattern, options)
        .with_context(|| format!("{pattern} is not a pattern; write names with * ? [ as [*] [?] [[]"))?;
    let root: PathBuf =
        Path::new(pattern).components().take_while(|part| !has_wildcard(&part.as_os_str().to_string_lossy())).collect();
    let mut files = Vec::new();
    for path in paths {
        let path = path.with_context(|| format!("cannot follow {pattern}"))?;
        // What is not a directory becomes a row, readable or not; `**` goes through directories by itself.
        if !path.is_dir() {
            files.push(Input::Match { root: root.clone(), path });
        }
    }
    if files.is_empty() {
        bail!("no file matches {pattern}; check the pattern, ** stands for any directories");
    }
    Ok(files)
}

fn has_wildcard(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

async fn sample(app: &App, name: String) -> Result<Input> {
    let fetcher = app.settings.fetcher()?;
    let fetch = tokio::task::spawn_blocking(move || fetcher.fetch_sample(&name));
    Ok(Input::Path(app.interruptible(fetch).await???.dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_pattern_is_expanded_and_one_that_matches_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/x.md", "a/b/x.md", "a/z.txt", "a/.git/h.md"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "text").unwrap();
        }
        let pattern = |pattern: &str| dir.path().join(pattern).display().to_string();
        let expected = ["a/b/x.md", "a/x.md"].map(|name| {
            let (root, path) = (dir.path().join("a"), dir.path().join(name));
            Input::Match { root, path }
        });
        assert_eq!(matching(&pattern("a/**/*.md")).unwrap(), expected, "same names, ids from below a/, none hidden");
        let error = matching(&pattern("*.pdf")).unwrap_err().to_string();
        assert!(error.contains("*.pdf") && error.contains("no file matches"), "{error}");
        assert!(matching("a[").unwrap_err().to_string().contains("a["));
        let exists = pattern("c[1].md");
        std::fs::write(&exists, "text").unwrap();
        assert!(!is_pattern(&exists), "a file's own name is not a pattern");
    }
}
