//! Named points at which a test can hold a process, to kill or stop it exactly there.
//!
//! `E2LLM_FAILPOINT="<name>:<n>:<file>"` holds the process when it reaches the point `name` for the `n`th time, from 1:
//! it creates `file` and waits until someone removes it. Whoever watches for the file knows that the point was reached
//! while work was unfinished, and sends the signal. Builds without debug assertions have no such points.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::Duration;

/// The variable that arms one point of a process.
pub const VARIABLE: &str = "E2LLM_FAILPOINT";

/// How often a held process looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A point of this process that is armed.
#[derive(Debug)]
struct Armed {
    name: String,
    at: u64,
    file: PathBuf,
    reached: AtomicU64,
}

impl Armed {
    /// `None` where the text is not of the form `<name>:<n>:<file>`.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.splitn(3, ':');
        let (name, at, file) = (fields.next()?, fields.next()?, fields.next()?);
        let at = at.parse().ok()?;
        Some(Self { name: name.to_owned(), at, file: file.into(), reached: AtomicU64::new(0) })
    }

    /// Whether this is the time to hold.
    fn is_due(&self, name: &str) -> bool {
        self.name == name && self.reached.fetch_add(1, Ordering::SeqCst) + 1 == self.at
    }

    fn hold(&self) {
        if let Err(error) = fs::write(&self.file, "") {
            tracing::error!(point = self.name, file = %self.file.display(), %error, "fail point cannot be marked");
            return;
        }
        while self.file.exists() {
            sleep(LOOK_EVERY);
        }
    }
}

/// Marks a point of the program. Does nothing unless a test armed it.
#[inline]
pub fn reach(name: &str) {
    if cfg!(debug_assertions)
        && let Some(armed) = armed()
        && armed.is_due(name)
    {
        armed.hold();
    }
}

fn armed() -> Option<&'static Armed> {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    ARMED.get_or_init(|| Armed::parse(&std::env::var(VARIABLE).ok()?)).as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_due_once_when_it_is_reached_for_the_nth_time() {
        let armed = Armed::parse("encoder.stored:2:/tmp/a:b").unwrap();
        let due: Vec<bool> =
            ["encoder.stored", "other", "encoder.stored", "encoder.stored"].map(|name| armed.is_due(name)).to_vec();
        assert_eq!(due, [false, false, true, false]);
        assert_eq!(armed.file, PathBuf::from("/tmp/a:b"));
        assert!(Armed::parse("encoder.stored:2").is_none() && Armed::parse("a:b:c").is_none());
    }

    #[test]
    fn a_held_process_goes_on_when_its_file_is_removed() {
        let file = std::env::temp_dir().join(format!("e2llm-failpoint-{}", std::process::id()));
        let armed = Armed::parse(&format!("point:1:{}", file.display())).unwrap();
        let held = std::thread::spawn(move || armed.hold());
        while !file.exists() {
            sleep(LOOK_EVERY);
        }
        assert!(!held.is_finished());
        fs::remove_file(&file).unwrap();
        held.join().unwrap();
    }
}
