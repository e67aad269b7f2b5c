//! `e2llm jobs submit train` and `e2llm jobs bundle`: training as a job of the whole fleet.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use anyhow::{Context, Result, bail};
use e2llm_api::MAX_PIECE_BYTES;
use e2llm_api::v1::train_round::Kind;
use e2llm_api::v1::{
    BundlePiece, GetBundleRequest, JobKind, JobSpec, JobStatus, RowResult, TextPiece, TextRef, TrainRound, TrainSpec,
};
use e2llm_train::{Corpus, Recipe, Start, rounds, write_bundle};
use futures::TryStreamExt;

use super::super::bulk::common_spec;
use crate::app::App;
use crate::cli::TrainWork;
use crate::failure::{of_call, warn_line};
use crate::job::{self, Audience, JobName, Rows};
use crate::local::{Needs, Services};
use crate::progress::Progress;

/// Bytes after which a block of training data is closed: few objects, none too large to send again.
const BLOCK_BYTES: usize = 4 << 20;

/// Stores the data and plans the job: its name, and the services that planned it.
pub(super) async fn submit(app: &App, work: &TrainWork) -> Result<(Services, String)> {
    let text = read(&work.recipe)?;
    let recipe = Recipe::parse(&text)?;
    let train = spec(work, text, &recipe)?;
    let services = app.services(Needs::Records).await?;
    match plan(app, &services, work, train).await {
        Ok(job) => Ok((services, job)),
        Err(error) => {
            services.stop().await;
            Err(error)
        }
    }
}

async fn plan(app: &App, services: &Services, work: &TrainWork, mut train: TrainSpec) -> Result<String> {
    let quiet = app.settings.quiet || app.settings.json;
    train.data = app.interruptible(store_data(services, &work.inputs, quiet)).await??;
    let spec = JobSpec { kind: JobKind::Train.into(), train: Some(train), ..JobSpec::default() };
    let spec = work.options.apply_to(common_spec(app, services, spec).await?)?;
    let typed = format!("{:?} {:?}", work.recipe, work.inputs);
    let name = match &work.job {
        Some(name) => JobName::Given(name.clone()),
        None => JobName::Submitted(JobName::prefix("submit", &spec, &typed)),
    };
    let chosen = app.interruptible(name.choose(services)).await??;
    let mut audience = Silent(Progress::start("train", true));
    job::submit(services, spec, Rows::none(), &chosen, &mut audience, &app.shutdown).await?;
    Ok(chosen.job_id)
}

fn spec(work: &TrainWork, text: String, recipe: &Recipe) -> Result<TrainSpec> {
    if !recipe.makes_bundle() || recipe.start == Start::Bundle {
        bail!(
            "this recipe makes no bundle (table features, or a decoder trained in full) or starts from one; train it with `e2llm train`"
        );
    }
    let pairs = work.pairs as usize;
    let members = u32::try_from(pairs)?;
    let joint = rounds(recipe, work.local_steps, pairs)?.into_iter().map(|round| {
        Ok(TrainRound {
            kind: Kind::Joint.into(),
            stage: u32::try_from(round.stage)?,
            first_step: u32::try_from(round.first_step)?,
            steps: u32::try_from(round.steps)?,
            first_sample: round.first_sample,
            members,
        })
    });
    let pretrain = recipe
        .pretrain
        .iter()
        .map(|_| Ok(TrainRound { kind: Kind::Pretrain.into(), members: 1, ..TrainRound::default() }));
    let mut rounds = pretrain.chain(joint).collect::<Result<Vec<_>>>()?;
    let stage = rounds.last().map_or(0, |round| round.stage);
    rounds.push(TrainRound { kind: Kind::Export.into(), stage, members: 1, ..TrainRound::default() });
    Ok(TrainSpec {
        recipe: text,
        data: Vec::new(),
        members,
        rounds,
        outer_rate: work.outer_rate,
        outer_momentum: work.outer_momentum,
        quorum: work.quorum.unwrap_or(0),
        quorum_wait_s: u32::try_from(work.quorum_wait.as_secs())?,
        bundle_name: work.name.clone(),
    })
}

/// Puts JSON lines into the store, in blocks of whole lines; the same lines are the same blocks.
async fn store_data(services: &Services, inputs: &[std::path::PathBuf], quiet: bool) -> Result<Vec<TextRef>> {
    let mut texts = Vec::new();
    let (mut block, mut bytes) = (String::new(), 0);
    for input in inputs {
        let file = std::fs::File::open(input).with_context(|| format!("cannot read {}", input.display()))?;
        for (number, line) in std::io::BufReader::new(file).lines().enumerate() {
            let line = line.with_context(|| format!("cannot read {}", input.display()))?;
            check(&line).with_context(|| format!("{} line {}", input.display(), number + 1))?;
            block.push_str(&line);
            block.push('\n');
            if block.len() >= BLOCK_BYTES {
                bytes += block.len();
                texts.push(put(services, std::mem::take(&mut block)).await?);
            }
        }
    }
    if !block.trim().is_empty() {
        bytes += block.len();
        texts.push(put(services, block).await?);
    }
    if texts.is_empty() {
        bail!("the input holds no documents; give JSON Lines of {{\"id\", \"text\"}}");
    }
    if !quiet {
        warn_line(&format!("{} bytes of training data stored in {} blocks", bytes, texts.len()));
    }
    Ok(texts)
}

/// Members read the data hours from now: what they could not use is said before anything is stored.
fn check(line: &str) -> Result<()> {
    if line.trim().is_empty() {
        return Ok(());
    }
    let mut corpus = Corpus::default();
    corpus.push(line).map_err(anyhow::Error::msg)?;
    Ok(corpus.refuse_test()?)
}

async fn put(services: &Services, block: String) -> Result<TextRef> {
    let pieces: Vec<TextPiece> =
        block.as_bytes().chunks(MAX_PIECE_BYTES).map(|piece| TextPiece { text: piece.to_vec() }).collect();
    let put = async || services.coordinator().put_text(tokio_stream::iter(pieces.clone())).await;
    let policy = e2llm_runtime::RetryPolicy::default();
    let stored = e2llm_runtime::retry(&policy, "Coordinator.PutText", services.address(), put).await;
    stored.map_err(of_call)?.into_inner().text.context("the coordinator stored no text")
}

/// Fetches the bundle that a training job has written into `directory`.
pub(super) async fn fetch_bundle(services: &Services, status: &JobStatus, directory: &Path) -> Result<String> {
    let fingerprint = status.train.as_ref().map(|train| train.bundle.clone()).unwrap_or_default();
    let request = GetBundleRequest { job_id: status.job_id.clone() };
    let mut pieces = services.coordinator().get_bundle(request).await.map_err(of_status)?.into_inner();
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    while let Some(BundlePiece { file, bytes }) = pieces.try_next().await.map_err(of_status)? {
        files.entry(file).or_default().extend(bytes);
    }
    write_bundle(directory, &files)?;
    Ok(fingerprint)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn of_status(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!(e2llm_runtime::cause_of(&status))
}

/// Planning a training job takes one step.
struct Silent(Progress);

impl Audience for Silent {
    fn row(&mut self, _: &RowResult) -> Result<()> {
        Ok(())
    }

    fn progress(&mut self) -> &mut Progress {
        &mut self.0
    }

    fn rows(&self) -> u64 {
        0
    }
}
