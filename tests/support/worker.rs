//! The `windlass` binary as a process.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use super::process::Process;
use super::{http, port};

/// The binary that the tests were built with.
pub const BINARY: &str = env!("CARGO_BIN_EXE_windlass");

/// The command line in a folder, with nothing of the caller's environment that could change what it does.
pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(BINARY);
    clean(&mut command, dir);
    command
}

/// What [`command`] does to the environment, for another binary.
pub fn clean(command: &mut Command, dir: &Path) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WINDLASS_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1").current_dir(dir);
}

/// Runs one verb to its end.
pub fn run(dir: &Path, args: &[&str]) -> Output {
    command(dir).args(args).output().expect("the binary can be run")
}

/// Runs one verb that must succeed and gives its stdout.
#[track_caller]
pub fn succeed(dir: &Path, args: &[&str]) -> String {
    let output = run(dir, args);
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "windlass {} ended with {}\n{stdout}\n{stderr}", args.join(" "), output.status);
    stdout
}

/// A worker that runs as a process of its own, with its admin port.
pub struct Worker {
    /// For signals, memory, output.
    pub process: Process,
    admin: u16,
}

impl Worker {
    /// `windlass run ARGS` in `dir`, with an admin port of its own; does not wait for it to be ready.
    pub fn start(dir: &Path, name: &str, args: &[&str]) -> Self {
        let mut command = command(dir);
        command.arg("run").args(args);
        Self::spawn(dir, name, command)
    }

    /// A worker of another binary or with further environment; `command` already says `run`.
    pub fn spawn(dir: &Path, name: &str, mut command: Command) -> Self {
        let admin = port::free();
        command.arg("--set").arg(format!("admin.listen=127.0.0.1:{admin}"));
        let process = Process::spawn(name, command, dir).expect("the binary can be run");
        Self { process, admin }
    }

    /// Its admin port.
    pub fn admin(&self) -> u16 {
        self.admin
    }

    /// Waits until `/ready` says so.
    #[track_caller]
    pub fn ready(&mut self) {
        let admin = self.admin;
        self.process.until("is ready", Duration::from_secs(30), |_| {
            http::get(admin, "/ready").is_some_and(|(status, _)| status == 200)
        });
    }

    /// Waits until it hears signals: before it does one ends it, as it ends any process.
    #[track_caller]
    pub fn hears(&mut self) {
        let admin = self.admin;
        self.process.until("hears signals", Duration::from_secs(60), |_| http::get(admin, "/health").is_some());
    }

    /// A sample of its metrics; `None` where no line begins with `name`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, body) = http::get(self.admin, "/metrics")?;
        let line =
            body.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// SIGTERM, and waits until it has left; its exit code.
    #[track_caller]
    pub fn drain(&mut self, deadline: Duration) -> i32 {
        self.process.signal(libc::SIGTERM);
        self.process.code(deadline)
    }
}
