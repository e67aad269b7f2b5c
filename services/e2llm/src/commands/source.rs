//! What the rows of a bulk command are read from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use glob::MatchOptions;
use tokio::sync::mpsc;

use super::stored;
use crate::app::App;
use crate::cli::StoredArgs;
use crate::input::{self, Columns, Input, Part};
use crate::local::Services;
use crate::objects::ObjectUrl;

/// Where the rows of a job come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Documents.
    Documents { inputs: Vec<Input>, columns: Columns },
    /// A list of questions.
    Questions(Input),
    /// A list of ids of documents that are already encoded.
    Ids(Input),
    /// Documents of the index whose metadata meets all conditions.
    Where(Vec<String>),
}

impl Source {
    /// Documents of what was typed; fetches sample texts on first use.
    pub(super) async fn documents(app: &App, typed: Vec<String>, columns: Columns) -> Result<Self> {
        Ok(Self::Documents { inputs: sources(app, typed).await?, columns })
    }

    /// Questions of what was typed.
    pub(super) fn questions(typed: &str) -> Result<Self> {
        Ok(Self::Questions(list_source(typed)?))
    }

    /// Documents that are already encoded.
    pub(super) fn stored(args: StoredArgs) -> Result<Self> {
        Ok(match args.ids_from {
            Some(list) => Self::Ids(list_source(&list)?),
            None => Self::Where(args.conditions),
        })
    }

    /// Begins to read what is not in the index; `None` for what is.
    pub(super) fn read(&self) -> Option<mpsc::Receiver<Part>> {
        Some(match self {
            Self::Documents { inputs, columns } => input::read_documents(inputs.clone(), columns.clone()),
            Self::Questions(list) => input::read_questions(list.clone()),
            Self::Ids(list) => input::read_ids(list.clone()),
            Self::Where(_) => return None,
        })
    }

    /// Begins to read, wherever it is.
    pub(super) fn read_with(&self, app: &App, services: &Services) -> mpsc::Receiver<Part> {
        match (self.read(), self) {
            (None, Self::Where(conditions)) => {
                stored::documents(services, app.settings.collection.as_str(), conditions.clone())
            }
            (parts, _) => parts.unwrap_or_else(|| mpsc::channel(1).1),
        }
    }

    /// Whether it can be read a second time: standard input and pipes cannot.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Documents { inputs, .. } => inputs.iter().all(is_lasting),
            Self::Questions(list) | Self::Ids(list) => is_lasting(list),
            Self::Where(_) => true,
        }
    }
}

fn is_lasting(input: &Input) -> bool {
    match input {
        Input::Stdin => false,
        // What is not there does not change its mind.
        Input::Path(path) | Input::Match { path, .. } => {
            path.metadata().map_or(true, |metadata| metadata.is_file() || metadata.is_dir())
        }
        Input::Object(_) | Input::Ids(_) => true,
    }
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

/// The one source of a list: a file, an object, or `-`.
fn list_source(input: &str) -> Result<Input> {
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
