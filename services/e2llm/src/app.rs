//! From a parsed command line to a running command.

use std::process::ExitCode;

use anyhow::Result;
use e2llm_coordinator::CoordinatorOptions;
use e2llm_runtime::Shutdown;
use e2llm_runtime::telemetry::{self, LogFormat, TelemetryOptions};

use crate::cli::{Cli, Command};
use crate::failure::Interrupted;
use crate::local::{self, Needs, Services};
use crate::settings::Settings;
use crate::{commands, data_cmd, eval_cmd, serve, train_cmd};

/// Logs of a command: rows that failed are told as results, and services that stop with the command lose nothing.
const CLI_FILTER: &str = "warn,e2llm_store::objects=error,e2llm_coordinator::board=error,e2llm_runtime::worker=error,\
                          e2llm_encoder=error,e2llm_decoder=error";

/// What a command works with.
pub(crate) struct App {
    /// The global flags.
    pub(crate) settings: Settings,
    /// Requested by the first Ctrl-C or SIGTERM; a second one ends the process at once.
    pub(crate) shutdown: Shutdown,
}

/// Runs the command to its exit code.
pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let serves = matches!(cli.command, Command::Serve(_));
    let default_filter = if serves { "info" } else { CLI_FILTER };
    let (format, traces) = match &cli.command {
        Command::Serve(args) => (args.log_format.into(), args.traces()),
        _ => (LogFormat::Text, None),
    };
    telemetry::init(&TelemetryOptions { default_filter, format, traces, ..Default::default() })?;
    let app = App { settings: Settings::resolve(cli.global, serves)?, shutdown: Shutdown::on_signals()? };
    match cli.command {
        Command::Encode(args) => commands::encode::run(&app, args).await,
        Command::Summarize(args) => commands::summarize::run(&app, args).await,
        Command::Ask(args) => commands::ask::run(&app, args).await,
        Command::Sync(args) => commands::sync::run(&app, args).await,
        Command::Jobs(command) => commands::jobs::run(&app, command).await,
        Command::Docs(command) => app.interruptible(commands::docs::run(&app, command)).await?,
        Command::Gc(args) => commands::gc::run(&app, &args).await,
        Command::Tokens(command) => commands::tokens::run(&app, command),
        Command::Models(command) => app.interruptible(commands::models::run(&app, command)).await?,
        Command::Doctor(args) => commands::doctor::run(&app, args).await,
        Command::Reshard(args) => commands::reshard::run(&app, &args).await,
        Command::Data(command) => done(data_cmd::run(command, &app.settings, app.shutdown.clone()).await),
        Command::Train(args) => done(train_cmd::run(args, &app.settings, app.shutdown.clone()).await),
        Command::Eval(args) => done(eval_cmd::run(&app, &args).await),
        Command::Serve(args) => done(serve::run(args, &app.settings, app.shutdown.clone()).await),
    }
}

fn done(result: Result<()>) -> Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS)
}

impl App {
    /// The services behind `--server`, or those of this process that the command needs.
    pub(crate) async fn services(&self, needs: Needs) -> Result<Services> {
        match &self.settings.server {
            Some(server) => Services::connect(server, &self.settings.client),
            None => self.interruptible(local::start(&self.settings, needs, CoordinatorOptions::in_process())).await?,
        }
    }

    /// Runs `work` until it ends, or until Ctrl-C drops it.
    pub(crate) async fn interruptible<T>(&self, work: impl Future<Output = T>) -> Result<T> {
        tokio::select! {
            result = work => Ok(result),
            () = self.shutdown.requested() => Err(Interrupted::default().into()),
        }
    }
}
