//! `e2llm train`: training of adapters, and the held-out losses that judge them.

mod curve;
mod held_out;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use e2llm_decoder::{DecoderSide, Words};
use e2llm_runtime::Shutdown;
use e2llm_train::run::{Models, Report, Rhythm, Run, finished};
use e2llm_train::{Checkpoint, Corpus, Objective, ObjectiveLoss, Recipe};
use serde_json::json;

use crate::bundle::{LocalBundle, Pair};
use crate::output::print_line;
use crate::progress::Meter;
use crate::settings::Settings;
use curve::CurveArgs;
use held_out::EvaluateArgs;

/// `e2llm train …`
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct TrainArgs {
    #[command(subcommand)]
    command: Option<TrainCommand>,
    #[command(flatten)]
    run: Option<RunArgs>,
}

#[derive(Debug, Subcommand)]
enum TrainCommand {
    /// Held-out losses: right chunk, wrong chunk, no context, full text
    Evaluate(EvaluateArgs),
    /// Draws the losses of runs, from their curve.jsonl
    Curve(CurveArgs),
}

/// Train an adapter, and what else the recipe says; repeating the command resumes from the last checkpoint
#[derive(Debug, Args)]
struct RunArgs {
    /// What to train, in YAML
    #[arg(long, value_name = "FILE")]
    recipe: PathBuf,
    /// What to train on: JSON Lines of documents {"id", "text", "abstract"?} and tasks {"id", "context", "prompt", "answer"}; may be repeated
    #[arg(long, value_name = "FILE", required = true)]
    input: Vec<PathBuf>,
    /// Documents to measure on while training; the same form
    #[arg(long, value_name = "FILE")]
    held_out: Option<PathBuf>,
    /// Another encoder than the bundle's: a name of the catalogue, a model-hub id such as org/name@revision, or a directory
    #[arg(long, value_name = "MODEL")]
    encoder: Option<String>,
    /// Another decoder than the bundle's: the same forms
    #[arg(long, value_name = "MODEL")]
    decoder: Option<String>,
    /// Directory for checkpoints, curve.jsonl and the finished bundle
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// What the bundle calls itself [default: the name of the bundle in use, or that of the pair]
    #[arg(long)]
    name: Option<String>,
    /// Stop, with a checkpoint, after this many minutes
    #[arg(long, value_name = "N")]
    minutes: Option<u64>,
    /// Steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 20)]
    save_every: usize,
    /// Steps between measurements on --held-out; 0: never
    #[arg(long, value_name = "N", default_value_t = 0)]
    evaluate_every: usize,
}

/// Runs the command until it ends or shutdown is requested.
pub(crate) async fn run(args: TrainArgs, settings: &Settings, shutdown: Shutdown) -> Result<()> {
    let settings = settings.clone();
    let work = tokio::task::spawn_blocking(move || match (args.command, args.run) {
        (Some(TrainCommand::Evaluate(args)), _) => held_out::measure(&args, &settings),
        (Some(TrainCommand::Curve(args)), _) => curve::draw(&args),
        (None, Some(args)) => train(&args, &settings),
        (None, None) => bail!("nothing to train; give --recipe, --input and --output, or `train evaluate`"),
    });
    tokio::select! {
        done = work => done.context("training stopped")?,
        () = shutdown.requested() => bail!("interrupted; run the same command again to resume from the last checkpoint"),
    }
}

/// The models in use, the decoder expanded and without LoRA; no bundle to start from where the pair is another than its own.
fn models(local: &LocalBundle, pair: &Pair) -> Result<Models> {
    let DecoderSide { decoder, words } = local.decoder_side()?;
    let Words { tokens, frame, pieces, .. } = words;
    let encoder = Arc::new(local.text_encoder()?);
    let bundle = (!pair.is_other()).then(|| local.bundle.clone());
    Ok(Models { encoder, pieces, decoder, tokens, frame, bundle })
}

fn read_recipe(path: &Path) -> Result<Recipe> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Recipe::parse(&text)?)
}

fn train(args: &RunArgs, settings: &Settings) -> Result<()> {
    let recipe = read_recipe(&args.recipe)?;
    // Neither a control nor a decoder trained in full fits a bundle: those are measured from their checkpoints.
    let released = recipe.makes_bundle().then(|| args.output.join("bundle"));
    if let Some(state) = finished(&recipe, &args.output)?
        && released.as_ref().is_none_or(|directory| directory.join("bundle.json").exists())
    {
        return show_end(released.as_deref(), true, &state);
    }
    let corpus = Corpus::read_all(&args.input)?;
    corpus.refuse_test()?;
    let held_out = args.held_out.as_deref().map(Corpus::read).transpose()?;
    let pair = Pair { encoder: args.encoder.clone(), decoder: args.decoder.clone() };
    let bundle = LocalBundle::prepare_pair(settings, &pair)?;
    let mut log = Log::open(&args.output, settings)?;
    keep_to_models(&args.output, &bundle)?;
    let mut report = |news: Report| log.write(&news);
    let mut run = Run::start(&recipe, models(&bundle, &pair)?, &corpus, held_out.as_ref(), &args.output, &mut report)?;
    let rhythm = Rhythm {
        save_every: args.save_every.max(1),
        evaluate_every: args.evaluate_every,
        passages: 48,
        budget: args.minutes.map(|m| Duration::from_secs(60 * m)),
    };
    let is_finished = run.advance(&rhythm, &mut report)?;
    if let Some(directory) = &released {
        let config = &bundle.bundle.config;
        let name = args.name.as_ref().unwrap_or(&config.name);
        run.export(directory, name, &config.encoder, &config.decoder)?;
    }
    show_end(released.as_deref(), is_finished, run.state())
}

/// A run goes on with the models that it began with; others may have the same shapes.
fn keep_to_models(directory: &Path, bundle: &LocalBundle) -> Result<()> {
    let models = json!({"encoder": bundle.encoder.sha256.as_str(), "decoder": bundle.decoder.sha256.as_str()});
    let path = directory.join("models.json");
    match std::fs::read_to_string(&path) {
        Ok(text) if serde_json::from_str::<serde_json::Value>(&text).is_ok_and(|begun_with| begun_with == models) => {
            Ok(())
        }
        Ok(_) => bail!(
            "the run in {} began with another encoder or decoder (models.json); name those, or use another --output",
            directory.display()
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::write(&path, format!("{models}\n")).with_context(|| format!("cannot write {}", path.display()))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn show_end(bundle: Option<&Path>, finished: bool, state: &Checkpoint) -> Result<()> {
    let line = json!({"bundle": bundle, "finished": finished, "samples": state.samples, "seconds": state.seconds});
    print_line(&line.to_string())?;
    Ok(())
}

/// `curve.jsonl`, and progress on stderr.
struct Log {
    curve: std::fs::File,
    quiet: bool,
    /// Progress of this phase.
    phase: Option<(String, Meter)>,
}

impl Log {
    fn open(directory: &Path, settings: &Settings) -> Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let path = directory.join("curve.jsonl");
        let curve = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let curve = curve.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { curve, quiet: settings.quiet, phase: None })
    }

    fn write(&mut self, news: &Report) {
        use std::io::Write;
        match news {
            Report::Pooling { chunks, of } => self.show("chunks encoded".to_owned(), *chunks, *of, ""),
            Report::Pretrain { step, of, loss, accuracy } => {
                let more = format!(", loss {loss:.2}, accuracy {:.0} %", accuracy * 100.0);
                self.show("steps of pretraining".to_owned(), *step, *of, &more);
            }
            Report::Step { stage, step, of, losses, .. } => {
                self.show(format!("steps of stage {}", stage + 1), *step, *of, &by_objective(losses));
            }
            Report::Evaluated { .. } | Report::Saved { .. } => {}
        }
        let line = serde_json::to_string(news).unwrap_or_default();
        // A curve that cannot be written must not end hours of training; the checkpoints hold what matters.
        if let Err(error) = writeln!(self.curve, "{line}") {
            tracing::warn!(%error, "cannot write curve.jsonl");
        }
    }

    /// Shows how far a phase is; its speed is measured from its first news on.
    fn show(&mut self, phase: String, at: usize, of: usize, more: &str) {
        if self.phase.as_ref().is_none_or(|(shown, _)| *shown != phase) {
            let mut meter = Meter::start("train", phase.clone(), self.quiet);
            meter.resumed(at as u64);
            self.phase = Some((phase, meter));
        }
        if let Some((_, meter)) = &mut self.phase {
            meter.update(at as u64, Some(of as u64), more);
        }
    }
}

/// ", reconstruct 3.21, continue 3.40"
fn by_objective(losses: &BTreeMap<Objective, ObjectiveLoss>) -> String {
    let each = losses.iter().map(|(objective, own)| format!(", {} {:.2}", objective.as_str(), own.loss));
    each.collect()
}
