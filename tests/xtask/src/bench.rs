//! `cargo xtask bench peers`: our contestant and every peer side by side, as `tests/bench/PEERS.md` says.

mod contestant;
mod prepare;
mod report;
mod works;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::run::{self, root};
use contestant::{Contestant, Reply};
use prepare::Prepared;
use report::{Absent, Measured, Rounds, Row};
use works::{MODEL, SERVICES, Work};

/// Between two turns: until the threads of the one before have ceased to spin.
const PAUSE: Duration = Duration::from_millis(300);
/// Peers and their programs.
const PEERS: [(&str, &str); 4] = [
    ("onnxruntime", "peers/onnx_encoder.py"),
    ("sentence-transformers", "peers/sentence.py"),
    ("torch", "peers/torch_decoder.py"),
    ("llama.cpp", "peers/llama.py"),
];

/// `cargo xtask bench`
#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Our speed beside that of other systems: same weights, same inputs, in turns
    Peers(PeersArgs),
}

/// `cargo xtask bench peers`
#[derive(Args)]
pub(crate) struct PeersArgs {
    /// Only works of these names, or those that begin so: encode,prefill-1024
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,
    /// Only these peers: onnxruntime, sentence-transformers, torch, llama.cpp
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    peers: Vec<String>,
    /// Print JSON, one row per line
    #[arg(long)]
    json: bool,
    /// Rounds that count, after one that does not
    #[arg(long, value_name = "N", default_value_t = 7)]
    rounds: u32,
    /// Threads of every contestant [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The peers' Python [default: target/bench-python, with tests/bench/requirements.txt]
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// Our program, built elsewhere [default: built now]
    #[arg(long, value_name = "PATH", visible_alias = "binary")]
    contestant: Option<PathBuf>,
    /// Texts as JSON Lines of {"id","text"} [default: the essays of sample:essays]
    #[arg(long, value_name = "PATH")]
    corpus: Option<PathBuf>,
    /// Documents to summarise, a part of them in each round
    #[arg(long, value_name = "N", default_value_t = 100)]
    documents: u32,
    /// Divide the sizes of all inputs by this, to see that everything runs: the figures mean nothing then
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    shrink: u32,
    /// Longest time for one answer, in minutes
    #[arg(long, value_name = "MINUTES", default_value_t = 120)]
    timeout: u64,
    /// Do not install or fetch anything: what is needed is there
    #[arg(long)]
    offline: bool,
}

/// Prepares, measures, and prints rows.
pub(crate) fn run(Bench::Peers(args): &Bench) -> Result<()> {
    ensure!(args.rounds > 0 && args.documents > 0, "--rounds and --documents must be at least 1");
    let works = works::chosen(&args.only)?;
    if let Some(unknown) = args.peers.iter().find(|name| !PEERS.iter().any(|(peer, _)| peer == name)) {
        bail!("no peer is called `{unknown}`: --peers takes {}", PEERS.map(|(peer, _)| peer).join(", "));
    }
    let prepared = prepare::prepare(args)?;
    if args.shrink > 1 {
        eprintln!("inputs are {} times smaller than their names say: figures mean nothing", args.shrink);
    }
    let mut field = Field { args, prepared, running: BTreeMap::new() };
    let mut rows = Vec::new();
    for (number, work) in works.iter().enumerate() {
        eprintln!("[{}/{}] {}", number + 1, works.len(), work.name);
        let measured = field.rows(work)?;
        if args.json {
            measured.iter().for_each(|row| println!("{}", row.json()));
        }
        rows.extend(measured);
    }
    if !args.json {
        println!("{}", report::table(&rows));
    }
    let failures: Vec<String> = rows.iter().filter_map(Row::failure).collect();
    ensure!(failures.is_empty(), "{} rows have no ratio:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

/// All contestants, started when they are first needed, and asked one at a time.
struct Field<'a> {
    args: &'a PeersArgs,
    prepared: Prepared,
    running: BTreeMap<&'static str, Contestant>,
}

impl Field<'_> {
    /// One row per peer of a work.
    fn rows(&mut self, work: &Work) -> Result<Vec<Row>> {
        let chosen = |peer: &str| self.args.peers.is_empty() || self.args.peers.iter().any(|name| name == peer);
        let wanted = |peer: &str| peer == MODEL || chosen(peer);
        let against: Vec<_> = work.against.iter().copied().filter(|against| wanted(against.peer)).collect();
        if against.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&'static str> =
            std::iter::once(work.ours).chain(against.iter().map(|against| against.peer)).collect();
        let mut measured: Vec<Rounds> = names.iter().map(|_| Ok(Vec::new())).collect();
        for round in 0..=self.rounds(work) {
            for (name, rounds) in names.iter().zip(&mut measured) {
                self.turn(name, work, round, rounds)?;
            }
        }
        let ours = measured.remove(0);
        let versions =
            against.iter().map(|against| self.running.get(against.peer).map_or("", |running| &running.version));
        let rows = against.iter().zip(versions).zip(measured);
        Ok(rows
            .map(|((against, version), peer)| Row::new(work, *against, version.to_owned(), ours.clone(), peer))
            .collect())
    }

    /// A work of parts has as many as there are documents, at most.
    fn rounds(&self, work: &Work) -> u32 {
        let there = |round: &u32| self.prepared.inputs.join(work.file(*round)).exists();
        if work.parts {
            (1..=self.args.rounds).take_while(there).count().try_into().unwrap_or(1)
        } else {
            self.args.rounds
        }
    }

    /// One contestant's turn in a round; round 0 warms up. After a failure it has no more turns in this work.
    fn turn(&mut self, name: &'static str, work: &Work, round: u32, rounds: &mut Rounds) -> Result<()> {
        let Ok(measured) = rounds.as_mut() else { return Ok(()) };
        if work.cold && name == MODEL {
            self.evict()?;
        }
        sleep(PAUSE);
        match self.ask(name, work, round) {
            Ok(Reply::Done { seconds, units, note }) => {
                let figure = work.unit.figure(seconds, units);
                let warm = if round == 0 { "warm-up".to_owned() } else { format!("round {round}") };
                eprintln!("  {warm} {name}: {figure:.2} {} ({seconds:.2} s)", work.unit.name());
                if round > 0 {
                    measured.push(Measured { figure, note });
                }
            }
            Ok(Reply::Unsupported(reason)) => *rounds = absent(name, Absent::Unsupported(reason)),
            Ok(Reply::Failed(reason)) => *rounds = absent(name, Absent::Failed(reason)),
            Err(error) => {
                self.running.remove(name);
                *rounds = absent(name, Absent::Failed(format!("{error:#}")));
            }
        }
        Ok(())
    }

    fn ask(&mut self, name: &'static str, work: &Work, round: u32) -> Result<Reply> {
        let inputs = self.prepared.inputs.join(work.file(round));
        let mut request = json!({ "work": work.name, "round": round, "inputs": inputs, "ratio": work.ratio });
        request["budget"] = json!(work.budget);
        request["cold"] = json!(work.cold);
        if !self.running.contains_key(name) {
            let started = self.start(name)?;
            self.running.insert(name, started);
        }
        self.running.get_mut(name).context("it was not started")?.ask(&request)
    }

    fn start(&self, name: &str) -> Result<Contestant> {
        let prepared = &self.prepared;
        let python = |file: &str| {
            let mut python = Command::new(&prepared.python);
            python.arg(root().join("tests/bench").join(file));
            python
        };
        let mut command = match PEERS.iter().find(|(peer, _)| *peer == name) {
            Some((_, file)) => python(file),
            None if name == SERVICES => {
                let mut services = python("services.py");
                services.arg("--binary").arg(prepared.binary.with_file_name("e2llm"));
                services
            }
            None => Command::new(&prepared.binary),
        };
        let threads = self.threads().to_string();
        command.arg("--encoder").arg(&prepared.encoder).arg("--decoder").arg(&prepared.decoder);
        command.arg("--cache").arg(prepared.cache.join(name)).args(["--threads", &threads]);
        for variable in ["OMP_NUM_THREADS", "RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            command.env(variable, &threads);
        }
        command.env("HF_HUB_OFFLINE", "1").env("TOKENIZERS_PARALLELISM", "false");
        let log = prepared.logs.join(format!("{name}.log"));
        Contestant::start(&mut command, &log, Duration::from_secs(60 * self.args.timeout))
    }

    fn threads(&self) -> usize {
        self.args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }

    /// Puts our stored soft prompts out of the page cache.
    fn evict(&self) -> Result<()> {
        let script = root().join("tests/bench/peers/evict.py");
        run::output(Command::new(&self.prepared.python).arg(script).arg(self.prepared.cache.join(MODEL))).map(drop)
    }
}

fn absent(name: &str, absent: Absent) -> Rounds {
    eprintln!("  {name}: {absent:?}");
    Err(absent)
}
