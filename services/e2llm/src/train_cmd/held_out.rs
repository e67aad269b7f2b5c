//! `e2llm train evaluate`: held-out losses of the bundle in use, or of a run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use e2llm_model::{Bundle, Decoder};
use e2llm_train::run::{Models, sampler};
use e2llm_train::{Corpus, Evaluation, Learned, LocalSession, Losses, evaluate};

use super::{models, read_recipe};
use crate::bundle::{LocalBundle, Pair};
use crate::output::print_line;
use crate::settings::Settings;

#[derive(Debug, Args)]
pub(super) struct EvaluateArgs {
    /// Documents: JSON Lines of {"id", "text"}, at least two
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Passages to measure
    #[arg(long, value_name = "N", default_value_t = 64)]
    passages: usize,
    /// Which passages, and which wrong chunks
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// File for the trained decoder's losses of every passage, for paired comparisons: JSON Lines, nats summed over the target
    #[arg(long, value_name = "FILE")]
    passage_losses: Option<PathBuf>,
    /// Leave out the losses of the untrained decoder
    #[arg(long)]
    trained_only: bool,
    /// Measure the newest checkpoint of a run with this recipe, instead of the bundle in use
    #[arg(long, value_name = "FILE", requires = "output")]
    recipe: Option<PathBuf>,
    /// The run's encoder, where it is another than the bundle's
    #[arg(long, value_name = "MODEL", requires = "recipe")]
    encoder: Option<String>,
    /// The run's decoder, where it is another than the bundle's
    #[arg(long, value_name = "MODEL", requires = "recipe")]
    decoder: Option<String>,
    /// The --output directory of that run
    #[arg(long, value_name = "DIR", requires = "recipe")]
    output: Option<PathBuf>,
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

/// Measures and prints.
pub(super) fn measure(args: &EvaluateArgs, settings: &Settings) -> Result<()> {
    let corpus = Corpus::read(&args.input)?;
    let pair = Pair { encoder: args.encoder.clone(), decoder: args.decoder.clone() };
    let local = LocalBundle::prepare_pair(settings, &pair)?;
    let models = models(&local, &pair)?;
    let mut subject = match (&args.recipe, &args.output) {
        (Some(recipe), Some(output)) => Subject::of_run(recipe, output, &models)?,
        _ => Subject::of_bundle(&local.bundle, &models)?,
    };
    let sampler = sampler(&models, subject.chunk_tokens, 0)?;
    let mut measure = |decoder| evaluate(&sampler, &corpus, &mut subject.session, decoder, args.passages, args.seed);
    let trained = measure(subject.taught.as_ref().unwrap_or(&models.decoder))?;
    if let Some(path) = &args.passage_losses {
        write_passage_losses(path, &trained)?;
    }
    let both = subject.taught.is_some() && !args.trained_only;
    let base = both.then(|| measure(&models.decoder)).transpose()?;
    show(settings, &trained, base.as_ref())
}

/// The three objectives' losses; no abstract where none was measured.
fn objectives(evaluation: &Evaluation) -> impl Iterator<Item = (&'static str, &Losses)> {
    let kinds = [
        ("reconstruction", Some(&evaluation.reconstruction)),
        ("continuation", Some(&evaluation.continuation)),
        ("abstract", evaluation.answers.as_ref()),
    ];
    kinds.into_iter().filter_map(|(name, losses)| Some((name, losses?)))
}

fn write_passage_losses(path: &Path, evaluation: &Evaluation) -> Result<()> {
    let mut lines = String::new();
    for (objective, losses) in objectives(evaluation) {
        for passage in &losses.passages {
            let mut line = serde_json::to_value(passage)?;
            line["objective"] = objective.into();
            lines += &format!("{line}\n");
        }
    }
    std::fs::write(path, lines).with_context(|| format!("cannot write {}", path.display()))
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
        for (name, losses) in objectives(evaluation) {
            let Losses { right, wrong, none, full, gap, gap_error, .. } = losses;
            let name = format!("{name}{note}");
            print_line(&format!(
                "{name:<29} {right:>7.3} {wrong:>7.3} {none:>7.3} {full:>7.3} {gap:>7.3} ± {gap_error:.3}"
            ))?;
        }
    }
    Ok(())
}
