//! Named points at which a test can hold a process, to kill or stop it exactly there.
//!
//! `E2LLM_FAILPOINTS=<directory>` gives the tests of a process a directory to talk to it, at any time while it runs:
//!
//! - A file `<point>` that says `<n> <any token>` holds whoever reaches the point for the `n`th time from then on, from
//!   1: the file becomes `<point>.held`, and nothing in the process gets past that point until someone removes it.
//!   Whoever sees it knows that the point was reached while work was unfinished, and sends the signal.
//! - A file `poison.<stage>` that says a row's id aborts the process when it begins with that row.
//! - To the file `trace`, the process appends a line for each point that it reaches: its process id, the point, and
//!   what it was about.
//!
//! Points are named `<role>.<edge>`. Builds without debug assertions have none.

use std::collections::HashMap;
use std::fmt::Display;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

/// The variable that names the directory.
pub const VARIABLE: &str = "E2LLM_FAILPOINTS";

/// How often a held process looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Marks a point of the program. Does nothing unless a test armed it.
#[inline]
pub fn reach(point: &str) {
    reach_with(point, "");
}

/// The same, with what it is about for the trace: a task or a row.
#[inline]
pub fn reach_with(point: &str, about: impl Display) {
    if cfg!(debug_assertions)
        && let Some(points) = points()
    {
        points.reach(point, &about.to_string());
    }
}

/// Marks that work on a row of `stage` begins: ends the process if a test made the row poisonous.
#[inline]
pub fn begin_row(stage: &str, id: &str) {
    if cfg!(debug_assertions)
        && let Some(points) = points()
        && points.is_poisonous(stage, id)
    {
        std::process::abort();
    }
}

fn points() -> Option<&'static Points> {
    static POINTS: OnceLock<Option<Points>> = OnceLock::new();
    POINTS.get_or_init(|| std::env::var_os(VARIABLE).map(|directory| Points::new(directory.into()))).as_ref()
}

/// The points of a process whose tests have given it a directory.
#[derive(Debug)]
struct Points {
    directory: PathBuf,
    /// For each point, how it is armed and how often it was reached since.
    reached: Mutex<HashMap<String, (String, u64)>>,
}

impl Points {
    fn new(directory: PathBuf) -> Self {
        Self { directory, reached: Mutex::default() }
    }

    fn reach(&self, point: &str, about: &str) {
        self.trace(point, about);
        let held = self.directory.join(format!("{point}.held"));
        if self.is_due(point) && fs::rename(self.directory.join(point), &held).is_err() {
            // Disarmed in between.
            return;
        }
        if held.exists() {
            beside_others(|| {
                while held.exists() {
                    sleep(LOOK_EVERY);
                }
            });
        }
    }

    /// Whether this is the time to hold.
    fn is_due(&self, point: &str) -> bool {
        let Ok(armed) = fs::read_to_string(self.directory.join(point)) else { return false };
        let Some(at) = armed.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()) else { return false };
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, count) = reached.entry(point.to_owned()).or_default();
        if *since != armed {
            (*since, *count) = (armed, 0);
        }
        *count += 1;
        *count == at
    }

    fn is_poisonous(&self, stage: &str, id: &str) -> bool {
        let point = format!("poison.{stage}");
        let is_poisonous = fs::read_to_string(self.directory.join(&point)).is_ok_and(|poison| poison.trim() == id);
        if is_poisonous {
            self.trace(&point, id);
        }
        is_poisonous
    }

    fn trace(&self, point: &str, about: &str) {
        let line = format!("{} {point} {about}\n", std::process::id());
        let trace = self.directory.join("trace");
        let written = OpenOptions::new()
            .append(true)
            .create(true)
            .open(trace)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(error) = written {
            tracing::error!(point, %error, "fail point cannot be traced");
        }
    }
}

/// Blocks without keeping other tasks of the runtime from its threads: a held process still reports.
fn beside_others(wait: impl FnOnce()) {
    match Handle::try_current() {
        Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::MultiThread => block_in_place(wait),
        _ => wait(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(name: &str) -> Points {
        let directory = std::env::temp_dir().join(format!("e2llm-failpoints-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        Points::new(directory)
    }

    #[test]
    fn a_point_is_due_once_when_it_is_reached_for_the_nth_time_since_it_was_armed() {
        let points = points("due");
        assert!(!points.is_due("encoder.stored"));
        fs::write(points.directory.join("encoder.stored"), "2 first").unwrap();
        let due = ["encoder.stored", "other", "encoder.stored", "encoder.stored"].map(|point| points.is_due(point));
        assert_eq!(due, [false, false, true, false]);
        fs::write(points.directory.join("encoder.stored"), "1 second").unwrap();
        assert!(points.is_due("encoder.stored"));
        fs::remove_dir_all(&points.directory).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_held_process_stays_alive_and_goes_on_when_its_file_is_removed() {
        let points = points("held");
        let (armed, held) = (points.directory.join("point"), points.directory.join("point.held"));
        fs::write(&armed, "1").unwrap();
        let directory = points.directory.clone();
        let reaching = tokio::spawn(async move { points.reach("point", "a") });
        while !held.exists() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        assert!(!armed.exists() && !reaching.is_finished());
        fs::remove_file(&held).unwrap();
        reaching.await.unwrap();
        let trace = fs::read_to_string(directory.join("trace")).unwrap();
        assert_eq!(trace, format!("{} point a\n", std::process::id()));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn only_the_row_that_was_named_is_poisonous() {
        let points = points("poison");
        assert!(!points.is_poisonous("encode", "a"));
        fs::write(points.directory.join("poison.encode"), "a\n").unwrap();
        assert_eq!(["a", "b"].map(|id| points.is_poisonous("encode", id)), [true, false]);
        assert!(!points.is_poisonous("decode", "a"));
        fs::remove_dir_all(&points.directory).unwrap();
    }
}
