//! A contestant: a child process that answers one request per line, as `tests/bench/PEERS.md` says.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How long a contestant may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// What came of one request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    /// How long how many units took, and what there is to say of it.
    Done { seconds: f64, units: f64, note: Value },
    /// The contestant has no such work.
    Unsupported(String),
    /// It has, and failed.
    Failed(String),
}

/// A running one.
pub(crate) struct Contestant {
    child: Child,
    /// None once it is to end.
    requests: Option<ChildStdin>,
    answers: Receiver<String>,
    log: PathBuf,
    timeout: Duration,
    /// As it names itself.
    pub(crate) version: String,
}

impl Contestant {
    /// Starts one and waits until it is ready. What it prints to standard error goes to a file.
    pub(crate) fn start(command: &mut Command, log: &Path, timeout: Duration) -> Result<Self> {
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        }
        let errors = File::create(log).with_context(|| log.display().to_string())?;
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let program = piped.get_program().to_string_lossy().into_owned();
        let mut child = piped.spawn().with_context(|| format!("cannot start {program}"))?;
        let (requests, output) = (child.stdin.take(), child.stdout.take().context("no stdout")?);
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            for line in lines {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut contestant = Self { child, requests, answers, log: log.to_owned(), timeout, version: String::new() };
        contestant.version = version(&contestant.line()?)?;
        Ok(contestant)
    }

    /// One turn. An error means that this process can be asked nothing more.
    pub(crate) fn ask(&mut self, request: &Value) -> Result<Reply> {
        let requests = self.requests.as_mut().context("no stdin")?;
        let sent = writeln!(requests, "{request}").and_then(|()| requests.flush());
        if sent.is_err() {
            bail!("it ended: see {}", self.log.display());
        }
        reply(&self.line()?)
    }

    fn line(&self) -> Result<String> {
        match self.answers.recv_timeout(self.timeout) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => {
                bail!(
                    "no answer in {} s: see {}, or give a longer --timeout",
                    self.timeout.as_secs(),
                    self.log.display()
                )
            }
            Err(RecvTimeoutError::Disconnected) => bail!("it ended: see {}", self.log.display()),
        }
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        // It ends with its input, and stops its own processes. If it is in the middle of a work that nobody waits for any more, it is
        // killed; that it has ended already is no error.
        self.requests.take();
        let until = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn version(line: &str) -> Result<String> {
    let first: Value = serde_json::from_str(line).with_context(|| format!("its first line is not JSON: {line}"))?;
    if first["ready"] != true {
        bail!("its first line does not say that it is ready: {line}");
    }
    Ok(first["version"].as_str().unwrap_or("version unknown").to_owned())
}

fn reply(line: &str) -> Result<Reply> {
    let answer: Value = serde_json::from_str(line).with_context(|| format!("its answer is not JSON: {line}"))?;
    if let Some(reason) = answer["unsupported"].as_str() {
        return Ok(Reply::Unsupported(reason.to_owned()));
    }
    if let Some(error) = answer["error"].as_str() {
        return Ok(Reply::Failed(error.to_owned()));
    }
    match (answer["seconds"].as_f64(), answer["units"].as_f64()) {
        (Some(seconds), Some(units)) if seconds > 0.0 && units > 0.0 => {
            Ok(Reply::Done { seconds, units, note: answer["note"].clone() })
        }
        _ => bail!("its answer has no positive `seconds` and `units`: {line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SECOND: Duration = Duration::from_secs(10);

    fn shell(script: &str, name: &str) -> Result<Contestant> {
        let log = std::env::temp_dir().join(format!("e2llm-xtask-{}-{name}.log", std::process::id()));
        Contestant::start(Command::new("sh").args(["-c", script]), &log, SECOND)
    }

    #[test]
    fn an_answer_is_a_time_a_refusal_or_a_failure() {
        let note = json!({ "check": [1] });
        let line = json!({ "seconds": 2.0, "units": 8, "note": note }).to_string();
        assert_eq!(reply(&line).unwrap(), Reply::Done { seconds: 2.0, units: 8.0, note });
        assert_eq!(reply(r#"{"unsupported":"why"}"#).unwrap(), Reply::Unsupported("why".into()));
        assert_eq!(reply(r#"{"error":"why"}"#).unwrap(), Reply::Failed("why".into()));
        assert!(reply(r#"{"seconds":0,"units":1}"#).is_err(), "no rate can be made of it");
        assert!(reply("oops").is_err());
    }

    #[test]
    fn a_contestant_is_asked_line_by_line() {
        let script = r#"echo '{"ready":true,"version":"7"}'; while read line; do echo '{"seconds":1,"units":2}'; done"#;
        let mut contestant = shell(script, "asked").unwrap();
        assert_eq!(contestant.version, "7");
        let reply = contestant.ask(&json!({ "work": "any" })).unwrap();
        assert_eq!(reply, Reply::Done { seconds: 1.0, units: 2.0, note: Value::Null });
    }

    #[test]
    fn one_that_ends_is_an_error_that_names_its_log() {
        let error = shell("exit 1", "ends").err().unwrap().to_string();
        assert!(error.contains("ends.log"), "{error}");
    }
}
