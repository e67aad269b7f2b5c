use std::num::NonZeroU32;
use std::process::ExitCode;

use anyhow::{Context, Result};
use e2llm_runtime::auth::NewToken;
use serde_json::json;

use crate::app::App;
use crate::cli::TokensCommand;
use crate::failure::warn_line;

/// Prints a new token.
pub(crate) fn run(app: &App, command: TokensCommand) -> Result<ExitCode> {
    let TokensCommand::New { name, role, collections, requests_per_minute } = command;
    let names: Vec<String> = collections.into_iter().map(String::from).collect();
    let collections = (!names.is_empty()).then_some(names);
    let token = NewToken::generate(&name, role.into(), collections, requests_per_minute.map(NonZeroU32::get));
    let NewToken { secret, entry } = token.context("no token can be made")?;
    if app.settings.json {
        println!("{}", json!({ "secret": secret, "entry": entry }));
    } else {
        // Apart, so that an entry written to a file does not take its secret along.
        warn_line("the token, for the caller's file of --token-file; it is not shown again:");
        warn_line(&secret);
        warn_line("its entry, for the servers' file of --tokens:");
        print!("{}", serde_yaml_ng::to_string(&json!({ "tokens": [entry] }))?);
    }
    Ok(ExitCode::SUCCESS)
}
