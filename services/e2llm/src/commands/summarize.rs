//! `e2llm summarize`: a summary per document, encoding first what is new.

use std::process::ExitCode;

use anyhow::Result;
use e2llm_api::v1::{JobKind, JobSpec};

use super::bulk::{self, Source};
use crate::app::App;
use crate::cli::SummarizeArgs;
use crate::input::{self, Input};

pub(crate) async fn run(app: &App, args: SummarizeArgs) -> Result<ExitCode> {
    let spec = JobSpec {
        instruction: args.instruction.unwrap_or_default(),
        generate: Some(args.generate.to_options()),
        context: Some(args.context.to_options()),
        ..Default::default()
    };
    let source = if args.stored.is_given() {
        bulk::stored(args.stored)?
    } else if !args.ids.is_empty() {
        Source::Parts(input::read_documents(vec![Input::Ids(args.ids)], args.columns))
    } else {
        Source::Parts(input::read_documents(bulk::sources(app, args.inputs).await?, args.columns))
    };
    bulk::run(app, JobKind::Summarize, spec, source, &args.output).await
}
