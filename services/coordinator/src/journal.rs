use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use e2llm_api::v1::{JobSpec, JobStatus, RowResult};
use e2llm_store::{Created, Store};
use futures::stream::{self, StreamExt, TryStreamExt};
use prost::Message;

use crate::CoordinatorError;
use crate::ids::{JobId, TaskId, stage_name};
use crate::records::{DoneRecord, Mark, Part, PlanPage, ResultRecord, SpecRecord, decode, encode};

type Result<T> = std::result::Result<T, CoordinatorError>;

/// Folder of all jobs.
const JOBS: &str = "jobs";
/// Records read at the same time while a job is loaded.
const PARALLEL_READS: usize = 16;
/// Parts of one attempt that may exist; more than one only after a crash between part and record.
const MAX_PARTS: u32 = 100;

/// Reads and writes the records of jobs.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    store: Store,
    writer: String,
}

impl Journal {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, writer: uuid::Uuid::new_v4().simple().to_string() }
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Creates the job's spec; returns the spec that counts, which may be an earlier one.
    pub(crate) async fn create_spec(&self, job: &JobId, spec: &JobSpec) -> Result<JobSpec> {
        let record = SpecRecord { spec: Some(spec.clone()), writer: self.writer.clone(), created_unix_ms: unix_ms() };
        let path = format!("{JOBS}/{job}/spec");
        match self.store.create(&path, encode(&record)).await? {
            Created::New => Ok(spec.clone()),
            Created::Exists => self.spec(job).await?.ok_or_else(|| vanished(path)),
        }
    }

    pub(crate) async fn spec(&self, job: &JobId) -> Result<Option<JobSpec>> {
        let path = format!("{JOBS}/{job}/spec");
        let Some(record) = self.read::<SpecRecord>(&path).await? else { return Ok(None) };
        let missing = || CoordinatorError::Corrupt { path, reason: "it holds no spec".to_owned() };
        record.spec.ok_or_else(missing).map(Some)
    }

    /// Appends a plan page. Only one coordinator may plan a job.
    pub(crate) async fn append_page(&self, job: &JobId, number: u32, mut page: PlanPage) -> Result<PlanPage> {
        page.writer.clone_from(&self.writer);
        match self.store.create(&page_path(job, number), encode(&page)).await? {
            Created::New => Ok(page),
            Created::Exists => Err(CoordinatorError::BeingSubmitted(job.to_string())),
        }
    }

    pub(crate) async fn page(&self, job: &JobId, number: u32) -> Result<PlanPage> {
        let path = page_path(job, number);
        self.read(&path).await?.ok_or_else(|| vanished(path))
    }

    /// All plan pages in order.
    pub(crate) async fn pages(&self, job: &JobId) -> Result<Vec<PlanPage>> {
        let paths = self.store.list(&format!("{JOBS}/{job}/plan")).await?;
        for (number, path) in (0..).zip(&paths) {
            if *path != page_path(job, number) {
                let reason = format!("page {number} before it is missing");
                return Err(CoordinatorError::Corrupt { path: path.clone(), reason });
            }
        }
        self.read_all(paths).await
    }

    /// Writes the results of an attempt; returns the part's path.
    pub(crate) async fn write_part(
        &self,
        job: &JobId,
        task: TaskId,
        attempt: u32,
        rows: Vec<RowResult>,
    ) -> Result<String> {
        let bytes = encode(&Part { rows });
        let name = format!("{JOBS}/{job}/parts/{task}-{attempt}");
        for copy in 0..MAX_PARTS {
            let path = if copy == 0 { name.clone() } else { format!("{name}.{copy}") };
            match self.store.create(&path, bytes.clone()).await? {
                Created::New => return Ok(path),
                Created::Exists if self.store.get(&path).await?.as_ref() == Some(&bytes) => return Ok(path),
                Created::Exists => {}
            }
        }
        Err(CoordinatorError::Corrupt { path: name, reason: format!("{MAX_PARTS} parts of it exist") })
    }

    pub(crate) async fn part(&self, path: &str) -> Result<Vec<RowResult>> {
        let part: Part = self.read(path).await?.ok_or_else(|| vanished(path.to_owned()))?;
        Ok(part.rows)
    }

    /// Commits a task; returns the record that counts, which may be another coordinator's.
    pub(crate) async fn commit_done(&self, job: &JobId, task: TaskId, mut record: DoneRecord) -> Result<DoneRecord> {
        record.writer.clone_from(&self.writer);
        let path = format!("{JOBS}/{job}/done/{}/{task}", stage_name(task.stage));
        match self.store.create(&path, encode(&record)).await? {
            Created::New => Ok(record),
            Created::Exists => self.read(&path).await?.ok_or_else(|| vanished(path)),
        }
    }

    /// All commits, first stage first.
    pub(crate) async fn done(&self, job: &JobId) -> Result<Vec<(TaskId, DoneRecord)>> {
        let paths = self.store.list(&format!("{JOBS}/{job}/done")).await?;
        let tasks = task_ids(&paths)?;
        let records = self.read_all(paths).await?;
        let mut done: Vec<_> = tasks.into_iter().zip(records).collect();
        done.sort_by_key(|(task, _)| *task);
        Ok(done)
    }

    pub(crate) async fn split(&self, job: &JobId, task: TaskId) -> Result<()> {
        self.mark(format!("{JOBS}/{job}/splits/{task}")).await
    }

    pub(crate) async fn splits(&self, job: &JobId) -> Result<Vec<TaskId>> {
        task_ids(&self.store.list(&format!("{JOBS}/{job}/splits")).await?)
    }

    pub(crate) async fn cancel(&self, job: &JobId) -> Result<()> {
        self.mark(format!("{JOBS}/{job}/control/cancel")).await
    }

    pub(crate) async fn is_cancelled(&self, job: &JobId) -> Result<bool> {
        Ok(self.store.exists(&format!("{JOBS}/{job}/control/cancel")).await?)
    }

    pub(crate) async fn finish(&self, job: &JobId, status: JobStatus) -> Result<()> {
        let record = ResultRecord { status: Some(status), writer: self.writer.clone() };
        let (Created::New | Created::Exists) =
            self.store.create(&format!("{JOBS}/{job}/result"), encode(&record)).await?;
        Ok(())
    }

    pub(crate) async fn result(&self, job: &JobId) -> Result<Option<JobStatus>> {
        let record: Option<ResultRecord> = self.read(&format!("{JOBS}/{job}/result")).await?;
        Ok(record.and_then(|record| record.status))
    }

    /// All jobs, and those of them that need no worker any more.
    pub(crate) async fn jobs(&self) -> Result<(BTreeSet<JobId>, BTreeSet<JobId>)> {
        let mut objects = self.store.list_stream(JOBS);
        let (mut all, mut ended) = (BTreeSet::new(), BTreeSet::new());
        while let Some(object) = objects.try_next().await? {
            let mut steps = object.path.split('/').skip(1);
            let Some(Ok(job)) = steps.next().map(JobId::new) else { continue };
            match (steps.next(), steps.next()) {
                (Some("spec"), None) => _ = all.insert(job),
                (Some("result"), None) | (Some("control"), Some("cancel")) => _ = ended.insert(job),
                _ => {}
            }
        }
        Ok((all, ended))
    }

    async fn mark(&self, path: String) -> Result<()> {
        let mark = Mark { writer: self.writer.clone(), unix_ms: unix_ms() };
        let (Created::New | Created::Exists) = self.store.create(&path, encode(&mark)).await?;
        Ok(())
    }

    async fn read<M: Message + Default>(&self, path: &str) -> Result<Option<M>> {
        let bytes = self.store.get(path).await?;
        bytes.map(|bytes| decode(path, &bytes)).transpose()
    }

    async fn read_all<M: Message + Default>(&self, paths: Vec<String>) -> Result<Vec<M>> {
        let read = |path: String| async move { self.read(&path).await?.ok_or_else(|| vanished(path)) };
        stream::iter(paths).map(read).buffered(PARALLEL_READS).try_collect().await
    }
}

fn page_path(job: &JobId, number: u32) -> String {
    format!("{JOBS}/{job}/plan/{number:06}")
}

fn task_ids(paths: &[String]) -> Result<Vec<TaskId>> {
    let parse = |path: &String| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let foreign = |()| CoordinatorError::Corrupt { path: path.clone(), reason: "it names no task".to_owned() };
        name.parse().map_err(foreign)
    };
    paths.iter().map(parse).collect()
}

fn vanished(path: String) -> CoordinatorError {
    CoordinatorError::Corrupt { path, reason: "it has vanished".to_owned() }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
