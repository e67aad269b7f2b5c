//! `e2llm train`: training of adapters, and the held-out losses that judge them.

mod curve;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use e2llm_decoder::{DecoderSide, Words};
use e2llm_model::{Bundle, Decoder};
use e2llm_runtime::Shutdown;
use e2llm_train::run::{Models, Report, Rhythm, Run, finished, sampler};
use e2llm_train::{Checkpoint, Corpus, Evaluation, Learned, LocalSession, Objective, ObjectiveLoss, Recipe, evaluate};
use serde_json::json;

use crate::bundle::LocalBundle;
use crate::output::print_line;
use crate::progress::Meter;
use crate::settings::Settings;
use curve::CurveArgs;

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
    /// Directory for checkpoints, curve.jsonl and the finished bundle
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
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

#[derive(Debug, Args)]
struct EvaluateArgs {
    /// Documents: JSON Lines of {"id", "text"}, at least two
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Passages to measure
    #[arg(long, value_name = "N", default_value_t = 64)]
    passages: usize,
    /// Which passages, and which wrong chunks
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Leave out the losses of the untrained decoder
    #[arg(long)]
    trained_only: bool,
    /// Measure the newest checkpoint of a run with this recipe, instead of the bundle in use
    #[arg(long, value_name = "FILE", requires = "output")]
    recipe: Option<PathBuf>,
    /// The --output directory of that run
    #[arg(long, value_name = "DIR", requires = "recipe")]
    output: Option<PathBuf>,
}

/// Runs the command until it ends or shutdown is requested.
pub(crate) async fn run(args: TrainArgs, settings: &Settings, shutdown: Shutdown) -> Result<()> {
    let settings = settings.clone();
    let work = tokio::task::spawn_blocking(move || match (args.command, args.run) {
        (Some(TrainCommand::Evaluate(args)), _) => evaluate_held_out(&args, &settings),
        (Some(TrainCommand::Curve(args)), _) => curve::draw(&args),
        (None, Some(args)) => train(&args, &settings),
        (None, None) => bail!("nothing to train; give --recipe, --input and --output, or `train evaluate`"),
    });
    tokio::select! {
        done = work => done.context("training stopped")?,
        () = shutdown.requested() => bail!("interrupted; run the same command again to resume from the last checkpoint"),
    }
}

/// The models of the bundle in use, the decoder expanded and without LoRA.
fn models(bundle: &LocalBundle) -> Result<Models> {
    let DecoderSide { decoder, words } = bundle.decoder_side()?;
    let Words { tokens, frame, pieces, .. } = words;
    let encoder = Arc::new(bundle.text_encoder()?);
    Ok(Models { encoder, pieces, decoder, tokens, frame, bundle: Some(bundle.bundle.clone()) })
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
    let bundle = LocalBundle::prepare(settings)?;
    let mut log = Log::open(&args.output, settings)?;
    let mut report = |news: Report| log.write(&news);
    let mut run = Run::start(&recipe, models(&bundle)?, &corpus, held_out.as_ref(), &args.output, &mut report)?;
    let rhythm = Rhythm {
        save_every: args.save_every.max(1),
        evaluate_every: args.evaluate_every,
        passages: 48,
        budget: args.minutes.map(|m| Duration::from_secs(60 * m)),
    };
    let is_finished = run.advance(&rhythm, &mut report)?;
    if let Some(directory) = &released {
        let config = &bundle.bundle.config;
        run.export(directory, &config.name, &config.encoder, &config.decoder)?;
    }
    show_end(released.as_deref(), is_finished, run.state())
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

/// What is measured, from the bundle in use or from a run's checkpoint.
struct Subject {
    chunk_tokens: usize,
    session: LocalSession,
    /// The decoder with what it was taught; none where nothing was.
    taught: Option<Decoder>,
}

impl Subject {
    fn of_bundle(bundle: &Bundle, models: &Models) -> Result<Self> {
        let device = models.encoder.device();
        let mut encoder = (*models.encoder).clone();
        bundle.adapt_encoder(&mut encoder, device)?;
        let mut taught = models.decoder.clone();
        if let Some(config) = bundle.config.lora {
            taught.set_lora(&bundle.lora(device)?, config.rank, config.scale)?;
        }
        Ok(Self {
            chunk_tokens: bundle.config.chunk_tokens,
            session: LocalSession::frozen(Arc::new(encoder), models.pieces.clone(), bundle.adapter(device)?)?,
            taught: bundle.config.lora.map(|_| taught),
        })
    }

    fn of_run(recipe: &Path, output: &Path, models: &Models) -> Result<Self> {
        let recipe = read_recipe(recipe)?;
        let learned = Learned::load(&recipe, models, output)?;
        let mut taught = models.decoder.clone();
        learned.teach(&mut taught)?;
        let taught = learned.changes_decoder().then_some(taught);
        Ok(Self { chunk_tokens: recipe.chunk_tokens, session: learned.session, taught })
    }
}

fn evaluate_held_out(args: &EvaluateArgs, settings: &Settings) -> Result<()> {
    let corpus = Corpus::read(&args.input)?;
    let local = LocalBundle::prepare(settings)?;
    let models = models(&local)?;
    let mut subject = match (&args.recipe, &args.output) {
        (Some(recipe), Some(output)) => Subject::of_run(recipe, output, &models)?,
        _ => Subject::of_bundle(&local.bundle, &models)?,
    };
    let sampler = sampler(&models, subject.chunk_tokens, 0)?;
    let mut measure = |decoder| evaluate(&sampler, &corpus, &mut subject.session, decoder, args.passages, args.seed);
    match &subject.taught {
        Some(taught) => {
            let base = if args.trained_only { None } else { Some(measure(&models.decoder)?) };
            show(settings, &measure(taught)?, base.as_ref())
        }
        None => show(settings, &measure(&models.decoder)?, None),
    }
}

fn show(settings: &Settings, trained: &Evaluation, base: Option<&Evaluation>) -> Result<()> {
    if settings.json {
        let mut line = serde_json::to_value(trained)?;
        if let Some(base) = base {
            line["without_lora"] = serde_json::to_value(base)?;
        }
        print_line(&line.to_string())?;
        return Ok(());
    }
    print_line(&format!("nats per token over {} passages, {} tokens", trained.samples, trained.tokens))?;
    print_line("                                right   wrong    none    full     gap")?;
    for (note, evaluation) in [("", Some(trained)), (" untrained decoder", base)] {
        let Some(evaluation) = evaluation else { continue };
        let kinds = [
            ("reconstruction", Some(&evaluation.reconstruction)),
            ("continuation", Some(&evaluation.continuation)),
            ("abstract", evaluation.answers.as_ref()),
        ];
        for (name, losses) in kinds.into_iter().filter_map(|(name, losses)| Some((name, losses?))) {
            let e2llm_train::Losses { right, wrong, none, full, gap, gap_error } = losses;
            let name = format!("{name}{note}");
            print_line(&format!(
                "{name:<29} {right:>7.3} {wrong:>7.3} {none:>7.3} {full:>7.3} {gap:>7.3} ± {gap_error:.3}"
            ))?;
        }
    }
    Ok(())
}
