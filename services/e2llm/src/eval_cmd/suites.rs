//! Where the tasks of an evaluation come from: benchmarks by name, or files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::Args;
use e2llm_data::prepare::{self, Job, Report};
use e2llm_data::{DataError, Haystack, Line, Lines, PlainLine, RulerSources, RulerTask, Split, Synthesizer};
use e2llm_model::prompt::{self, SUMMARIZE};
use e2llm_weights::{HubOptions, ModelRef, Progress};

use super::tasks::Tasks;
use crate::bundle::{LocalBundle, decoder_files};
use crate::data_cmd::tokenizer;
use crate::failure::warn_line;
use crate::progress::Meter;
use crate::settings::Settings;

/// Tasks of each configuration and length of RULER, where nothing is said.
const RULER_SAMPLES: usize = 5;

/// What to evaluate on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Suite {
    Ruler,
    /// A benchmark that is read in its published form.
    Published(&'static Published),
    /// Tasks.
    File(PathBuf),
}

type Reader = fn(&mut Job<'_>) -> e2llm_data::Result<Report>;

/// A benchmark whose data the user brings.
#[derive(Debug)]
pub(super) struct Published {
    name: &'static str,
    read: Reader,
    /// What to give.
    input: &'static str,
}

impl PartialEq for Published {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Published {}

static PUBLISHED: [Published; 9] = [
    Published {
        name: "abstracts",
        read: prepare::rfc,
        input: "the directory into which Debian's doc-rfc packages were unpacked, or test-tasks.jsonl of `e2llm data prepare rfc`",
    },
    Published {
        name: "longbench-v2",
        read: prepare::longbench_v2,
        input: "data.json, or hub:THUDM/LongBench-v2:data.json",
    },
    Published { name: "quality", read: prepare::quality, input: "QuALITY.v1.0.1.htmlstripped.dev" },
    Published { name: "qmsum", read: prepare::qmsum, input: "data/ALL/jsonl/test.jsonl of its repository" },
    Published { name: "govreport", read: prepare::govreport, input: "JSON Lines of {\"report\", \"summary\"}" },
    Published { name: "triviaqa", read: prepare::triviaqa, input: "the directory with qa/ and evidence/" },
    Published { name: "narrativeqa", read: prepare::narrativeqa, input: "the repository's directory, stories in tmp/" },
    Published { name: "squad", read: prepare::squad, input: "dev-v2.0.json" },
    Published { name: "hotpotqa", read: prepare::hotpotqa, input: "hotpot_dev_distractor_v1.json" },
];

impl FromStr for Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let published = PUBLISHED.iter().find(|published| published.name == text);
        match (text, published) {
            ("ruler", _) => Ok(Self::Ruler),
            (_, Some(published)) => Ok(Self::Published(published)),
            _ if Path::new(text).extension().is_some() || Path::new(text).exists() => Ok(Self::File(text.into())),
            _ => {
                let names: Vec<&str> = PUBLISHED.iter().map(|published| published.name).collect();
                Err(format!("{text:?} is neither ruler, {} nor a file of tasks", names.join(", ")))
            }
        }
    }
}

/// Flags of the suites.
#[derive(Debug, Args)]
pub(super) struct SuiteArgs {
    /// Data of a published benchmark: files or directories as they are published, or `hub:ORG/NAME:FILE` (after NAME, @REVISION pins one)
    #[arg(long, value_name = "PATH")]
    input: Vec<String>,
    /// RULER: texts to hide things in, JSON Lines of {"id", "text", "abstract"?}; without it, 49 essays are fetched, which have no
    /// abstracts to ask qa_1 and qa_2 about
    #[arg(long, value_name = "FILE")]
    haystack: Option<PathBuf>,
    /// RULER: lengths of documents in decoder tokens, met within 5 % and never exceeded
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "4k,8k,16k", value_parser = tokens)]
    lengths: Vec<usize>,
    /// RULER: its configurations, all thirteen where nothing is said (qa_1 and qa_2 where there is something to ask)
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    tasks: Vec<RulerTask>,
    /// RULER: SQuAD's questions for qa_1, dev-v2.0.json or the like, or tasks of `data prepare` such as abbreviations
    #[arg(long, value_name = "FILE")]
    squad: Option<PathBuf>,
    /// RULER: HotpotQA's questions for qa_2, hotpot_dev_distractor_v1.json or the like
    #[arg(long, value_name = "FILE")]
    hotpotqa: Option<PathBuf>,
    /// Which tasks are sampled of files; of RULER the seed of the first task of each configuration and length, the others follow
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

/// `4096` or `4k`.
fn tokens(text: &str) -> Result<usize, String> {
    let (digits, unit) = text.strip_suffix(['k', 'K']).map_or((text, 1), |digits| (digits, 1024));
    let number = digits.parse::<usize>().ok().and_then(|number| number.checked_mul(unit));
    number.filter(|number| *number >= e2llm_data::MIN_TOKENS).ok_or_else(|| {
        format!("{text:?} is no number of tokens of {} or more, such as 4096 or 4k", e2llm_data::MIN_TOKENS)
    })
}

impl SuiteArgs {
    /// The tasks of the suites, at most `samples` of each kind and length. Blocks.
    pub(super) fn tasks(&self, suites: &[Suite], samples: Option<usize>, settings: &Settings) -> Result<Tasks> {
        let mut tasks = Tasks::new(samples, self.seed);
        for (number, suite) in suites.iter().enumerate() {
            if suites[..number].contains(suite) {
                bail!("a suite or file was given twice; give each once");
            }
            match suite {
                Suite::File(path) => tasks.read("", path)?,
                Suite::Ruler => self.ruler(&mut tasks, samples.unwrap_or(RULER_SAMPLES), settings)?,
                Suite::Published(published) => self.published(published, &mut tasks, settings)?,
            }
        }
        tasks.finish()?;
        Ok(tasks)
    }

    fn published(&self, published: &Published, tasks: &mut Tasks, settings: &Settings) -> Result<()> {
        let Published { name, read, input } = published;
        if self.input.is_empty() {
            bail!("{name} needs its data: --input PATH, where PATH is {input}");
        }
        let mut published = Vec::new();
        for input in &self.input {
            let path = local(input, settings)?;
            match is_tasks(&path)? {
                true => tasks.read(name, &path)?,
                false => published.push(path),
            }
        }
        if published.is_empty() {
            return Ok(());
        }
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        prepared(*read, &published, directory.path())?;
        tasks.read(name, &directory.path().join("test-tasks.jsonl"))
    }

    fn ruler(&self, tasks: &mut Tasks, samples: usize, settings: &Settings) -> Result<()> {
        let texts = match &self.haystack {
            Some(path) => Haystack::read(path, true)?,
            None => essays(settings)?,
        };
        let one_hop = self.questions(self.squad.as_deref(), prepare::squad, &texts)?;
        let two_hops = self.questions(self.hotpotqa.as_deref(), prepare::hotpotqa, &texts)?;
        let tokenizer = tokenizer(&decoder_files(&LocalBundle::prepare(settings)?.decoder))?;
        let synthesizer = Synthesizer {
            haystack: &texts,
            count: &|text| tokenizer.count(text).map_err(DataError::model),
            question: prompt::question,
        };
        let sources = RulerSources { texts: &texts, one_hop: one_hop.as_ref(), two_hops: two_hops.as_ref() };
        let (kinds, lengths) = (self.kinds(&sources), BTreeSet::from_iter(self.lengths.iter().copied()));
        let mut meter = Meter::start("ruler", "tasks", settings.quiet);
        let of = (kinds.len() * lengths.len() * samples) as u64;
        let mut made = 0;
        for (kind, length) in kinds.iter().flat_map(|kind| lengths.iter().map(move |length| (*kind, *length))) {
            for number in 0..samples as u64 {
                let line = kind.line(&sources, &synthesizer, length, self.seed.wrapping_add(number))?;
                tasks.add("ruler", e2llm_data::TaskLine { split: Some(Split::Test), ..line }, Some(length));
                made += 1;
                meter.update(made, Some(of), "");
            }
        }
        Ok(())
    }

    /// The configurations asked for, or all that the sources have something for.
    fn kinds(&self, sources: &RulerSources<'_>) -> BTreeSet<RulerTask> {
        if !self.tasks.is_empty() {
            return self.tasks.iter().copied().collect();
        }
        let possible = |kind: &RulerTask| match kind {
            RulerTask::Qa1 => sources.one_hop.is_some() || sources.texts.has_questions(1),
            RulerTask::Qa2 => sources.two_hops.is_some() || sources.texts.has_questions(2),
            _ => true,
        };
        let (kinds, left_out): (BTreeSet<_>, BTreeSet<_>) = RulerTask::ALL.into_iter().partition(possible);
        for kind in left_out {
            let name = kind.name();
            warn_line(&format!(
                "{name} is left out: the haystack has nothing to ask about; give --squad and --hotpotqa, or a --haystack with abstracts"
            ));
        }
        kinds
    }

    fn questions(&self, path: Option<&Path>, read: Reader, texts: &Haystack) -> Result<Option<Haystack>> {
        let Some(path) = path else { return Ok(None) };
        let directory = tempfile::tempdir().context("cannot make a temporary directory")?;
        let tasks = if is_tasks(path)? {
            path.to_owned()
        } else {
            prepared(read, &[path.to_owned()], directory.path())?;
            directory.path().join("test-tasks.jsonl")
        };
        let lines = Lines::open(&tasks)?.collect::<Result<Vec<Line>, _>>()?;
        Ok(Some(Haystack::of_questions(lines, texts)?))
    }
}

/// Reads a benchmark in its published form into task lines.
fn prepared(read: Reader, inputs: &[PathBuf], output: &Path) -> Result<Report> {
    let question = prompt::question;
    Ok(read(&mut Job { inputs, output, seed: 0, summarize: SUMMARIZE, question, progress: &mut |_, _| {} })?)
}

/// Whether a file holds tasks already, as `data prepare` writes them.
fn is_tasks(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let first = Lines::open(path)?.next();
    Ok(matches!(first, Some(Ok(Line::Task(task))) if !task.prompt.is_empty()))
}

/// A path, or a file of a dataset on a model hub.
fn local(input: &str, settings: &Settings) -> Result<PathBuf> {
    let Some(reference) = input.strip_prefix("hub:") else { return Ok(input.into()) };
    let progress = if settings.quiet { Progress::Hidden } else { Progress::Auto };
    Ok(HubOptions::from_env().dataset_file(&ModelRef::parse(reference)?, progress)?)
}

/// Essays, the haystack that RULER's authors took, too.
fn essays(settings: &Settings) -> Result<Haystack> {
    let sample = settings.fetcher()?.fetch_sample("essays")?;
    let line = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Line::Plain(PlainLine { id, text, summary: None, split: None }))
    };
    Ok(Haystack::new(sample.files.iter().map(line).collect::<Result<Vec<Line>>>()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_known_by_name_and_files_by_what_they_look_like() {
        let suite = |text: &str| text.parse::<Suite>();
        assert_eq!(suite("ruler"), Ok(Suite::Ruler));
        assert!(matches!(suite("qmsum"), Ok(Suite::Published(own)) if own.name == "qmsum"));
        assert_eq!(suite("own.jsonl"), Ok(Suite::File("own.jsonl".into())));
        assert!(suite("rulr").unwrap_err().contains("\"rulr\" is neither ruler, abstracts, longbench-v2"));
    }

    #[test]
    fn lengths_are_written_as_numbers_or_in_thousands_of_1024() {
        assert_eq!((tokens("4k"), tokens("128K"), tokens("1000")), (Ok(4096), Ok(131_072), Ok(1000)));
        assert!(tokens("4m").unwrap_err().contains("\"4m\"") && tokens("100").is_err() && tokens("k").is_err());
    }
}
