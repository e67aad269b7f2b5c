//! The configuration file of `e2llm serve`: YAML whose keys are the flags' names and whose values become the flags' defaults.
//!
//! So a value is checked by the same parser wherever it stands, flags win over environment variables and those over the file, and
//! what `--print-config` says of a setting is what `--help` says.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};
use serde_yaml_ng::{Mapping, Value};

use crate::cli::Cli;

const SERVE: &str = "serve";
/// What a file cannot say.
const NOT_SETTINGS: [&str; 6] = ["role", "config", "print_config", "help", "version", "json"];

/// The command line, with defaults from the file that it names. Ends the process where the command line asks for help or is wrong.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<(Cli, Option<String>)> {
    let args: Vec<OsString> = args.into_iter().collect();
    let first = Cli::command().get_matches_from(&args);
    let Some((SERVE, serve)) = first.subcommand() else { return Ok((typed(&first)?, None)) };
    let (command, matches) = match serve.get_one::<std::path::PathBuf>("config") {
        Some(path) => {
            let command = with_defaults(Cli::command(), &read(path)?).with_context(|| path.display().to_string())?;
            let matches = command.clone().try_get_matches_from(&args).with_context(|| path.display().to_string())?;
            (command, matches)
        }
        None => (Cli::command(), first.clone()),
    };
    let cli = typed(&matches)?;
    let printed = matches.subcommand().filter(|(_, serve)| serve.get_flag("print_config"));
    Ok((cli, printed.map(|(_, serve)| print(&command, serve))))
}

fn typed(matches: &ArgMatches) -> Result<Cli> {
    Cli::from_arg_matches(matches).context("the command line cannot be used")
}

fn read(path: &Path) -> Result<Mapping> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let value: Value = serde_yaml_ng::from_str(&text).with_context(|| path.display().to_string())?;
    match value {
        Value::Mapping(mapping) => Ok(mapping),
        Value::Null => Ok(Mapping::new()),
        _ => bail!(
            "{}: it must be `setting: value` lines; `e2llm serve index --print-config` shows them",
            path.display()
        ),
    }
}

/// Settings in the order in which they are printed.
fn settings(command: &Command) -> Vec<&Arg> {
    let serve = command.find_subcommand(SERVE);
    let of_serve = serve.into_iter().flat_map(Command::get_arguments);
    let global = command.get_arguments().filter(|arg| arg.is_global_set());
    let is_setting = |arg: &&Arg| !NOT_SETTINGS.contains(&arg.get_id().as_str()) && !arg.is_hide_set();
    of_serve.filter(|arg| !arg.is_global_set()).chain(global).filter(is_setting).collect()
}

fn with_defaults(mut command: Command, file: &Mapping) -> Result<Command> {
    for (key, value) in file {
        let key = key.as_str().context("a setting's name is not text")?;
        let found = settings(&command).into_iter().find(|arg| arg.get_long() == Some(key));
        let Some((id, global)) = found.map(|arg| (arg.get_id().clone(), arg.is_global_set())) else {
            bail!("there is no setting {key:?}; `e2llm serve index --print-config` shows all of them");
        };
        let Some(value) = text(value).with_context(|| format!("{key} is neither a value nor a list of values"))? else {
            continue;
        };
        let default = move |arg: Arg| arg.default_value(value);
        command = if global {
            command.mut_arg(id, default)
        } else {
            command.mut_subcommand(SERVE, |serve| serve.mut_arg(id, default))
        };
    }
    Ok(command)
}

/// As it would be typed; None of nothing.
fn text(value: &Value) -> Result<Option<String>> {
    Ok(match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Sequence(values) => {
            let texts = values.iter().map(text).collect::<Result<Vec<_>>>()?;
            Some(texts.into_iter().flatten().collect::<Vec<_>>().join(","))
        }
        _ => bail!("it is a mapping"),
    })
}

/// All settings, annotated.
fn print(command: &Command, serve: &ArgMatches) -> String {
    let mut lines = Vec::new();
    for arg in settings(command) {
        let help = arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
        lines.extend(help.lines().map(|line| format!("# {}", line.trim())));
        let values: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        if !values.is_empty() && arg.get_action().takes_values() {
            lines.push(format!("# One of: {}", values.join(", ")));
        }
        if let Some(variable) = arg.get_env() {
            lines.push(format!("# Environment: {}", variable.display()));
        }
        let name = arg.get_long().unwrap_or_default();
        let set = serve.try_get_raw(arg.get_id().as_str()).ok().flatten();
        let set: Vec<String> = set.into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
        lines.push(if set.is_empty() { format!("#{name}:") } else { format!("{name}: {}", quoted(&set.join(","))) });
        lines.push(String::new());
    }
    lines.join("\n")
}

fn quoted(value: &str) -> String {
    serde_yaml_ng::to_string(value).map_or_else(|_| value.to_owned(), |text| text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli;

    fn parsed(file: &str, flags: &[&str]) -> Result<(Cli, Option<String>)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("e2llm.yaml");
        std::fs::write(&path, file).unwrap();
        let path = path.display().to_string();
        let args = ["e2llm", "serve", "index", "--config", &path].into_iter().chain(flags.iter().copied());
        parse(args.map(OsString::from))
    }

    fn serve(cli: Cli) -> cli::ServeArgs {
        let cli::Command::Serve(args) = cli.command else { panic!("not serve") };
        args
    }

    #[test]
    fn the_file_gives_defaults_and_flags_win_over_it() {
        let file = "listen: 127.0.0.1:1\nlease: 30s\nstore: s3://bucket/x\nallow-unauthenticated: true\n";
        let (cli, printed) = parsed(file, &["--lease", "40s"]).unwrap();
        assert!(printed.is_none());
        assert_eq!(cli.global.store.as_deref(), Some("s3://bucket/x"));
        let args = serve(cli);
        assert_eq!((args.listen.port(), args.lease.as_secs(), args.guard.allow_unauthenticated), (1, 40, true));
    }

    #[test]
    fn what_is_printed_can_be_read_back_and_explains_itself() {
        let (_, printed) = parsed("lease: 31s\n", &["--print-config"]).unwrap();
        let printed = printed.unwrap();
        for words in [
            "lease: 31s",
            "# How often workers report",
            "# Environment: E2LLM_LEASE",
            "#tokens:",
            "listen: 127.0.0.1:7700",
        ] {
            assert!(printed.contains(words), "{words} in {printed}");
        }
        let (cli, _) = parsed(&printed, &[]).unwrap();
        assert_eq!(serve(cli).lease.as_secs(), 31);
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_reason() {
        for (file, reason) in [
            ("liste: 127.0.0.1:1\n", "no setting \"liste\""),
            ("role: index\n", "no setting \"role\""),
            ("lease: soon\n", "lease"),
            ("lease: {a: 1}\n", "neither a value nor a list"),
            ("- a\n", "`setting: value` lines"),
            ("a: b: c\n", "mapping values"),
        ] {
            let error = format!("{:#}", parsed(file, &[]).unwrap_err());
            assert!(error.contains(reason) && error.contains("e2llm.yaml"), "{error}");
        }
    }
}
