//! Other processes: killed while they commit, or holding the directory.
//!
//! The child is this test binary, running one test that does nothing unless its parent set [`ROOT`].

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use e2llm_index::{IndexError, IndexService};
use e2llm_runtime::failpoint::VARIABLE;
use e2llm_store::Store;

use super::support::{Site, all, commit, delete, get, record};

pub(crate) const ROOT: &str = "E2LLM_TEST_ROOT";
const ROUND: &str = "E2LLM_TEST_ROUND";

/// `failpoints`: where its failpoints are armed.
pub(crate) fn spawn(test: &str, root: &Path, failpoints: Option<&Path>) -> Child {
    let mut command = command(test, root);
    command.envs(failpoints.map(|directory| (VARIABLE, directory)));
    command.spawn().unwrap()
}

fn command(test: &str, root: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(ROOT, root);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

async fn open_in_child() -> IndexService {
    let root = std::path::PathBuf::from(std::env::var_os(ROOT).expect("run by a parent test only"));
    let store = Store::open(root.join("store").to_str().unwrap()).await.unwrap();
    IndexService::open(store, &root.join("index"), "main").await.unwrap()
}

/// One line in one write, so that a kill leaves whole lines only.
fn say(line: &str) {
    std::io::stdout().write_all(format!("\n@{line}\n").as_bytes()).unwrap();
    std::io::stdout().flush().unwrap();
}

/// What the child said, as far as it came.
fn said(line: &str) -> Option<&str> {
    line.strip_prefix('@')
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_until_killed() {
    if std::env::var_os(ROOT).is_none() {
        return;
    }
    let round = std::env::var(ROUND).unwrap();
    let index = open_in_child().await;
    say("open");
    let tasks = (0..4).map(|task| {
        let (index, round) = (index.clone(), round.clone());
        tokio::spawn(async move {
            for n in 0.. {
                let id = format!("r{round}-t{task}-{n}");
                commit(&index, vec![record(&id)]).await.unwrap();
                say(&format!("put {id}"));
                if n % 3 == 2 {
                    let doomed = format!("r{round}-t{task}-{}", n - 1);
                    delete(&index, &[&doomed]).await;
                    say(&format!("del {doomed}"));
                }
            }
        })
    });
    futures::future::join_all(tasks).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_commit_survives_kill_9() {
    let site = Site::new();
    let (mut present, mut gone) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let mut command = command("child::commits_until_killed", &site.root());
        let mut child = command.env(ROUND, round.to_string()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let deadline = Instant::now() + Duration::from_millis(150 + 130 * round as u64);
        let mut heard = 0;
        // after the kill, the pipe still holds what was said before it
        for line in output.lines() {
            let line = line.unwrap();
            match said(&line).map(|line| line.split_once(' ').unwrap_or((line, ""))) {
                Some(("put", id)) => present.push(id.to_owned()),
                Some(("del", id)) => gone.push(id.to_owned()),
                _ => continue,
            }
            heard += 1;
            if heard > 20 && Instant::now() > deadline {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        assert!(heard > 20, "the child ended by itself in round {round} after {heard} answers");
        let index = site.open().await;
        for id in &gone {
            assert!(get(&index, id).await.is_err(), "{id} was deleted and is back in round {round}");
        }
        for id in present.iter().filter(|id| !gone.contains(id)) {
            if let Err(error) = get(&index, id).await {
                // the last delete of a task may have become durable unheard
                let later: usize = id.rsplit('-').next().unwrap().parse().unwrap();
                let doomed =
                    later % 3 == 1 && present.contains(&id.replace(&format!("-{later}"), &format!("-{}", later + 1)));
                assert!(doomed, "{id} was acknowledged and is lost in round {round}: {error}");
            }
        }
        assert_eq!(index.verify().await.unwrap(), []);
        index.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holds_the_directory() {
    if std::env::var_os(ROOT).is_none() {
        return;
    }
    let _index = open_in_child().await;
    say("open");
    std::io::stdin().lines().next();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_says_who_holds_it_and_is_free_after_a_kill() {
    let site = Site::new();
    let index = site.open().await;
    commit(&index, vec![record("a")]).await.unwrap();
    index.close().await.unwrap();
    let mut child = spawn("child::holds_the_directory", &site.root(), None);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while said(&lines.next().unwrap().unwrap()) != Some("open") {}
    let error = site.try_open().await.unwrap_err();
    assert!(matches!(error, IndexError::InUse { .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains(&format!("in use by process {}", child.id())), "{message}");
    child.kill().unwrap();
    child.wait().unwrap();
    let index = site.open().await;
    assert_eq!(all(&index).await.len(), 1);
    assert_eq!(site.set_aside(), 0);
}
