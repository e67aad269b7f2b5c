use std::collections::{HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use e2llm_api::v1::{JobSpec, JobStatus, RowResult};
use e2llm_store::{Created, ObjectInfo, Store};
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use prost::Message;

use crate::CoordinatorError;
use crate::ids::{JobId, TaskId, stage_name};
use crate::records::{DoneRecord, Mark, Part, PlanPage, ResultRecord, SpecRecord, decode, encode};
use crate::training::{RoundRecord, SUFFIX, round_folder};

type Result<T> = std::result::Result<T, CoordinatorError>;

/// Folder of all jobs.
const JOBS: &str = "jobs";
/// Folder of what training jobs learn.
const TRAIN: &str = "train";
/// Records read at the same time while a job is loaded.
const PARALLEL_READS: usize = 64;
/// Parts of one attempt that may exist; more than one only after a crash between part and record.
const MAX_PARTS: u32 = 100;

/// A change that users make to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Give up what is not done.
    Cancel,
    /// Take that back.
    Resume,
}

impl Control {
    fn as_str(self) -> &'static str {
        match self {
            Control::Cancel => "cancel",
            Control::Resume => "resume",
        }
    }
}

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
            Created::Exists => self.spec(job).await?.map(|(spec, _)| spec).ok_or_else(|| vanished(path)),
        }
    }

    /// What the job is to do, and when it was created.
    pub(crate) async fn spec(&self, job: &JobId) -> Result<Option<(JobSpec, u64)>> {
        let path = format!("{JOBS}/{job}/spec");
        let Some(record) = self.read::<SpecRecord>(&path).await? else { return Ok(None) };
        let missing = || CoordinatorError::Corrupt { path, reason: "it holds no spec".to_owned() };
        record.spec.ok_or_else(missing).map(|spec| Some((spec, record.created_unix_ms)))
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

    /// All plan pages in order, read ahead.
    pub(crate) async fn pages(&self, job: &JobId) -> Result<impl Stream<Item = Result<PlanPage>> + '_> {
        let paths = self.store.list(&format!("{JOBS}/{job}/plan")).await?;
        for (number, path) in (0..).zip(&paths) {
            if *path != page_path(job, number) {
                let reason = format!("page {number} before it is missing");
                return Err(CoordinatorError::Corrupt { path: path.clone(), reason });
            }
        }
        Ok(self.read_all(paths))
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

    /// The rows of a part.
    pub(crate) async fn part(&self, job: &JobId, name: &str) -> Result<Vec<RowResult>> {
        let path = format!("{JOBS}/{job}/parts/{name}");
        let part: Part = self.read(&path).await?.ok_or_else(|| vanished(path))?;
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

    /// All commits, first stage first, read ahead.
    pub(crate) async fn done(&self, job: &JobId) -> Result<impl Stream<Item = Result<(TaskId, DoneRecord)>> + '_> {
        let paths = self.store.list(&format!("{JOBS}/{job}/done")).await?;
        let mut commits: Vec<(TaskId, String)> = task_ids(&paths)?.into_iter().zip(paths).collect();
        commits.sort_unstable();
        let (tasks, paths): (Vec<_>, Vec<_>) = commits.into_iter().unzip();
        let records = stream::iter(tasks).zip(self.read_all(paths));
        Ok(records.map(|(task, record)| Ok((task, record?))))
    }

    pub(crate) async fn split(&self, job: &JobId, task: TaskId) -> Result<()> {
        self.mark(format!("{JOBS}/{job}/splits/{task}")).await
    }

    pub(crate) async fn splits(&self, job: &JobId) -> Result<Vec<TaskId>> {
        task_ids(&self.store.list(&format!("{JOBS}/{job}/splits")).await?)
    }

    /// Notes that an attempt of a task failed or was lost, so that no restart forgets it.
    pub(crate) async fn failed_attempt(&self, job: &JobId, task: TaskId, failures: u32) -> Result<()> {
        self.mark(format!("{JOBS}/{job}/attempts/{task}-{failures:03}")).await
    }

    /// How often tasks have failed.
    pub(crate) async fn failed_attempts(&self, job: &JobId) -> Result<HashMap<TaskId, u32>> {
        let paths = self.store.list(&format!("{JOBS}/{job}/attempts")).await?;
        let tasks: Vec<String> =
            paths.iter().map(|path| path.rsplit_once('-').map_or(path.as_str(), |(task, _)| task).to_owned()).collect();
        let mut failures = HashMap::new();
        for task in task_ids(&tasks)? {
            *failures.entry(task).or_default() += 1;
        }
        Ok(failures)
    }

    /// Cancels the job, or takes that back. Changes have numbers, so that of two at once one comes first.
    pub(crate) async fn control(&self, job: &JobId, change: Control) -> Result<()> {
        loop {
            let number = match self.last_control(job).await? {
                Some((_, last, _)) if last == change => return Ok(()),
                Some((number, _, _)) => number + 1,
                None if change == Control::Resume => return Ok(()),
                None => 0,
            };
            let mark = Mark { writer: self.writer.clone(), unix_ms: unix_ms() };
            let path = format!("{JOBS}/{job}/control/{number:06}.{}", change.as_str());
            if self.store.create(&path, encode(&mark)).await? == Created::New {
                return Ok(());
            }
        }
    }

    /// When the job was cancelled, if it is.
    pub(crate) async fn cancelled_at(&self, job: &JobId) -> Result<Option<u64>> {
        let Some((_, Control::Cancel, path)) = self.last_control(job).await? else { return Ok(None) };
        let mark: Mark = self.read(&path).await?.ok_or_else(|| vanished(path))?;
        Ok(Some(mark.unix_ms))
    }

    /// The last change with its number and path. Changes alternate, so a number stands for one kind.
    async fn last_control(&self, job: &JobId) -> Result<Option<(u32, Control, String)>> {
        let Some(path) = self.store.list(&format!("{JOBS}/{job}/control")).await?.pop() else { return Ok(None) };
        let name = path.rsplit('/').next().unwrap_or_default();
        let parsed = name.split_once('.').and_then(|(number, change)| {
            let change = [Control::Cancel, Control::Resume].into_iter().find(|known| known.as_str() == change)?;
            Some((number.parse().ok()?, change))
        });
        let foreign = || CoordinatorError::Corrupt { path: path.clone(), reason: "it names no change".to_owned() };
        let (number, change) = parsed.ok_or_else(foreign)?;
        Ok(Some((number, change, path)))
    }

    /// Notes that whoever wanted the job's results has them.
    pub(crate) async fn acknowledge(&self, job: &JobId) -> Result<()> {
        self.mark(format!("{JOBS}/{job}/acknowledged")).await
    }

    pub(crate) async fn is_acknowledged(&self, job: &JobId) -> Result<bool> {
        Ok(self.store.exists(&format!("{JOBS}/{job}/acknowledged")).await?)
    }

    /// Commits a round of training; returns the record that counts, which may be another coordinator's.
    pub(crate) async fn commit_round(&self, job: &JobId, round: u32, mut record: RoundRecord) -> Result<RoundRecord> {
        record.writer.clone_from(&self.writer);
        let path = commit_path(job, round);
        match self.store.create(&path, encode(&record)).await? {
            Created::New => Ok(record),
            Created::Exists => self.read(&path).await?.ok_or_else(|| vanished(path)),
        }
    }

    /// What a round committed, if it has.
    pub(crate) async fn round(&self, job: &JobId, round: u32) -> Result<Option<RoundRecord>> {
        self.read(&commit_path(job, round)).await
    }

    /// What all committed rounds committed, in order, from one listing; ends before the first that has not.
    pub(crate) async fn rounds(&self, job: &JobId) -> Result<impl Stream<Item = Result<RoundRecord>> + '_> {
        let mut commits = self.store.list(&format!("{TRAIN}/{job}/rounds")).await?;
        commits.retain(|path| path.ends_with("/commit"));
        let in_order = (0..).zip(commits).take_while(|(round, path)| *path == commit_path(job, *round));
        let in_order: Vec<String> = in_order.map(|(_, path)| path).collect();
        Ok(self.read_all(in_order))
    }

    /// Deletes the tensors of a committed round; its record stays.
    pub(crate) async fn remove_round_tensors(&self, job: &JobId, round: u32) -> Result<()> {
        let mut tensors = self.store.list(&round_folder(job, round)).await?;
        tensors.retain(|path| path.ends_with(SUFFIX));
        Ok(self.store.delete_all(&tensors).await?)
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

    /// All jobs, by id. Takes one listing of folders, however many records they hold.
    pub(crate) async fn jobs(&self) -> Result<Vec<JobId>> {
        let mut jobs: Vec<JobId> =
            self.store.list_folders(JOBS).await?.iter().filter_map(|name| JobId::new(name).ok()).collect();
        jobs.sort_unstable();
        Ok(jobs)
    }

    /// When the job ended, if it has: finished or cancelled.
    pub(crate) async fn ended_at(&self, job: &JobId) -> Result<Option<u64>> {
        match self.result(job).await? {
            Some(status) => Ok(Some(status.ended_unix_ms)),
            None => self.cancelled_at(job).await,
        }
    }

    /// Objects and bytes of a job.
    pub(crate) async fn size(&self, job: &JobId) -> Result<(u64, u64)> {
        let of_job = self.store.list_stream(&format!("{JOBS}/{job}"));
        let objects = of_job.chain(self.store.list_stream(&format!("{TRAIN}/{job}")));
        let add = |(count, sum), object: ObjectInfo| std::future::ready(Ok((count + 1, sum + object.bytes)));
        Ok(objects.try_fold((0, 0), add).await?)
    }

    /// Deletes all of a job; returns objects and bytes. The spec goes first: what has none is no job any more.
    pub(crate) async fn remove(&self, job: &JobId) -> Result<(u64, u64)> {
        let size = self.size(job).await?;
        self.store.delete(&format!("{JOBS}/{job}/spec")).await?;
        for folder in [TRAIN, JOBS] {
            self.delete_all(self.store.list_stream(&format!("{folder}/{job}"))).await?;
        }
        Ok(size)
    }

    /// Deletes a job's parts whose names `keep` does not hold: those of attempts that do not count.
    pub(crate) async fn remove_parts(&self, job: &JobId, keep: HashSet<String>) -> Result<(u64, u64)> {
        let is_kept = move |path: &str| path.rsplit('/').next().is_some_and(|name| keep.contains(name));
        let parts = self.store.list_stream(&format!("{JOBS}/{job}/parts"));
        let lost = parts.try_filter(move |object| std::future::ready(!is_kept(&object.path)));
        self.delete_all(lost.boxed()).await
    }

    async fn delete_all(&self, objects: BoxStream<'static, e2llm_store::Result<ObjectInfo>>) -> Result<(u64, u64)> {
        let delete = |object: ObjectInfo| async move {
            self.store.delete(&object.path).await?;
            Ok(object.bytes)
        };
        let deleted = objects.map_ok(delete).try_buffer_unordered(PARALLEL_READS);
        let add = |(count, sum), bytes| std::future::ready(Ok((count + 1, sum + bytes)));
        Ok(deleted.try_fold((0, 0), add).await?)
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

    fn read_all<M: Message + Default>(&self, paths: Vec<String>) -> impl Stream<Item = Result<M>> + '_ {
        let read = move |path: String| async move { self.read(&path).await?.ok_or_else(|| vanished(path)) };
        stream::iter(paths).map(read).buffered(PARALLEL_READS)
    }
}

fn commit_path(job: &JobId, round: u32) -> String {
    format!("{}/commit", round_folder(job, round))
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

pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
