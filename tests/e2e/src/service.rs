use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tonic::{Code, Status};

use crate::binary;
use crate::moto::Moto;

/// Loading models takes long where other work shares the cores.
const START_UP: Duration = Duration::from_secs(180);
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// A real S3 server with one empty bucket. Stops when dropped.
pub struct S3(Moto);

impl S3 {
    /// Starts it.
    pub fn start() -> Self {
        Self(Moto::start())
    }

    /// URL of a store in the bucket.
    pub fn store(&self) -> String {
        "s3://bucket/store".to_owned()
    }

    /// The environment variables that lead a service to it.
    pub fn vars(&self) -> Vec<(String, String)> {
        self.0.vars()
    }
}

/// An `e2llm serve` process. Killed when dropped.
pub struct Service {
    process: Child,
    address: String,
    // Holding it keeps the reader of the pipe going: a full pipe would stop the service.
    log: Receiver<String>,
}

impl Service {
    /// Starts `e2llm serve` with these flags at a free port, or at `listen`, and waits until it serves.
    pub fn start(listen: Option<&str>, flags: &[&str], vars: &[(String, String)]) -> Self {
        let mut command = Command::new(binary());
        command.args(["serve", "--listen", listen.unwrap_or("127.0.0.1:0")]).args(flags);
        command.envs(vars.iter().cloned()).env("E2LLM_LOG", "info");
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, log) = mpsc::channel();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        std::thread::spawn(move || lines.for_each(|line| drop(sender.send(line))));
        let mut service = Self { process, address: String::new(), log };
        service.address = service.served_address();
        service
    }

    /// URL of the services.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Ends the process without any warning to it, as `kill -9` does.
    pub fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn served_address(&self) -> String {
        let deadline = Instant::now() + START_UP;
        let mut seen = Vec::new();
        loop {
            match self.log.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some((_, address)) = line.split_once("serving address=") {
                        return address.trim().to_owned();
                    }
                    seen.push(line);
                }
                Err(RecvTimeoutError::Timeout) => panic!("does not serve within {START_UP:?}: {seen:#?}"),
                Err(RecvTimeoutError::Disconnected) => panic!("ended instead of serving: {seen:#?}"),
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Repeats `call` while the service it needs is away.
pub async fn eventually<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match call().await {
            Ok(value) => return value,
            Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                tokio::time::sleep(PAUSE).await;
            }
            Err(status) => panic!("{status:?}"),
        }
    }
}

/// Waits until `condition` holds, for as long as a service may take to start.
pub fn eventually_true(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + START_UP;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {START_UP:?} for {what}");
        std::thread::sleep(PAUSE);
    }
}
