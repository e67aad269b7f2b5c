use e2llm_api::ErrorCode;
use e2llm_store::StoreError;
use tonic::Status;

/// Why the coordinator cannot do what was asked. Each message is one line with the value and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum CoordinatorError {
    /// No job of this name.
    #[error("there is no job {0:?}; list them with `e2llm jobs list`")]
    NoSuchJob(String),
    /// The text cannot name a job.
    #[error("job id {id:?} {problem}; use 1 to 100 of the characters A-Z a-z 0-9 . _ -")]
    BadJobId {
        /// The text as given, shortened.
        id: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The spec contradicts itself or is incomplete.
    #[error("the job cannot be run: {0}")]
    BadSpec(String),
    /// Messages of a submission come in an order that makes no sense.
    #[error("the submission is out of order: {0}")]
    BadStream(&'static str),
    /// The key was used for another job.
    #[error("job {job} exists with another {what}; submit under another job id")]
    OtherJob {
        /// The job.
        job: String,
        /// What differs.
        what: String,
    },
    /// Someone else is submitting rows to this job.
    #[error("job {0} is being submitted by another client; wait for it, or submit under another job id")]
    BeingSubmitted(String),
    /// The job was cancelled while it was being submitted.
    #[error("job {0} was cancelled; submit its rows under another job id")]
    Cancelled(String),
    /// The caller's token is for other collections.
    #[error("token {caller:?} may not use collection {collection:?}; ask for one that may")]
    Forbidden {
        /// The token's name.
        caller: String,
        /// The collection.
        collection: String,
    },
    /// The job has not ended, so it cannot be deleted.
    #[error("job {job} is {state}; `e2llm jobs cancel {job}` ends it, then delete it")]
    NotEnded {
        /// The job.
        job: String,
        /// What it is doing.
        state: String,
    },
    /// More than one call may ask for.
    #[error("{count} documents in one request; send at most {most}")]
    TooMany {
        /// How many there were.
        count: usize,
        /// How many may be.
        most: usize,
    },
    /// A job of more rows than the coordinator takes.
    #[error(
        "job {job} has more than {most} rows; cancel it and submit its rows as several jobs, or raise --max-job-rows"
    )]
    TooManyRows {
        /// The job.
        job: String,
        /// How many may be.
        most: u64,
    },
    /// The stream of rows broke.
    #[error("the submission of job {job} broke off after row {rows}: {cause}; submit it again to go on")]
    BrokenOff {
        /// The job.
        job: String,
        /// Rows planned so far.
        rows: u64,
        /// What the transport said.
        cause: String,
    },
    /// A worker's report that cannot be understood.
    #[error("the report cannot be used: {0}")]
    BadReport(&'static str),
    /// A record's bytes do not match their checksum, or contradict other records.
    #[error("{path} is corrupt ({reason}); delete the job's objects and submit it under another job id")]
    Corrupt {
        /// The object.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Training data that was to be in the store before the job.
    #[error("text {0} of the training data is not in the store; store it with PutText, then submit the job again")]
    NoSuchText(String),
    /// A job that has written no bundle, or not yet.
    #[error(
        "job {0} has written no bundle; a training job does so when its last round is done, see `e2llm jobs show {0}`"
    )]
    NoBundle(String),
    /// A thread of the coordinator ended unexpectedly.
    #[error("the coordinator's own work stopped: {0}; see its log")]
    Stopped(String),
    /// The object store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CoordinatorError {
    /// The code for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NoSuchJob(_) | Self::NoBundle(_) => ErrorCode::NotFound,
            Self::NoSuchText(_) => ErrorCode::ObjectGone,
            Self::Forbidden { .. } => ErrorCode::PermissionDenied,
            Self::Stopped(_) => ErrorCode::Internal,
            Self::BadJobId { .. } => ErrorCode::InvalidId,
            Self::BadSpec(_)
            | Self::BadStream(_)
            | Self::BadReport(_)
            | Self::NotEnded { .. }
            | Self::TooManyRows { .. }
            | Self::TooMany { .. } => ErrorCode::InvalidArgument,
            Self::OtherJob { .. } => ErrorCode::AlreadyExists,
            Self::BeingSubmitted(_) => ErrorCode::Busy,
            Self::Cancelled(_) => ErrorCode::Cancelled,
            Self::BrokenOff { .. } => ErrorCode::Unavailable,
            Self::Corrupt { .. } => ErrorCode::Corrupt,
            Self::Store(error) => error.code(),
        }
    }
}

impl From<CoordinatorError> for Status {
    fn from(error: CoordinatorError) -> Status {
        e2llm_api::status(error.code(), error.to_string())
    }
}
