//! What the benchmarks need: our program, the peers' packages, weights and inputs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use toml::{Table, Value};

use super::PeersArgs;
use crate::run::{self, cargo, root};
use crate::test;

const REQUIREMENTS: &str = "tests/bench/requirements.txt";
const CATALOGUE: &str = "shared/bundles/catalogue.toml";
/// What is made for the benchmarks.
const DIRECTORY: &str = "target/bench-peers";

/// Where everything is.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Our contestant.
    pub(crate) binary: PathBuf,
    pub(crate) python: PathBuf,
    /// Directory of the encoder.
    pub(crate) encoder: PathBuf,
    /// The decoder's GGUF.
    pub(crate) decoder: PathBuf,
    /// Where contestants keep what they make once.
    pub(crate) cache: PathBuf,
    pub(crate) inputs: PathBuf,
    pub(crate) logs: PathBuf,
}

/// Builds, installs and fetches what is not there, and makes the inputs.
pub(crate) fn prepare(args: &PeersArgs) -> Result<Prepared> {
    let binary = match &args.contestant {
        Some(path) => path.clone(),
        None => build()?,
    };
    if !binary.exists() {
        bail!("{} is not there: leave out --contestant to have it built", binary.display());
    }
    let python = python(args)?;
    let catalogue = Catalogue::read()?;
    catalogue.fetch(&binary, args)?;
    let [encoder, decoder] = [catalogue.directory("minilm")?, catalogue.directory("smollm2")?];
    let decoder = decoder.join(catalogue.file("smollm2")?);
    let directory = root().join(DIRECTORY);
    let of = |name: &str| directory.join(name);
    let prepared =
        Prepared { binary, python, encoder, decoder, cache: of("cache"), inputs: of("inputs"), logs: of("logs") };
    let corpus = match &args.corpus {
        Some(path) => path.clone(),
        None => catalogue.directory("essays")?,
    };
    inputs(&prepared, &corpus, args)?;
    Ok(prepared)
}

/// All programs at once, with the features that the workspace unifies to: of one package alone, shared dependencies would be
/// compiled anew.
fn build() -> Result<PathBuf> {
    run::run(cargo().args(["build", "--release", "--workspace", "--bins", "--locked"]))?;
    Ok(test::target().join("release/e2llm-bench"))
}

fn python(args: &PeersArgs) -> Result<PathBuf> {
    let python = match &args.python {
        Some(path) => path.clone(),
        None => {
            let directory = root().join("target/bench-python");
            if !args.offline {
                test::install_python(&directory, REQUIREMENTS)?;
            }
            directory.join("bin/python")
        }
    };
    if !run::succeeds(Command::new(&python).arg("--version")) {
        bail!("{} does not run: leave out --offline, or name one with --python", python.display());
    }
    Ok(python)
}

fn inputs(prepared: &Prepared, corpus: &Path, args: &PeersArgs) -> Result<()> {
    if !corpus.exists() {
        bail!("{} is not there: --corpus takes JSON Lines as `e2llm data prepare` writes them", corpus.display());
    }
    let mut make = Command::new(&prepared.python);
    make.arg("tests/bench/peers/inputs.py").arg("--encoder").arg(&prepared.encoder);
    make.arg("--decoder").arg(&prepared.decoder).arg("--corpus").arg(corpus).arg("--output").arg(&prepared.inputs);
    let sizes = [("--documents", args.documents), ("--rounds", args.rounds), ("--shrink", args.shrink)];
    make.args(sizes.iter().flat_map(|(name, size)| [(*name).to_owned(), size.to_string()]));
    run::run(&mut make)
}

/// The packages of weights and texts, in the cache that `e2llm` uses.
struct Catalogue {
    sources: Vec<Value>,
    cache: PathBuf,
}

impl Catalogue {
    fn read() -> Result<Self> {
        let text = std::fs::read_to_string(CATALOGUE).context(CATALOGUE)?;
        let table: Table = toml::from_str(&text).context(CATALOGUE)?;
        let sources = table.get("source").and_then(Value::as_array).cloned().unwrap_or_default();
        let cache = cache(|name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from));
        Ok(Self { sources, cache: cache.context("no place for weights is known: set E2LLM_CACHE")? })
    }

    /// Pulls what is not in the cache, with the program beside ours.
    fn fetch(&self, binary: &Path, args: &PeersArgs) -> Result<()> {
        let mut needed = vec![("minilm", "minilm"), ("smollm2", "smollm2")];
        needed.extend(args.corpus.is_none().then_some(("essays", "sample:essays")));
        for (source, name) in needed {
            let directory = self.directory(source)?;
            if directory.join(self.file(source)?).exists() {
                continue;
            }
            let program = binary.with_file_name("e2llm");
            if args.offline || !program.exists() {
                bail!("{} is not there: run `cargo run --release -- models pull {name}`", directory.display());
            }
            run::run(Command::new(program).args(["models", "pull", name]))?;
        }
        Ok(())
    }

    fn directory(&self, source: &str) -> Result<PathBuf> {
        let text = |key: &str| self.source(source)?.get(key)?.as_str();
        let (package, version) = text("package").zip(text("version")).with_context(|| missing(source))?;
        Ok(self.cache.join(format!("{package}-{version}")))
    }

    /// Name of the first file.
    fn file(&self, source: &str) -> Result<&str> {
        let files = self.source(source).and_then(|source| source.get("files")?.as_array());
        files.and_then(|files| files.first()?.get("path")?.as_str()).with_context(|| missing(source))
    }

    fn source(&self, name: &str) -> Option<&Value> {
        self.sources.iter().find(|source| source.get("name").and_then(Value::as_str) == Some(name))
    }
}

fn missing(source: &str) -> String {
    format!("{CATALOGUE} does not say what `{source}` is")
}

/// As `e2llm` finds it.
fn cache(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let xdg = || variable("XDG_CACHE_HOME").filter(|path| path.is_absolute()).map(|path| path.join("e2llm"));
    variable("E2LLM_CACHE").or_else(xdg).or_else(|| variable("HOME").map(|home| home.join(".cache/e2llm")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_where_e2llm_keeps_them() {
        let found = |set: &[(&str, &str)]| {
            cache(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value)))
        };
        assert_eq!(found(&[("HOME", "/h"), ("E2LLM_CACHE", "/c")]), Some("/c".into()));
        assert_eq!(found(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/e2llm".into()));
        assert_eq!(found(&[("HOME", "/h"), ("XDG_CACHE_HOME", "relative")]), Some("/h/.cache/e2llm".into()));
    }

    #[test]
    fn the_catalogue_says_where_each_source_is() {
        let text = std::fs::read_to_string(root().join(CATALOGUE)).unwrap();
        let table: Table = toml::from_str(&text).unwrap();
        let sources = table["source"].as_array().unwrap().clone();
        let catalogue = Catalogue { sources, cache: "/c".into() };
        assert!(catalogue.directory("minilm").unwrap().starts_with("/c"));
        assert!(catalogue.file("smollm2").unwrap().ends_with(".gguf"));
        assert!(catalogue.directory("nothing").is_err());
    }
}
