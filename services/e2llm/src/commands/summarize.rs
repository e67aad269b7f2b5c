//! `e2llm summarize`: a summary per document, encoding first what is new.

use std::process::ExitCode;

use anyhow::Result;
use e2llm_api::v1::{JobKind, JobSpec};

use super::bulk;
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
    let sources = if args.ids.is_empty() { bulk::sources(app, args.inputs).await? } else { vec![Input::Ids(args.ids)] };
    let parts = input::read_documents(sources, args.columns);
    bulk::run(app, JobKind::Summarize, spec, parts, &args.output).await
}
