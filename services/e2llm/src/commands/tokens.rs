use std::num::NonZeroU32;
use std::process::ExitCode;

use anyhow::{Context, Result};
use e2llm_runtime::auth::NewToken;
use serde_json::json;

use crate::app::App;
use crate::cli::TokensCommand;

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
        println!("# Give this to the caller, in a file for --token-file; it is not shown again:");
        println!("# {secret}");
        println!("# Add this to the servers' file of --tokens:");
        print!("{}", serde_yaml_ng::to_string(&json!({ "tokens": [entry] }))?);
    }
    Ok(ExitCode::SUCCESS)
}
