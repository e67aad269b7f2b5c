//! `e2llm data synthesize`: long-context tasks with known answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use e2llm_data::{DataError, Haystack, Line, LineWriter, Lines, RulerSources, RulerTask, Split, Synthesizer, TaskKind};
use e2llm_model::TextTokenizer;
use e2llm_model::generate::DecoderFiles;
use e2llm_model::gguf::GgufFile;
use e2llm_model::prompt;
use serde_json::json;

use crate::bundle::{LocalBundle, decoder_files};
use crate::output::print_line;
use crate::progress::Meter;
use crate::render::count;
use crate::settings::Settings;

/// Flags of `e2llm data synthesize`.
#[derive(Debug, Args)]
pub(crate) struct SynthesizeArgs {
    /// Texts to hide needles in: JSON Lines of {"id", "text", "abstract"?}, such as `data prepare` makes; qa needs
    /// abstracts
    #[arg(long, value_name = "FILE")]
    haystack: PathBuf,
    /// What to make: niah_single, niah_multikey, niah_multivalue, niah_multiquery, unanswerable, variable_tracking, common_words, qa; or
    /// one of RULER's, such as niah_multikey_3, vt or, where both have the name, ruler:niah_multivalue
    #[arg(long, value_name = "TASK", value_delimiter = ',', required = true)]
    tasks: Vec<Made>,
    /// Questions that a passage answers, for qa_1: tasks such as `data prepare abbreviations` makes
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// Lengths of contexts in decoder tokens; each is met within 5 % and never exceeded
    #[arg(long, value_name = "N", value_delimiter = ',', required = true)]
    tokens: Vec<usize>,
    /// How many of each task and length
    #[arg(long, value_name = "N")]
    count: u64,
    /// Seed of the first of each task and length; the others follow. Same seed, same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Take texts of the test split, too: for evaluation only. The lines are marked as test
    #[arg(long)]
    allow_test: bool,
    /// File for the tasks
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// Questions for a haystack's texts.
fn questions(path: &Path, texts: &Haystack, allow_test: bool) -> Result<Haystack> {
    let lines: Vec<Line> = Lines::open(path)?.collect::<Result<_, _>>()?;
    if let Some(line) = lines.iter().find(|line| line.is_test() && !allow_test) {
        bail!(
            "{}: {:?} is of the test split; leave it out, or give --allow-test for evaluation only",
            path.display(),
            line.id()
        );
    }
    Ok(Haystack::of_questions(lines, texts)?)
}

/// A task of ours or of RULER's.
#[derive(Debug, Clone, Copy)]
enum Made {
    Own(TaskKind),
    Ruler(RulerTask),
}

impl Made {
    fn name(self) -> &'static str {
        match self {
            Self::Own(task) => task.name(),
            Self::Ruler(task) => task.name(),
        }
    }
}

impl FromStr for Made {
    type Err = DataError;

    fn from_str(name: &str) -> Result<Self, DataError> {
        if let Some(name) = name.strip_prefix("ruler:") {
            return name.parse().map(Self::Ruler);
        }
        name.parse().map(Self::Own).or_else(|error| name.parse().map(Self::Ruler).map_err(|_| error))
    }
}

pub(super) fn run(args: &SynthesizeArgs, settings: &Settings) -> Result<()> {
    let mut writer = LineWriter::create(&args.output)?;
    let haystack = Haystack::read(&args.haystack, args.allow_test)?;
    let tokenizer = tokenizer(&decoder_files(&LocalBundle::prepare(settings)?.decoder))?;
    let tasks = Synthesizer {
        haystack: &haystack,
        count: &|text| tokenizer.count(text).map_err(DataError::model),
        question: prompt::question,
    };
    let questions = args.questions.as_deref().map(|path| questions(path, &haystack, args.allow_test)).transpose()?;
    let ruler = RulerSources { texts: &haystack, one_hop: questions.as_ref(), two_hops: None };
    let mut meter = Meter::start("synthesize", "tasks", settings.quiet);
    let of = args.count * (args.tasks.len() * args.tokens.len()) as u64;
    let (mut counts, mut done, mut tokens_made) = (BTreeMap::<&str, u64>::new(), 0, 0);
    for number in 0..args.count {
        for (task, tokens) in args.tasks.iter().flat_map(|task| args.tokens.iter().map(move |tokens| (*task, *tokens)))
        {
            let seed = args.seed.wrapping_add(number);
            let mut line = match task {
                Made::Own(task) => tasks.line(task, tokens, seed)?,
                Made::Ruler(task) => task.line(&ruler, &tasks, tokens, seed)?,
            };
            line.split = args.allow_test.then_some(Split::Test);
            writer.write(&line)?;
            tokens_made += line.tokens.unwrap_or_default() as u64;
            *counts.entry(task.name()).or_default() += 1;
            done += 1;
            meter.update(done, Some(of), "");
        }
    }
    writer.commit()?;
    let seconds = (meter.seconds() * 10.0).round() / 10.0;
    drop(meter);
    if settings.json {
        let line = json!({"output": args.output, "tasks": counts, "tokens": tokens_made, "seconds": seconds});
        return print_line(&line.to_string());
    }
    counts.iter().try_for_each(|(task, made)| print_line(&format!("{task:<18} {:>9}", count(*made))))
}

/// The decoder's tokenizer, without its weights.
pub(crate) fn tokenizer(files: &DecoderFiles) -> Result<TextTokenizer> {
    match (&files.tokenizer, files.weights.first()) {
        (_, Some(weights)) if weights.extension().is_some_and(|kind| kind == "gguf") => {
            Ok(TextTokenizer::from_gguf(GgufFile::open(weights)?.metadata())?)
        }
        (tokenizer, _) => {
            Ok(TextTokenizer::from_file(tokenizer.as_deref().context("the decoder has no tokenizer.json")?)?)
        }
    }
}
