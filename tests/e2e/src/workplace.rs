use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use tempfile::TempDir;

use crate::binary;

/// Id of the document that tests ask about.
pub const HARBOUR: &str = "harbour.md";

/// Documents with facts that only they hold, by id, in the order of their ids.
pub const TEXTS: [(&str, &str); 3] = [
    ("bakery.txt", "The bakery in Linden Street sells rye bread on Tuesdays. Its owner is Oskar Weil, born in Ghent."),
    (HARBOUR, "The harbour of Port Ellis was opened in 1874 by the engineer Mary Dunmore. It has three stone piers."),
    ("orchard.txt", "Behind the school grow forty pear trees. Pupils pick them in September and press the juice."),
];

/// Each command loads models that fill a small machine, so commands of one test process take turns.
static TURN: Mutex<()> = Mutex::new(());

/// A directory with a store at `store` and the documents [`TEXTS`] in `texts`.
pub struct Workplace {
    directory: TempDir,
    extra: Vec<String>,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit code.
    pub code: i32,
    /// All of standard output.
    pub stdout: String,
    /// All of standard error.
    pub stderr: String,
}

impl Workplace {
    /// With its own, empty store.
    pub fn new() -> Self {
        Self::with(vec!["--store".to_owned(), "store".to_owned()])
    }

    /// Whose commands say themselves where they work.
    pub fn bare() -> Self {
        Self::with(Vec::new())
    }

    /// Whose commands use the services at `url`.
    pub fn on_server(url: &str) -> Self {
        Self::with(vec!["--server".to_owned(), url.to_owned()])
    }

    /// With its own store, in which [`TEXTS`] are encoded.
    pub fn encoded() -> Self {
        let place = Self::new();
        place.json(&["encode", "texts"]).succeeded();
        place
    }

    fn with(extra: Vec<String>) -> Self {
        let place = Self { directory: TempDir::new().unwrap(), extra };
        TEXTS.iter().for_each(|(name, text)| place.write(&format!("texts/{name}"), text));
        place
    }

    /// A path in the directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.directory.path().join(relative)
    }

    /// Writes a file with its directories.
    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// The only file below a directory of the store whose path there contains `part`.
    pub fn stored_file(&self, directory: &str, part: &str) -> PathBuf {
        let mut files = files_below(&self.path("store").join(directory));
        files.retain(|file| file.to_string_lossy().contains(part));
        assert_eq!(files.len(), 1, "{directory} {part}: {files:?}");
        files.remove(0)
    }

    /// Runs `e2llm` to its end, with JSON output and without progress.
    pub fn json(&self, args: &[&str]) -> Outcome {
        Self::outcome(&mut self.command(args))
    }

    /// Like [`Workplace::json`] where no file can grow beyond `blocks` (of 512 or 1,024 bytes, by shell), which
    /// services treat as a full disk (`EFBIG` for `ENOSPC`).
    pub fn json_on_full_disk(&self, blocks: u32, args: &[&str]) -> Outcome {
        let command = self.command(args);
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"")]);
        limited.arg(command.get_program()).args(command.get_args());
        limited.current_dir(self.directory.path()).stdin(Stdio::null());
        Self::outcome(&mut limited)
    }

    fn outcome(command: &mut Command) -> Outcome {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let output = command.output().unwrap();
        Outcome {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Starts `e2llm` like [`Workplace::json`] and leaves it running, to be killed.
    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Has the next process with [`Workplace::fail_points`] held when it reaches `point` for the `nth` time; the file
    /// that appears then, and by whose removal it goes on.
    pub fn hold_at(&self, point: &str, nth: u32) -> PathBuf {
        self.write(&format!("points/{point}"), nth.to_string());
        self.path(&format!("points/{point}.held"))
    }

    /// The variable that has a process look for what [`Workplace::hold_at`] asked for.
    pub fn fail_points(&self) -> (String, String) {
        ("E2LLM_FAILPOINTS".to_owned(), self.path("points").display().to_string())
    }

    /// Starts `e2llm` like [`Workplace::start`], with fail points.
    pub fn start_with_fail_points(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        command.envs([self.fail_points()]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(&self.extra).args(["--json", "--quiet"]).args(args);
        command.current_dir(self.directory.path()).stdin(Stdio::null());
        command
    }

    /// The answer to a question about `id`, in a few greedy tokens, with further flags.
    pub fn ask(&self, id: &str, flags: &[&str]) -> Outcome {
        let question = ["ask", "Who opened the harbour?", "--max-tokens", "6", "--id", id];
        self.json(&[&question[..], flags].concat())
    }
}

impl Default for Workplace {
    fn default() -> Self {
        Self::new()
    }
}

impl Outcome {
    /// Itself, if the exit code is 0.
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, 0, "{self:#?}");
        self
    }

    /// Itself, if it ended with exit code 1, printed nothing and told an error in one line that holds `parts`.
    pub fn refused(self, parts: &[&str]) -> Self {
        assert_eq!((self.code, self.stdout.as_str()), (1, ""), "{self:#?}");
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{self:#?}");
        assert!(parts.iter().all(|part| errors[0].contains(part)), "{parts:?}: {self:#?}");
        self
    }

    /// Standard output as one JSON value a line.
    pub fn rows(&self) -> Vec<Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{self:#?}"))).collect()
    }

    /// Ids of the rows, each with the code of its error or an empty string.
    pub fn codes(&self) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.rows().iter().map(|row| (text(&row["id"]), text(&row["error"]["code"]))).collect()
    }
}

/// The text of the answer that a successful `ask` printed.
pub fn answer(outcome: Outcome) -> String {
    let rows = outcome.succeeded().rows();
    assert_eq!(rows.len(), 1);
    rows[0]["answer"].as_str().unwrap().to_owned()
}

/// Flips one bit in the middle of a file, as a fault of the medium would.
pub fn flip_byte(file: &Path) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}
