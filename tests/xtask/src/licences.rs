//! Licences and sources of every dependency, against what `deny.toml` allows.
//!
//! The same file serves cargo-deny; this check needs nothing installed and takes a second.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail};

use crate::metadata::{self, Package};
use crate::spdx;

const CRATES_IO: [&str; 2] =
    ["registry+https://github.com/rust-lang/crates.io-index", "sparse+https://index.crates.io/"];

/// Fails with one line per package that may not be used.
pub(crate) fn check() -> Result<()> {
    let allowed = allowed(&fs::read_to_string("deny.toml").context("deny.toml")?)?;
    let packages = metadata::all()?;
    let problems: Vec<String> = packages.iter().filter_map(|package| problem(package, &allowed)).collect();
    if problems.is_empty() {
        eprintln!("{} packages: every licence and source is allowed", packages.len());
        return Ok(());
    }
    bail!("packages that deny.toml does not allow:\n{}", problems.join("\n"))
}

fn allowed(deny: &str) -> Result<BTreeSet<String>> {
    let deny: toml::Table = toml::from_str(deny).context("deny.toml")?;
    let list = deny.get("licenses").and_then(|licences| licences.get("allow")).and_then(|allow| allow.as_array());
    let list = list.context("deny.toml has no [licenses] allow")?;
    Ok(list.iter().filter_map(|licence| licence.as_str()).map(str::to_owned).collect())
}

fn problem(package: &Package, allowed: &BTreeSet<String>) -> Option<String> {
    let Package { name, version, .. } = package;
    if let Some(source) = &package.source
        && !CRATES_IO.contains(&source.as_str())
    {
        return Some(format!("{name} {version}: comes from {source}, not from crates.io"));
    }
    let Some(licence) = &package.licence else {
        return Some(format!("{name} {version}: names no licence"));
    };
    match spdx::satisfied(licence, allowed) {
        Ok(true) => None,
        Ok(false) => Some(format!("{name} {version}: licence `{licence}`")),
        Err(error) => Some(format!("{name} {version}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(licence: Option<&str>, source: &str) -> Package {
        Package {
            name: "example".to_owned(),
            version: "1.0.0".to_owned(),
            licence: licence.map(str::to_owned),
            source: Some(source.to_owned()),
            directory: String::new(),
            dependencies: Vec::new(),
        }
    }

    fn verdict(licence: Option<&str>, source: &str) -> Option<String> {
        problem(&package(licence, source), &["MIT".to_owned()].into())
    }

    #[test]
    fn an_allowed_licence_from_crates_io_passes() {
        assert_eq!(verdict(Some("MIT OR GPL-3.0"), CRATES_IO[0]), None);
    }

    #[test]
    fn other_licences_missing_licences_and_git_sources_are_named() {
        assert!(verdict(Some("GPL-3.0"), CRATES_IO[0]).unwrap().contains("GPL-3.0"));
        assert!(verdict(None, CRATES_IO[0]).unwrap().contains("no licence"));
        assert!(verdict(Some("MIT"), "git+https://example.org/x").unwrap().contains("example.org"));
    }

    #[test]
    fn the_list_is_the_one_in_deny_toml() {
        let list = allowed("[licenses]\nallow = [\"MIT\", \"Zlib\"]").unwrap();
        assert_eq!(list, ["MIT".to_owned(), "Zlib".to_owned()].into());
        assert!(allowed("[licenses]").is_err());
    }
}
