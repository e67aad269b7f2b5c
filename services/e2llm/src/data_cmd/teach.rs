//! `e2llm data teach`: answers of the decoder that reads the full text.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use e2llm_data::{DataError, Taught, TeachReport, Teacher, Teaching};
use e2llm_model::generate::{Finish, Generator, Options, Piece};
use e2llm_model::prompt::SUMMARIZE;
use e2llm_model::sample::SamplerOptions;
use serde_json::json;

use crate::bundle::{LocalBundle, decoder_files};
use crate::output::print_line;
use crate::progress::Meter;
use crate::render::count;
use crate::settings::Settings;

/// No tokenizer makes fewer tokens of text than one of so many bytes.
const BYTES_PER_TOKEN: usize = 32;

/// Flags of `e2llm data teach`.
#[derive(Debug, Args)]
pub(crate) struct TeachArgs {
    /// Lines to answer: tasks without an answer, and texts without an abstract, which are summarised; others are left out
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// File for the answered tasks; unfinished work is in FILE.partial
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Most tokens of an answer; one that does not end by itself is cut after its last whole sentence
    #[arg(long, value_name = "N", default_value_t = 160, value_parser = clap::value_parser!(u32).range(1..=4096))]
    max_tokens: u32,
    /// Read only the beginning of each text, as far as whole sentences have this many tokens; without it, texts too long for
    /// the decoder are left out
    #[arg(long, value_name = "N")]
    passage_tokens: Option<usize>,
}

pub(super) fn run(args: &TeachArgs, settings: &Settings) -> Result<()> {
    let lines = line_count(&args.input)?;
    let mut teacher = FullText::load(settings, args.max_tokens as usize)?;
    let mut meter = Meter::start("teach", "lines", settings.quiet);
    let mut began = None;
    let mut progress = |report: &TeachReport| {
        if report.taught == 0 {
            meter.resumed(report.read);
        }
        let seconds = meter.seconds() - *began.get_or_insert(meter.seconds());
        meter.update(report.read, Some(lines), &rates(report, seconds));
    };
    let work = Teaching { summarize: SUMMARIZE, passage_tokens: args.passage_tokens, progress: &mut progress };
    let report = e2llm_data::teach(&args.input, &args.output, &mut teacher, work)?;
    let seconds = (meter.seconds() * 10.0).round() / 10.0;
    drop(meter);
    if settings.json {
        let mut line = json!({"output": args.output, "seconds": seconds});
        if let (Some(line), serde_json::Value::Object(report)) = (line.as_object_mut(), serde_json::to_value(report)?) {
            line.extend(report);
        }
        return print_line(&line.to_string());
    }
    print_line(&format!(
        "{} answers written, {} before; left out: {} with a label, {} too long, {} without a whole sentence",
        count(report.taught),
        count(report.resumed),
        count(report.labelled),
        count(report.too_long),
        count(report.unfinished)
    ))
}

fn rates(report: &TeachReport, seconds: f64) -> String {
    if seconds < 0.5 {
        return String::new();
    }
    let rate = |tokens: u64| count((tokens as f64 / seconds).round() as u64);
    format!(", {} tokens/s read, {} written", rate(report.tokens_read), rate(report.tokens_written))
}

fn line_count(path: &Path) -> Result<u64> {
    let lines = e2llm_data::open(path)?.split(b'\n');
    lines.into_iter().try_fold(0, |count, line| line.map(|_| count + 1)).context("cannot read --input")
}

/// The decoder of the bundle without its LoRA, reading text and no soft tokens.
struct FullText {
    generator: Generator,
    options: Options,
}

impl FullText {
    fn load(settings: &Settings, max_tokens: usize) -> Result<Self> {
        let LocalBundle { mut bundle, decoder, device, .. } = LocalBundle::prepare(settings)?;
        bundle.config.lora = None;
        let generator = Generator::load(&bundle, &decoder_files(&decoder), &device)?;
        // Greedy, so that a resumed run writes what an unbroken one would have written.
        let options = Options { max_tokens, sampler: SamplerOptions::default(), stop: Vec::new() };
        Ok(Self { generator, options })
    }

    fn prompt(&self, context: &str, prompt: &str) -> Result<Option<Vec<Piece>>, e2llm_model::ModelError> {
        if context.len() > BYTES_PER_TOKEN * self.generator.window() {
            return Ok(None);
        }
        let document = Piece::Tokens(self.generator.tokenizer().encode_plain(context)?);
        let pieces = self.generator.prompt(vec![document], prompt)?;
        let fits = self.generator.positions(&pieces) + self.options.max_tokens <= self.generator.window();
        Ok(fits.then_some(pieces))
    }
}

impl Teacher for FullText {
    fn count(&self, text: &str) -> e2llm_data::Result<usize> {
        self.generator.tokenizer().count(text).map_err(DataError::model)
    }

    fn answer(&mut self, context: &str, prompt: &str) -> e2llm_data::Result<Option<Taught>> {
        let Some(pieces) = self.prompt(context, prompt).map_err(DataError::model)? else { return Ok(None) };
        let mut text = String::new();
        let mut emit = |piece: &str| {
            text.push_str(piece);
            true
        };
        let done = self.generator.generate(&pieces, &self.options, &mut emit).map_err(DataError::model)?;
        let (read, is_finished) = (self.generator.positions(&pieces), done.finish == Finish::Stop);
        Ok(Some(Taught { text, is_finished, read, written: done.tokens }))
    }
}
