//! `e2llm ask`: one question whose answer streams, or many as a job.

use std::process::ExitCode;

use anyhow::{Result, bail};
use e2llm_api::v1::{AskRequest, JobKind, JobSpec, Usage, generate_event};
use e2llm_runtime::Affinity;
use serde_json::json;

use super::bulk::{self, Work};
use super::source::Source;
use crate::app::App;
use crate::cli::{AskArgs, AskWork, JobArgs};
use crate::failure::{self, warn_line};
use crate::local::{Needs, Services};
use crate::output::{self, Output};
use crate::render;

pub(crate) async fn run(app: &App, args: AskArgs) -> Result<ExitCode> {
    if args.work.is_one_question() {
        return one(app, &args).await;
    }
    bulk::run(app, work(app, args.work).await?, &args.output).await
}

/// Many questions, or one for many documents.
pub(super) async fn work(app: &App, mut args: AskWork) -> Result<Work> {
    let typed = format!("{:?} {:?} {:?} {:?}", args.input, args.each, args.stored, args.columns);
    let question = args.question_for_each()?;
    let source = match (&question, &args.input) {
        (Some(_), _) if args.stored.is_given() => Source::stored(args.stored)?,
        (Some(_), _) => Source::documents(app, args.each, args.columns).await?,
        (None, Some(questions)) => Source::questions(questions)?,
        (None, None) => bail!("one question of --id is answered at once, without a job: e2llm ask"),
    };
    let spec = JobSpec {
        question: question.unwrap_or_default(),
        generate: Some(args.generate.to_options()),
        context: Some(args.context.to_options()),
        ..Default::default()
    };
    Ok(Work { kind: JobKind::Ask, spec, source, typed, job: args.job })
}

async fn one(app: &App, args: &AskArgs) -> Result<ExitCode> {
    let (args, output) = (&args.work, &args.output);
    let (ids, question) = args.ids_and_question()?;
    if args.job != JobArgs::default() {
        bail!("one question of --id is no job; leave out the options under \"Job\", or ask with --ids-from or --input");
    }
    let mut output = Output::open(output, app.settings.json)?;
    if matches!(output, Output::Table(_) | Output::Apart { .. }) {
        bail!("one answer is neither a table nor a list of errors; give --output a .jsonl, and leave out --errors");
    }
    let request = AskRequest {
        collection: app.settings.collection.to_string(),
        doc_ids: ids.into_iter().map(String::from).collect(),
        question,
        generate: Some(args.generate.to_options()),
        context: Some(args.context.to_options()),
    };
    let services = app.services(Needs::Models).await?;
    let streamed = app.interruptible(answer(&services, request.clone(), !output.is_json())).await;
    services.stop().await;
    let (text, usage) = streamed??;
    if output.is_json() {
        let AskRequest { doc_ids, question, .. } = request;
        let usage = render::usage_json(&usage);
        output.json(&json!({"doc_ids": doc_ids, "question": question, "answer": text, "usage": usage}))?;
        output.commit()?;
    }
    if !app.settings.quiet && !app.settings.json {
        warn_line(&render::usage_text(&usage));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the answer to its end, and prints its pieces as they come if `live`.
async fn answer(services: &Services, request: AskRequest, live: bool) -> Result<(String, Usage)> {
    let failed = |status| failure::of_status(&status, services.address());
    // Of several decoders the same one for the same documents: it has them in its caches.
    let affinity = Affinity::to(&request.doc_ids);
    let mut call = tonic::Request::new(request);
    call.extensions_mut().insert(affinity);
    let mut events = services.decoder().ask(call).await.map_err(failed)?.into_inner();
    let mut text = String::new();
    loop {
        // A line that was begun is ended before an error is told.
        let event = events.message().await.inspect_err(|_| end_line(live, &text));
        match event.map_err(failed)?.and_then(|event| event.event) {
            Some(generate_event::Event::Text(piece)) => {
                if live {
                    output::print(&render::clean(&piece))?;
                }
                text.push_str(&piece);
            }
            Some(generate_event::Event::Finished(usage)) => {
                if live {
                    output::print("\n")?;
                }
                // Who leaves before the stream has ended counts as having given up.
                let _ = events.message().await;
                return Ok((text, usage));
            }
            None => {
                end_line(live, &text);
                bail!("the answer ended early; ask again")
            }
        }
    }
}

fn end_line(live: bool, text: &str) {
    if live && !text.is_empty() {
        // The error that follows matters more than a terminal that went away.
        let _ = output::print("\n");
    }
}
