use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use e2llm_api::v1::submit_job_request::Part;
use e2llm_api::v1::{JobKind, JobSpec, Row, SubmitJobRequest, SubmitJobResponse};
use e2llm_api::{Collection, ErrorCode, row_error};
use e2llm_runtime::auth::Caller;
use e2llm_runtime::trace;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::timeout;
use tonic::Streaming;
use tracing::{Instrument, info, info_span, warn};

use crate::CoordinatorError;
use crate::engine::{Engine, Submitted};
use crate::ids::JobId;
use crate::intake::Intake;
use crate::page::{LINGER, PageBuilder};
use crate::planning::Planning;
use crate::training::plan;

/// Most attempts a job may ask for: more would hide a fault for days.
const MAX_ATTEMPTS: u32 = 100;
/// How long a submission waits for garbage collection before it says so.
const SWEEP_NOTICE: Duration = Duration::from_secs(2);

/// Texts of training data that are looked up at the same time.
const PARALLEL_LOOKUPS: usize = 64;

type Result<T> = std::result::Result<T, CoordinatorError>;

/// Plans a job from the stream of its rows. Tasks are ready as soon as their page is written.
///
/// A job whose key is known is not planned again: its rows are compared with those planned before, texts included, and
/// planning goes on where it broke off. Whoever knows that a row is planned may send the hash of its text alone, and of a
/// job that is all planned no row at all.
pub(crate) async fn submit(
    engine: Arc<Engine>,
    caller: Caller,
    mut stream: Streaming<SubmitJobRequest>,
) -> Result<SubmitJobResponse> {
    let spec = match stream.message().await {
        Ok(Some(SubmitJobRequest { part: Some(Part::Spec(spec)) })) => spec,
        Ok(_) => return Err(CoordinatorError::BadStream("its first message must be the spec")),
        Err(status) => return Err(CoordinatorError::BadSpec(status.message().to_owned())),
    };
    let has_key = !spec.job_id.is_empty();
    let job = if has_key { JobId::new(&spec.job_id)? } else { JobId::generate() };
    let spec = check_spec(&job, spec)?;
    if !caller.may_use(&spec.collection) {
        return Err(CoordinatorError::Forbidden { caller: caller.name().to_owned(), collection: spec.collection });
    }
    let span = trace::of_job(info_span!("plan", job_id = %job), job.as_str());
    plan_rows(engine, job, spec, has_key, stream).instrument(span).await
}

async fn plan_rows(
    engine: Arc<Engine>,
    job: JobId,
    spec: JobSpec,
    has_key: bool,
    stream: Streaming<SubmitJobRequest>,
) -> Result<SubmitJobResponse> {
    let is_training = spec.kind() == JobKind::Train;
    let submission = match engine.begin_submission(&job, spec).await? {
        Submitted::Before { rows } => return Ok(SubmitJobResponse { job_id: job.to_string(), rows }),
        Submitted::Planned { rows, spec } => {
            let whole = whole_plan(&engine, &job).await?;
            let comparison = Submission::new(Arc::clone(&engine), job.clone(), &spec, rows, Some(whole));
            return Ok(SubmitJobResponse { job_id: job.to_string(), rows: comparison.run(stream).await? });
        }
        Submitted::Open { planned, spec } => Submission::new(Arc::clone(&engine), job.clone(), &spec, planned, None),
    };
    let planned = match wait_for_text_sweep(&engine, &job).await {
        Ok(()) if is_training => submission.plan_training(stream).await,
        Ok(()) => submission.run(stream).await,
        Err(error) => Err(error),
    };
    engine.end_submission(&job);
    if planned.is_err() && !has_key {
        // Nobody knows its name, so nobody can submit it again.
        if let Err(error) = engine.cancel(&job).await {
            warn!(job_id = %job, %error, "abandoned job could not be cancelled");
        }
    }
    let rows = planned?;
    info!(job_id = %job, rows, "job planned");
    Ok(SubmitJobResponse { job_id: job.to_string(), rows })
}

/// Texts that are being deleted as garbage must not be found by this submission. It has registered: from now on no
/// further sweep begins that does not know of it.
async fn wait_for_text_sweep(engine: &Engine, job: &JobId) -> Result<()> {
    let store = engine.journal.store();
    match timeout(SWEEP_NOTICE, store.wait_for_text_sweep()).await {
        Ok(ended) => Ok(ended?),
        Err(_) => {
            warn!(job_id = %job, "the index is deleting texts, the submission waits; if it was killed, start it again");
            Ok(store.wait_for_text_sweep().await?)
        }
    }
}

fn check_spec(job: &JobId, spec: JobSpec) -> Result<JobSpec> {
    if spec.kind() == JobKind::Unspecified {
        return Err(CoordinatorError::BadSpec("its kind is not one of encode, summarize, ask, train".to_owned()));
    }
    let collection = match spec.collection.as_str() {
        "" => Collection::default(),
        name => Collection::new(name).map_err(|error| CoordinatorError::BadSpec(error.to_string()))?,
    };
    let bad = |problem: String| Err(CoordinatorError::BadSpec(problem));
    if !spec.question.is_empty() && spec.kind() != JobKind::Ask {
        return bad("a question is only for jobs of the kind ask; leave it out".to_owned());
    }
    if !spec.question.is_empty() && spec.question.trim().is_empty() {
        return bad("its question is blank; write one, or leave it out and let rows carry questions".to_owned());
    }
    if (spec.kind() == JobKind::Train) != spec.train.is_some() {
        return bad(
            "what to train is for jobs of the kind train, and for all of them; fill in `train`, or leave it out"
                .to_owned(),
        );
    }
    if spec.kind() == JobKind::Train {
        plan(&spec)?;
    }
    if spec.max_attempts > MAX_ATTEMPTS {
        return bad(format!("max_attempts is {}; give at most {MAX_ATTEMPTS}", spec.max_attempts));
    }
    Ok(JobSpec { collection: collection.into(), job_id: job.to_string(), ..spec })
}

/// What the job itself forgot when its last page was planned.
async fn whole_plan(engine: &Engine, job: &JobId) -> Result<Planning> {
    let mut planning = Planning::default();
    let mut pages = pin!(engine.journal.pages(job).await?);
    while let Some(page) = pages.try_next().await? {
        planning.add(&page.rows);
    }
    Ok(planning)
}

/// One stream of rows on its way into plan pages.
struct Submission {
    engine: Arc<Engine>,
    job: JobId,
    /// Rows planned by an earlier submission; they are compared and skipped.
    planned: u64,
    /// The plan of a job to which no row can be added.
    whole: Option<Planning>,
    next_row: u64,
    intake: Intake,
    page: PageBuilder,
}

impl Submission {
    fn new(engine: Arc<Engine>, job: JobId, spec: &JobSpec, planned: u64, whole: Option<Planning>) -> Self {
        let intake = Intake::new(engine.journal.store().clone(), spec.kind(), !spec.question.is_empty());
        let page = PageBuilder::new(spec.kind(), &engine.options);
        Self { engine, job, planned, whole, next_row: 0, intake, page }
    }

    async fn run(mut self, mut stream: Streaming<SubmitJobRequest>) -> Result<u64> {
        loop {
            let message = match timeout(LINGER, stream.message()).await {
                Ok(message) => message,
                Err(_) if self.page.is_empty() => continue,
                Err(_) => {
                    self.flush(false).await?;
                    continue;
                }
            };
            let Some(request) = message.map_err(|status| self.broken_off(status.message()))? else { break };
            match request.part {
                Some(Part::Piece(piece)) => self.piece(&piece.text)?,
                Some(Part::Row(row)) => self.row(row).await?,
                Some(Part::Spec(_)) => return Err(CoordinatorError::BadStream("a second spec came")),
                None => return Err(CoordinatorError::BadStream("a message of an unknown kind came")),
            }
            if self.page.is_due() {
                self.flush(false).await?;
            }
        }
        if self.whole.is_some() && self.next_row == 0 {
            return Ok(self.planned);
        }
        if self.next_row < self.planned {
            let what = format!("number of rows: {} now, {} before", self.next_row, self.planned);
            return Err(self.other_job(what));
        }
        if self.whole.is_none() {
            self.flush(true).await?;
        }
        Ok(self.next_row)
    }

    /// Nobody submits the rows of training: they follow from the spec. Its data must be in the store.
    async fn plan_training(self, mut requests: Streaming<SubmitJobRequest>) -> Result<u64> {
        if requests.message().await.map_err(|status| self.broken_off(status.message()))?.is_some() {
            return Err(CoordinatorError::BadStream("a training job takes no rows; store its data with PutText"));
        }
        let spec = self.engine.with_job(&self.job, |job| job.spec.clone())?;
        let hashes = spec.train.iter().flat_map(|train| &train.data).map(|text| text.hash.clone());
        let store = self.engine.journal.store().clone();
        let look_up = move |hash: String| {
            let store = store.clone();
            async move { Ok::<_, CoordinatorError>((store.has_text(&hash).await?, hash)) }
        };
        let mut known = stream::iter(hashes.collect::<Vec<_>>()).map(look_up).buffered(PARALLEL_LOOKUPS);
        while let Some((is_known, hash)) = known.try_next().await? {
            if !is_known {
                return Err(CoordinatorError::NoSuchText(hash));
            }
        }
        let page = plan(&spec)?;
        let rows = page.rows.len() as u64;
        self.engine.add_page(&self.job, page).await?;
        Ok(rows)
    }

    fn piece(&mut self, bytes: &[u8]) -> Result<()> {
        self.intake.piece(bytes, self.next_row < self.planned || self.whole.is_some())
    }

    async fn row(&mut self, given: Row) -> Result<()> {
        let (number, most) = (self.next_row, self.engine.options.max_rows);
        if number >= most {
            return Err(CoordinatorError::TooManyRows { job: self.job.to_string(), most });
        }
        self.next_row += 1;
        let mut row = self.intake.row(number, given).await?;
        if row.error.is_none() && self.intake.takes_documents() {
            self.refuse_duplicate(&mut row)?;
        }
        match self.with_planning(|planning| planning.is_same(&row))? {
            Some(true) => Ok(()),
            Some(false) => Err(self.other_job(format!("row {number} ({:?})", row.id))),
            None if self.whole.is_some() => Err(self.other_job(format!("number of rows: {} before", self.planned))),
            None => {
                self.page.add(row);
                Ok(())
            }
        }
    }

    fn with_planning<T>(&mut self, act: impl FnOnce(&mut Planning) -> T) -> Result<T> {
        match &mut self.whole {
            Some(whole) => Ok(act(whole)),
            None => self.engine.with_planning(&self.job, act),
        }
    }

    fn other_job(&self, what: String) -> CoordinatorError {
        CoordinatorError::OtherJob { job: self.job.to_string(), what }
    }

    fn refuse_duplicate(&mut self, row: &mut Row) -> Result<()> {
        let claimed = self.with_planning(|planning| planning.claim_id(&row.id, row.number))?;
        if let Err(holder) = claimed {
            let Row { number, id, .. } = row;
            let message = format!("id {id:?} of row {number} is also that of row {holder}; rename or remove one");
            row.error = Some(row_error(ErrorCode::DuplicateId, message));
        }
        Ok(())
    }

    async fn flush(&mut self, last: bool) -> Result<()> {
        self.engine.add_page(&self.job, self.page.take(last)).await
    }

    fn broken_off(&self, cause: &str) -> CoordinatorError {
        CoordinatorError::BrokenOff { job: self.job.to_string(), rows: self.next_row, cause: cause.to_owned() }
    }
}
