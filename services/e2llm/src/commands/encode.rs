//! `e2llm encode`: documents become stored soft prompts.

use std::process::ExitCode;

use anyhow::Result;
use e2llm_api::v1::{JobKind, JobSpec};

use super::bulk::{self, Work};
use super::source::Source;
use crate::app::App;
use crate::cli::{EncodeArgs, EncodeWork};

pub(crate) async fn run(app: &App, args: EncodeArgs) -> Result<ExitCode> {
    bulk::run(app, work(app, args.work).await?, &args.output).await
}

pub(super) async fn work(app: &App, args: EncodeWork) -> Result<Work> {
    let typed = format!("{:?} {:?}", args.inputs, args.columns);
    let source = Source::documents(app, args.inputs, args.columns).await?;
    Ok(Work { kind: JobKind::Encode, spec: JobSpec::default(), source, typed, job: args.job })
}
