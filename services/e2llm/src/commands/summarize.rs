//! `e2llm summarize`: a summary per document, encoding first what is new.

use std::process::ExitCode;

use anyhow::Result;
use e2llm_api::v1::{JobKind, JobSpec};

use super::bulk::{self, Work};
use super::source::Source;
use crate::app::App;
use crate::cli::{SummarizeArgs, SummarizeWork};
use crate::input::Input;

pub(crate) async fn run(app: &App, args: SummarizeArgs) -> Result<ExitCode> {
    bulk::run(app, work(app, args.work).await?, &args.output).await
}

pub(super) async fn work(app: &App, args: SummarizeWork) -> Result<Work> {
    let typed = format!("{:?} {:?} {:?} {:?}", args.inputs, args.ids, args.stored, args.columns);
    let spec = JobSpec {
        instruction: args.instruction.unwrap_or_default(),
        generate: Some(args.generate.to_options()),
        context: Some(args.context.to_options()),
        ..Default::default()
    };
    let source = if args.stored.is_given() {
        Source::stored(args.stored)?
    } else if !args.ids.is_empty() {
        Source::Documents { inputs: vec![Input::Ids(args.ids)], columns: args.columns }
    } else {
        Source::documents(app, args.inputs, args.columns).await?
    };
    Ok(Work { kind: JobKind::Summarize, spec, source, typed, job: args.job })
}
