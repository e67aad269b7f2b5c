//! One process of the fleet, started again whenever it ends.

use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::plan::Role;
use crate::points::Points;

/// How often it is looked whether the process has ended.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A supervised `e2llm serve` process.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) address: String,
    pub(crate) points: Points,
    shared: Arc<Mutex<Supervised>>,
    supervisor: Option<JoinHandle<()>>,
}

/// How to start a process.
#[derive(Debug)]
pub(crate) struct Recipe {
    pub(crate) arguments: Vec<String>,
    pub(crate) vars: Vec<(String, String)>,
    pub(crate) points: Points,
    pub(crate) log: PathBuf,
}

#[derive(Debug)]
struct Supervised {
    recipe: Recipe,
    child: Child,
    /// Where its own lines begin in the log.
    log_start: u64,
    restarts: u32,
    is_over: bool,
}

impl Member {
    pub(crate) fn start(name: String, role: Role, address: String, recipe: Recipe) -> Self {
        let points = recipe.points.clone();
        let (child, log_start) = recipe.spawn();
        let shared = Arc::new(Mutex::new(Supervised { recipe, child, log_start, restarts: 0, is_over: false }));
        let supervised = Arc::clone(&shared);
        let supervisor = Some(std::thread::spawn(move || supervise(&supervised)));
        Self { name, role, address, points, shared, supervisor }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often it was started again.
    pub(crate) fn restarts(&self) -> u32 {
        self.lock().restarts
    }

    /// Ends the present process as `kill -9` does; returns its id.
    pub(crate) fn kill(&self) -> u32 {
        let mut shared = self.lock();
        shared.child.kill().unwrap();
        shared.child.id()
    }

    /// Stops the present process, until [`Member::resume`].
    /// Returns when every thread of the process stands still: the signal alone takes a while on a busy machine, in which
    /// a held thread could still go on.
    pub(crate) fn stop(&self) -> u32 {
        let process = self.signal("-STOP");
        while !stands_still(process) {
            std::thread::sleep(Duration::from_millis(1));
        }
        process
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) -> u32 {
        let process = self.lock().child.id();
        assert!(Command::new("kill").args([signal, &process.to_string()]).status().unwrap().success());
        process
    }

    /// Whether the present process has opened its port.
    pub(crate) fn serves(&self) -> bool {
        let start = self.lock().log_start;
        self.log_from(start).contains("serving address=")
    }

    /// Size of the log so far.
    pub(crate) fn log_size(&self) -> u64 {
        fs::metadata(&self.lock().recipe.log).map_or(0, |log| log.len())
    }

    /// The log from a byte on.
    pub(crate) fn log_from(&self, start: u64) -> String {
        let log = fs::read(&self.lock().recipe.log).unwrap_or_default();
        String::from_utf8_lossy(&log[(start as usize).min(log.len())..]).into_owned()
    }

    fn lock(&self) -> MutexGuard<'_, Supervised> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recipe {
    fn spawn(&self) -> (Child, u64) {
        self.points.release_dead();
        let log: File = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let start = log.metadata().unwrap().len();
        let mut command = Command::new(e2llm_e2e::binary());
        command.args(&self.arguments).envs(self.vars.iter().cloned()).env("E2LLM_LOG", "info");
        command.env("E2LLM_FAILPOINTS", self.points.directory());
        // Six processes share few cores: threads that wait for each other would wait for other processes too.
        command.env("RAYON_NUM_THREADS", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        (command.spawn().unwrap(), start)
    }
}

fn supervise(shared: &Mutex<Supervised>) {
    loop {
        std::thread::sleep(LOOK_EVERY);
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.is_over {
            return;
        }
        if shared.child.try_wait().unwrap().is_some() {
            let (child, log_start) = shared.recipe.spawn();
            (shared.child, shared.log_start) = (child, log_start);
            shared.restarts += 1;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        {
            let mut shared = self.lock();
            shared.is_over = true;
            let _ = shared.child.kill();
            let _ = shared.child.wait();
        }
        if let Some(supervisor) = self.supervisor.take() {
            let _ = supervisor.join();
        }
    }
}

/// Whether the state of all threads is `T`. A thread that ends meanwhile counts as one that stands still.
fn stands_still(process: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let is_stopped = |stat: String| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'));
    threads.flatten().all(|thread| std::fs::read_to_string(thread.path().join("stat")).map_or(true, is_stopped))
}
