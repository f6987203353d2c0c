//! The binary as a person or a script meets it: verbs, flags, exit codes, stdout, stderr.

mod bench;
mod dead;
mod face;
mod many;
#[cfg(all(feature = "sqlite", target_os = "linux"))]
mod network_disk;
mod publish;
mod setup;
#[cfg(feature = "nats")]
mod start;
mod terminal;
mod work;

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A working directory of its own, with an embedded broker in it.
pub struct Place {
    dir: tempfile::TempDir,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Left {
    /// The exit code, or 128 + the signal.
    pub code: i32,
    /// Bytes on stdout.
    pub raw: Vec<u8>,
    /// The same as text.
    pub out: String,
    /// Stderr.
    pub err: String,
}

/// Two queues on one topic, and one that takes only what is enqueued.
pub const CONFIG: &str = r#"
broker = "sqlite://windlass.db"

[queues.invoice]
topics = ["reports.finalized"]
job = "log"

[queues.analytics]
topics = ["reports.finalized"]
job = "log"

[queues.nightly]
topics = []
job = "log"
"#;

impl Place {
    /// An empty directory.
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    /// With [`CONFIG`].
    pub fn new() -> Self {
        Self::with(CONFIG)
    }

    /// With this configuration.
    pub fn with(config: &str) -> Self {
        let place = Self::empty();
        place.write("windlass.toml", config);
        place
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A file in it.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// The command, about to run here with an environment that says nothing to it.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
        command.args(arguments).current_dir(self.path());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("WINDLASS_") || text.starts_with("CLICOLOR") || text == "NO_COLOR" || text == "RUST_LOG"
            {
                command.env_remove(&name);
            }
        }
        command
    }

    /// Runs it with an empty stdin.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Left {
        self.feed(arguments, b"")
    }

    /// Runs it with this on stdin.
    pub fn feed<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>, stdin: &[u8]) -> Left {
        run(self.command(arguments), stdin)
    }

    /// Runs it, expects 0, and gives stdout.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> String {
        let left = self.run(arguments);
        assert_eq!(left.code, 0, "{left:?}");
        left.out
    }

    /// Runs it with `--json`, expects 0, and gives the objects, one a line.
    #[track_caller]
    pub fn json<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> Vec<Value> {
        objects(&self.ok(arguments.into_iter().chain(["--json"])))
    }

    /// Imports letters into a queue: `(id, event id, error)`.
    #[track_caller]
    pub fn letters(&self, queue: &str, letters: &[(&str, &str, &str)]) {
        // Publishing makes the file and its queues.
        self.ok(["publish", "reports.finalized", "1", "-q"]);
        let lines: Vec<String> = letters
            .iter()
            .enumerate()
            .map(|(index, (id, event, error))| {
                serde_json::json!({
                    "id": id, "event_id": event, "job": "log", "topic": "reports.finalized", "reason": "permanent",
                    "error_type": "io::Error", "error": error, "attempts": 3, "body": format!("{{\"n\":{index}}}"),
                    "headers": {"ce-specversion": "1.0", "ce-id": event, "ce-type": "t", "ce-source": "s"},
                    "first_failed": format!("2026-11-01T10:00:{:02}Z", index % 60),
                    "last_failed": format!("2026-11-01T11:{:02}:{:02}Z", index / 60, index % 60),
                })
                .to_string()
            })
            .collect();
        let left = self.feed(["dlq", "import", queue, "-"], lines.join("\n").as_bytes());
        assert_eq!(left.code, 0, "{left:?}");
    }

    /// How many dead letters a queue has.
    #[track_caller]
    pub fn dead(&self, queue: &str) -> usize {
        self.json(["dlq", "list", queue]).len()
    }

    /// A figure of `status`.
    #[track_caller]
    pub fn figure(&self, queue: &str, name: &str) -> Value {
        self.json(["status", queue])[0]["queues"][0][name].clone()
    }
}

/// Runs a command to its end.
pub fn run(mut command: Command, stdin: &[u8]) -> Left {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut pipe = child.stdin.take().expect("piped");
    let bytes = stdin.to_vec();
    let writer = std::thread::spawn(move || {
        // A command that reads no more of its stdin is no fault.
        let _ = pipe.write_all(&bytes);
    });
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("written");
    let code = output
        .status
        .code()
        .unwrap_or_else(|| 128 + std::os::unix::process::ExitStatusExt::signal(&output.status).unwrap_or_default());
    Left {
        code,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        raw: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// One JSON object a line.
#[track_caller]
pub fn objects(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// The keys of an object, in the order they were written.
#[track_caller]
pub fn keys(line: &str) -> Vec<String> {
    // serde_json sorts: the order is read from the text.
    let object: serde_json::Map<String, Value> = serde_json::from_str(line).expect("an object");
    let mut keys: Vec<String> = object.keys().cloned().collect();
    keys.sort_by_key(|key| line.find(&format!("\"{key}\":")).expect("it is there"));
    keys
}
