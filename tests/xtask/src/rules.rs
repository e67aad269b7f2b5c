//! House rules that no linter knows.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::metadata::{self, Package};
use crate::proto;
use crate::run::repository_files;

const MAX_LINES: usize = 500;
const SOURCES: [&str; 4] = [".rs", ".py", ".proto", ".sh"];
/// In two parts, so that this file keeps its own rule.
const IGNORED_TEST: &str = concat!("#[", "ignore");

/// Fails with one line per breach.
pub(crate) fn check() -> Result<()> {
    let files = repository_files()?;
    let mut breaches = Vec::new();
    let sources = files.iter().filter(|path| SOURCES.iter().any(|ending| path.ends_with(ending)));
    for path in sources {
        let text = fs::read_to_string(path).with_context(|| path.clone())?;
        breaches.extend(source_breaches(path, &text));
    }
    let members = metadata::members()?;
    for member in &members {
        breaches.extend(direction_breaches(member, &members));
        let manifest = format!("{}/Cargo.toml", member.directory);
        let text = fs::read_to_string(&manifest).with_context(|| manifest.clone())?;
        breaches.extend(manifest_breaches(&manifest, &text));
    }
    if breaches.is_empty() {
        eprintln!("{} files, {} crates: every house rule is kept", files.len(), members.len());
        return Ok(());
    }
    bail!("house rules:\n{}", breaches.join("\n"))
}

fn source_breaches(path: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let lines = text.lines().count();
    if lines > MAX_LINES {
        breaches.push(format!("{path}: {lines} lines; split it, {MAX_LINES} is the most"));
    }
    if path.ends_with(".rs") {
        let ignored = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with(IGNORED_TEST));
        let remedy =
            "a test that never runs; fix it, delete it, or let a child's entry point return without its variable";
        breaches.extend(ignored.map(|(n, _)| format!("{path}:{}: {remedy}", n + 1)));
    }
    if path.ends_with(".proto") {
        breaches.extend(proto::breaches(path, text));
    }
    breaches
}

fn manifest_breaches(path: &str, text: &str) -> Option<String> {
    let manifest = toml::from_str::<toml::Table>(text).ok()?;
    let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
    let shared = lints.and_then(toml::Value::as_bool) == Some(true);
    (!shared).then(|| format!("{path}: add `[lints] workspace = true`"))
}

/// Where a crate stands: dependencies point from a higher layer to a lower one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Api,
    Library,
    Service,
    Binary,
    Test,
}

impl Layer {
    fn of(directory: &str) -> Self {
        match directory {
            "shared/api" => Self::Api,
            "services/e2llm" => Self::Binary,
            _ if directory.starts_with("shared/") => Self::Library,
            _ if directory.starts_with("services/") => Self::Service,
            _ => Self::Test,
        }
    }
}

/// Nothing depends upwards, and services know each other only through the api.
fn direction_breaches(member: &Package, members: &[Package]) -> Vec<String> {
    let layer = Layer::of(&member.directory);
    let internal = members.iter().filter(|other| member.dependencies.contains(&other.name));
    let wrong = internal.filter(|other| {
        let below = Layer::of(&other.directory);
        below > layer || (below == layer && layer == Layer::Service)
    });
    let reason = "dependencies point e2llm -> services -> shared -> shared/api";
    wrong.map(|other| format!("{} depends on {}: {reason}", member.directory, other.directory)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(directory: &str, dependencies: &[&str]) -> Package {
        Package {
            name: directory.to_owned(),
            version: String::new(),
            licence: None,
            source: None,
            directory: directory.to_owned(),
            dependencies: dependencies.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn directions(directory: &str, dependency: &str) -> usize {
        let from = member(directory, &[dependency]);
        direction_breaches(&from, &[member(dependency, &[])]).len()
    }

    #[test]
    fn a_file_may_have_500_lines_and_no_more() {
        assert!(source_breaches("a.rs", &"line\n".repeat(500)).is_empty());
        assert_eq!(source_breaches("a.py", &"line\n".repeat(501)).len(), 1);
    }

    #[test]
    fn an_ignored_test_is_found_with_its_line() {
        let text = format!("#[test]\n    {IGNORED_TEST} = \"slow\"]\nfn f() {{}}\n");
        assert!(source_breaches("a.rs", &text)[0].starts_with("a.rs:2:"));
        assert!(source_breaches("a.md", &text).is_empty());
    }

    #[test]
    fn dependencies_point_downwards() {
        assert_eq!(directions("services/e2llm", "services/index"), 0);
        assert_eq!(directions("services/index", "shared/store"), 0);
        assert_eq!(directions("shared/train", "shared/model"), 0);
        assert_eq!(directions("services/index", "services/decoder"), 1);
        assert_eq!(directions("shared/store", "services/index"), 1);
        assert_eq!(directions("shared/api", "shared/store"), 1);
    }

    #[test]
    fn every_crate_takes_the_lints_of_the_workspace() {
        assert_eq!(manifest_breaches("Cargo.toml", "[lints]\nworkspace = true"), None);
        assert!(manifest_breaches("Cargo.toml", "[package]\nname = \"x\"").is_some());
    }
}
