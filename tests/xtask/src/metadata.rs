//! The part of `cargo metadata` that the checks read.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run::{cargo, output};

/// One package, of the workspace or of a registry.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// SPDX expression; `None` if the manifest has none.
    pub(crate) licence: Option<String>,
    /// Where it comes from; `None` for a member of the workspace.
    pub(crate) source: Option<String>,
    /// Directory of the manifest, from the repository's root for members.
    pub(crate) directory: String,
    /// Names of dependencies, those of tests apart.
    pub(crate) dependencies: Vec<String>,
}

/// The workspace's own members.
pub(crate) fn members() -> Result<Vec<Package>> {
    packages(cargo().args(["metadata", "--format-version=1", "--no-deps", "--locked"]))
}

/// Members and everything that they are built from on this machine.
pub(crate) fn all() -> Result<Vec<Package>> {
    let host = host()?;
    packages(cargo().args(["metadata", "--format-version=1", "--locked", "--filter-platform", &host]))
}

fn host() -> Result<String> {
    let about = output(Command::new("rustc").arg("-vV"))?;
    let host = about.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

fn packages(command: &mut Command) -> Result<Vec<Package>> {
    let metadata: Value = serde_json::from_str(&output(command)?)?;
    let root = metadata["workspace_root"].as_str().context("no workspace_root in cargo's metadata")?;
    let listed = metadata["packages"].as_array().context("no packages in cargo's metadata")?;
    Ok(listed.iter().map(|package| read(package, root)).collect())
}

fn read(package: &Value, root: &str) -> Package {
    let text = |field: &str| package[field].as_str().map(str::to_owned);
    let manifest = text("manifest_path").unwrap_or_default();
    let directory = manifest.trim_end_matches("/Cargo.toml");
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    let shipped = dependencies.filter(|dependency| dependency["kind"] != "dev");
    Package {
        name: text("name").unwrap_or_default(),
        version: text("version").unwrap_or_default(),
        licence: text("license"),
        source: text("source"),
        directory: directory.strip_prefix(root).unwrap_or(directory).trim_start_matches('/').to_owned(),
        dependencies: shipped.filter_map(|dependency| dependency["name"].as_str()).map(str::to_owned).collect(),
    }
}
