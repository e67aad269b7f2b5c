use std::fmt;
use std::str::FromStr;

use e2llm_api::v1::Stage;

use crate::CoordinatorError;

/// Longest job id, in bytes.
const MAX_JOB_ID: usize = 100;

/// A job's name: safe in object paths and on command lines.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(String);

impl JobId {
    /// Checks a client's key.
    ///
    /// # Errors
    /// [`CoordinatorError::BadJobId`]
    pub fn new(id: &str) -> Result<Self, CoordinatorError> {
        let bad = |problem| CoordinatorError::BadJobId { id: id.chars().take(40).collect(), problem };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if id.is_empty() {
            return Err(bad("is empty"));
        }
        if id.len() > MAX_JOB_ID {
            return Err(bad("is too long"));
        }
        if !id.chars().all(allowed) {
            return Err(bad("has a character that is not allowed"));
        }
        if id.starts_with('.') {
            return Err(bad("begins with a dot"));
        }
        Ok(Self(id.to_owned()))
    }

    /// A fresh id; ids sort by time.
    pub(crate) fn generate() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A task's name, `<stage>-<%08d>` with the number of its first row; single rows of a split task end in `.1`.
///
/// It follows from the rows alone, so whoever cuts them gives the same name. Tasks sort by stage, then by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TaskId {
    pub(crate) stage: Stage,
    pub(crate) first_row: u64,
    pub(crate) is_split: bool,
}

impl TaskId {
    pub(crate) fn new(stage: Stage, first_row: u64) -> Self {
        Self { stage, first_row, is_split: false }
    }

    /// The task of one row of this task.
    pub(crate) fn split_off(self, row: u64) -> Self {
        Self { first_row: row, is_split: true, ..self }
    }
}

/// The stage's name in task ids and object paths.
pub(crate) fn stage_name(stage: Stage) -> &'static str {
    match stage {
        Stage::Encode => "encode",
        Stage::Decode => "decode",
        Stage::Train => "train",
        Stage::Unspecified => "none",
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let split = if self.is_split { ".1" } else { "" };
        write!(f, "{}-{:08}{split}", stage_name(self.stage), self.first_row)
    }
}

impl FromStr for TaskId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (stage, rest) = text.split_once('-').ok_or(())?;
        let stage = [Stage::Encode, Stage::Decode, Stage::Train]
            .into_iter()
            .find(|known| stage_name(*known) == stage)
            .ok_or(())?;
        let (number, is_split) = match rest.strip_suffix(".1") {
            Some(number) => (number, true),
            None => (rest, false),
        };
        Ok(Self { stage, first_row: number.parse().map_err(drop)?, is_split })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_ids_are_read_back_as_written() {
        let task = TaskId::new(Stage::Encode, 16);
        assert_eq!(task.to_string(), "encode-00000016");
        assert_eq!(task.split_off(17).to_string(), "encode-00000017.1");
        for id in [task, task.split_off(16), TaskId::new(Stage::Decode, 123_456_789)] {
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert!("encode".parse::<TaskId>().is_err() && "sing-00000001".parse::<TaskId>().is_err());
    }

    #[test]
    fn job_ids_cannot_leave_their_folder() {
        assert!(JobId::new("nightly-2026.11_23").is_ok());
        let long = "x".repeat(101);
        for id in ["", "..", ".", ".hidden", "a/b", "a b", "ä", "a\n", &long] {
            let error = JobId::new(id).unwrap_err();
            assert_eq!(error.code(), e2llm_api::ErrorCode::InvalidId, "{id:?}");
        }
    }
}
