//! `e2llm encode`: documents become stored soft prompts.

use std::process::ExitCode;

use anyhow::Result;
use e2llm_api::v1::{JobKind, JobSpec};

use super::bulk::{self, Source};
use crate::app::App;
use crate::cli::EncodeArgs;
use crate::input;

pub(crate) async fn run(app: &App, args: EncodeArgs) -> Result<ExitCode> {
    let sources = bulk::sources(app, args.inputs).await?;
    let parts = Source::Parts(input::read_documents(sources, args.columns));
    bulk::run(app, JobKind::Encode, JobSpec::default(), parts, &args.output).await
}
