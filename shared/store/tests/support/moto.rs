//! A real S3 server for tests: moto, started and stopped here.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server with one empty bucket named `bucket`. Stops when dropped.
pub(crate) struct Moto {
    process: Child,
    port: u16,
}

/// moto looks for an existing key and writes the new one in two steps; S3 does it in one. So requests take turns.
const SERVER: &str = "
import sys, threading
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
moto, turn = DomainDispatcherApplication(create_backend_app), threading.Lock()
def server(environ, start_response):
    with turn:
        return list(moto(environ, start_response))
run_simple('127.0.0.1', int(sys.argv[1]), server, threaded=True)
";

const START_UP: Duration = Duration::from_secs(60);

impl Moto {
    pub(crate) fn start() -> Self {
        let python = std::env::var("E2LLM_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        let import =
            Command::new(&python).args(["-c", "import moto.server, werkzeug.serving"]).stderr(Stdio::null()).status();
        assert!(
            import.is_ok_and(|status| status.success()),
            "{python} has no moto server; run `cargo xtask test`, which installs it"
        );
        let port = free_port();
        let process = Command::new(&python)
            .args(["-c", SERVER, &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut moto = Self { process, port };
        moto.wait_until_ready();
        assert!(moto.request("PUT /bucket").starts_with("HTTP/1.1 200"));
        moto
    }

    /// The environment variables of a client of this server.
    pub(crate) fn vars(&self) -> Vec<(String, String)> {
        let pairs = [
            ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port)),
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
        ];
        pairs.map(|(key, value)| (key.to_owned(), value)).to_vec()
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_UP;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(self.process.try_wait().unwrap().is_none(), "moto ended instead of listening");
            assert!(Instant::now() < deadline, "moto did not listen within {START_UP:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn request(&self, line: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let request = format!("{line} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
