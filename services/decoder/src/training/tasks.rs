use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use e2llm_api::v1::encoder_client::EncoderClient;
use e2llm_api::v1::train_round::Kind;
use e2llm_api::v1::{
    JobSpec, MemberRound, ObjectRef, ObjectiveLoss, OpenSession, RowError, RowResult, ShareProgress, SideState, Task,
    TaskRef, TrainRound, TrainSpec, TrainTask,
};
use e2llm_runtime::Channel;
use e2llm_runtime::failpoint::{begin_row, reach};
use e2llm_runtime::worker::{TaskHandler, task_ref};
use e2llm_runtime::{CancellationToken, async_trait};
use e2llm_store::Store;
use e2llm_train::pretrain::TokenEmbeddings;
use e2llm_train::run::pretrain_passages;
use e2llm_train::{Corpus, Recipe, Round, Share, TrainError, decoder_side, deserialize, overlay, serialize};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::corpus::Corpora;
use super::error::ShareError;
use super::models::{DecoderSide, Held, LoadDecoderSide};
use super::remote::RemoteSession;
use super::totals::{Totals, microseconds};

/// How long an encoder that is away is waited for, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);

/// Does the shares of training jobs: the decoder side of a pair, whose other side is an encoder.
#[derive(Clone)]
pub struct TrainTasks {
    store: Store,
    encoder: EncoderClient<Channel>,
    held: Arc<Held>,
    corpora: Arc<Corpora>,
    progress: Arc<Mutex<Option<ShareProgress>>>,
}

impl std::fmt::Debug for TrainTasks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainTasks").finish_non_exhaustive()
    }
}

/// One share with everything it is a function of. Its work blocks.
pub(super) struct Work {
    pub(super) store: Store,
    pub(super) encoder: EncoderClient<Channel>,
    pub(super) runtime: Handle,
    pub(super) cancel: CancellationToken,
    pub(super) job: String,
    pub(super) spec: TrainSpec,
    pub(super) task: TrainTask,
    pub(super) round: TrainRound,
    pub(super) attempt: u32,
    pub(super) recipe: Recipe,
    corpus: Arc<Corpus>,
    /// Of the share that computes, for whoever reports.
    progress: Arc<Mutex<Option<ShareProgress>>>,
    reference: TaskRef,
}

impl TrainTasks {
    /// Shares whose encoder side is `encoder`.
    pub fn new(store: Store, encoder: EncoderClient<Channel>, load: LoadDecoderSide) -> Self {
        Self { store, encoder, held: Arc::new(Held::new(load)), corpora: Arc::default(), progress: Arc::default() }
    }

    async fn share(&self, task: Task, cancel: CancellationToken) -> Result<MemberRound, ShareError> {
        let missing = |what: &str| ShareError::Task(format!("it has no {what}"));
        let reference = task_ref(&task);
        let train = task.train.ok_or_else(|| missing("share"))?;
        let JobSpec { train: spec, .. } = task.spec.ok_or_else(|| missing("spec"))?;
        let spec = spec.ok_or_else(|| missing("training"))?;
        let round = spec.rounds.get(train.round as usize).cloned().ok_or_else(|| missing("round"))?;
        let work = Work {
            store: self.store.clone(),
            encoder: self.encoder.clone(),
            runtime: Handle::current(),
            cancel,
            job: task.job_id,
            recipe: Recipe::parse(&spec.recipe)?,
            corpus: self.corpora.get(&self.store, &spec.data).await?,
            spec,
            task: train,
            round,
            attempt: task.attempt,
            progress: self.progress.clone(),
            reference,
        };
        let held = self.held.clone();
        let done = tokio::task::spawn_blocking(move || work.run(&held));
        done.await.map_err(|error| ShareError::Task(format!("its thread ended: {error}")))?
    }
}

#[async_trait]
impl TaskHandler for TrainTasks {
    async fn run(&self, task: Task, cancel: CancellationToken) -> Result<Vec<RowResult>, RowError> {
        let Some(row) = task.rows.first().cloned() else { return Ok(Vec::new()) };
        begin_row("train", &row.id);
        let result = RowResult { number: row.number, id: row.id, ..RowResult::default() };
        match self.share(task, cancel).await {
            Ok(member) => Ok(vec![RowResult { member: Some(member), ..result }]),
            Err(error) => Err(error.row()),
        }
    }

    fn progress(&self, task: &TaskRef) -> Option<ShareProgress> {
        let told = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone().filter(|told| told.task.as_ref() == Some(task))
    }
}

impl Work {
    fn run(self, held: &Held) -> Result<MemberRound, ShareError> {
        let side = held.take()?;
        match self.round.kind() {
            Kind::Joint => self.joint(side, held),
            Kind::Export => {
                let exported = self.export(&side);
                held.put_back(side);
                exported
            }
            Kind::Pretrain => {
                let pretrained = self.pretrain(&side);
                held.put_back(side);
                pretrained
            }
            Kind::Unspecified => {
                held.put_back(side);
                Err(ShareError::Task("its round has no kind".to_owned()))
            }
        }
    }

    /// Opens a session that starts from `state`. An encoder that is away is waited for: the share's attempts are for what
    /// happens to the share.
    pub(super) fn session(&self, side: &DecoderSide, state: Option<SideState>) -> Result<RemoteSession, ShareError> {
        let target = side.words.target;
        let open = OpenSession {
            recipe: self.spec.recipe.clone(),
            stage: self.round.stage,
            d_model: u32::try_from(target.d_model).unwrap_or(u32::MAX),
            embedding_rms: target.embedding_rms,
            ratio: u32::try_from(self.ratio_of_state()).unwrap_or(u32::MAX),
            is_pretraining: self.round.kind() == Kind::Pretrain,
            state,
        };
        let until = Instant::now() + PATIENCE;
        loop {
            match RemoteSession::open(self.runtime.clone(), self.encoder.clone(), open.clone()) {
                Err(TrainError::Session { message, is_retriable: true }) if Instant::now() < until => {
                    warn!(job_id = self.job, cause = message, "no session with the encoder; trying again");
                    std::thread::sleep(PAUSE);
                }
                opened => return Ok(opened?),
            }
            if self.cancel.is_cancelled() {
                return Err(TrainError::Stopped.into());
            }
        }
    }

    /// Word pieces per soft token of what the round before has left, or of the start.
    fn ratio_of_state(&self) -> usize {
        let stage = match (self.round.kind(), self.task.round.checked_sub(1)) {
            (Kind::Pretrain, _) => {
                let own = self.recipe.pretrain.as_ref().and_then(|stage| stage.ratio);
                return own.unwrap_or_else(|| self.recipe.ratio_at(0));
            }
            (_, Some(before)) => self.spec.rounds.get(before as usize).map_or(0, |round| round.stage),
            (_, None) => 0,
        };
        self.recipe.ratio_at(stage as usize)
    }

    fn joint(self, side: DecoderSide, held: &Held) -> Result<MemberRound, ShareError> {
        let started = Instant::now();
        let session = self.session(&side, self.task.encoder.clone())?;
        let DecoderSide { decoder, words } = side;
        let sampler = words.sampler(&self.recipe)?;
        let stage = self.round.stage as usize;
        let mut trainer = decoder_side(&self.recipe, stage, session, decoder)?;
        let state = self.task.decoder.clone().unwrap_or_default();
        let (moments, parameters) = (self.read(state.moments.as_ref())?, self.read(state.parameters.as_ref())?);
        let fresh = trainer.save_decoder()?;
        trainer.restore_decoder(&overlay(fresh, moments, parameters))?;
        let mut totals = Totals::default();
        self.own_share().run(&self.recipe, &mut trainer, &sampler, &self.corpus, |step, progress| {
            reach("decoder.trained_step");
            info!(
                job_id = self.job,
                round = self.task.round,
                member = self.task.member,
                step,
                loss = progress.loss,
                "step"
            );
            totals.add(progress);
            self.tell(step, &totals);
            !self.cancel.is_cancelled()
        })?;
        let encoder = trainer.session.save_to(&self.prefix("encoder"))?;
        let bytes = serialize(&trainer.save_decoder()?)?;
        let prefix = self.prefix("decoder");
        let state = self.runtime.block_on(self.store.put_named(&prefix, ".safetensors", bytes.into()))?;
        reach("decoder.state_saved");
        held.put_back(DecoderSide { decoder: trainer.into_decoder()?, words });
        Ok(totals.member(encoder, state, started))
    }

    /// Says how far the share is after so many steps.
    fn tell(&self, steps: usize, totals: &Totals) {
        let told = ShareProgress {
            task: Some(self.reference.clone()),
            steps: u32::try_from(steps).unwrap_or(u32::MAX),
            so_far: Some(totals.so_far()),
        };
        *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(told);
    }

    /// Has the encoder side fit its adapter to this decoder's embeddings.
    fn pretrain(&self, side: &DecoderSide) -> Result<MemberRound, ShareError> {
        let started = Instant::now();
        let none = || ShareError::Task("the recipe has no pretraining".to_owned());
        let stage = self.recipe.pretrain.as_ref().ok_or_else(none)?;
        let sampler = side.words.sampler(&self.recipe)?;
        let passages = pretrain_passages(&self.recipe, stage, &sampler, &self.corpus)?;
        let mut session = self.session(side, None)?;
        let done = session.pretrain(passages, &TokenEmbeddings::of(&side.decoder)?, |progress| {
            info!(job_id = self.job, step = progress.step, of = progress.of, loss = progress.loss, "pretraining");
            !self.cancel.is_cancelled()
        })?;
        let encoder = Some(session.save_to(&self.prefix("encoder"))?);
        let targets = u64::from(done.of) * (stage.batch as u64);
        let losses = vec![ObjectiveLoss { objective: "pretrain".to_owned(), loss: done.loss.into(), targets }];
        Ok(MemberRound { encoder, losses, busy_us: microseconds(started), ..MemberRound::default() })
    }

    fn own_share(&self) -> Share {
        let TrainRound { stage, first_step, steps, first_sample, members, .. } = self.round;
        let round =
            Round { stage: stage as usize, first_step: first_step as usize, steps: steps as usize, first_sample };
        Share { round, member: self.task.member as usize, members: members as usize }
    }

    /// Where a side writes its state, without the hash.
    fn prefix(&self, side: &str) -> String {
        let (job, TrainTask { round, member, .. }) = (&self.job, &self.task);
        format!("train/{job}/rounds/{round:06}/member-{member}-{}-{side}", self.attempt)
    }

    /// Tensors of an object, if one is named. Blocks.
    pub(super) fn read(
        &self,
        object: Option<&ObjectRef>,
    ) -> Result<Option<std::collections::HashMap<String, candle_core::Tensor>>, ShareError> {
        let Some(object) = object else { return Ok(None) };
        let bytes = self.runtime.block_on(self.store.get_named(object))?;
        Ok(Some(deserialize(&bytes)?))
    }
}
