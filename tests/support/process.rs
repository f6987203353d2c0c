//! A child process: its output in files, signals by pid, waiting with a deadline, and no way to outlive its test.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, mpsc};
use std::time::Duration;

use super::wait;

/// A running child. Dropping it kills and reaps it.
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Process {
    /// Starts `command`; its output goes to `NAME.out` and `NAME.err` in `dir`, after what is there already.
    pub fn spawn(name: &str, mut command: Command, dir: &Path) -> io::Result<Self> {
        let [stdout, stderr] = ["out", "err"].map(|end| dir.join(format!("{name}.{end}")));
        let append = |path: &Path| std::fs::OpenOptions::new().create(true).append(true).open(path);
        command.stdin(Stdio::null()).stdout(append(&stdout)?).stderr(append(&stderr)?);
        let child = nurse(command)?;
        Ok(Self { name: name.to_owned(), child, ended: None, stdout, stderr })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stdout so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Sends a signal; `libc::SIGTERM` and so on. Nothing happens where it has ended already.
    pub fn signal(&mut self, signal: i32) {
        if self.poll().is_none() {
            // SAFETY: the child was not reaped yet, so its pid is still its own.
            let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
            assert_eq!(sent, 0, "{}: kill({signal}): {}", self.name, io::Error::last_os_error());
        }
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(libc::SIGKILL);
        self.wait(Duration::from_secs(10))
    }

    /// SIGSTOP: frozen until [`Process::thaw`].
    pub fn freeze(&mut self) {
        self.signal(libc::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&mut self) {
        self.signal(libc::SIGCONT);
    }

    /// Its status, if it has ended.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("a child can be waited for");
        }
        self.ended
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// After `deadline`, with the end of what it wrote.
    #[track_caller]
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let start = std::time::Instant::now();
        while self.poll().is_none() && start.elapsed() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        self.ended.unwrap_or_else(|| panic!("{} still runs after {deadline:?}\n{}", self.name, self.tail()))
    }

    /// Waits until it has ended and gives its exit code, or 128 + the signal that ended it.
    #[track_caller]
    pub fn code(&mut self, deadline: Duration) -> i32 {
        let status = self.wait(deadline);
        status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
    }

    /// Waits until `ready`, and panics with what it wrote where it ends before.
    #[track_caller]
    pub fn until(&mut self, what: &str, deadline: Duration, mut ready: impl FnMut(&Self) -> bool) {
        let what = format!("{}: {what}", self.name);
        wait::until(&what, deadline, || {
            if let Some(status) = self.poll() {
                panic!("{what}, but it ended with {status}\n{}", self.tail());
            }
            ready(self)
        });
    }

    /// Resident memory now, in bytes; `None` where it has ended.
    pub fn rss(&self) -> Option<u64> {
        self.status_kib("VmRSS:").map(|kib| kib * 1_024)
    }

    /// The most resident memory it ever had, in bytes.
    pub fn peak_rss(&self) -> Option<u64> {
        self.status_kib("VmHWM:").map(|kib| kib * 1_024)
    }

    /// Processor time it used, user and system.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).ok()?;
        // After the name in parentheses: state is field 3, utime 14, stime 15.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        // SAFETY: a question without arguments that matter to memory.
        let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) }.max(1) as u64;
        Some(Duration::from_millis(ticks * 1_000 / per_second))
    }

    /// Threads it has now.
    pub fn threads(&self) -> Option<u64> {
        self.status_kib("Threads:")
    }

    fn status_kib(&self, field: &str) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find(|line| line.starts_with(field))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// The last lines of both outputs, for a failure's message.
    pub fn tail(&self) -> String {
        let last = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(30)..].join("\n")
        };
        format!("--- {} stdout\n{}\n--- stderr\n{}", self.name, last(self.stdout()), last(self.stderr()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.poll().is_none() {
            // It may end by itself between the two; then there is nothing to kill.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command to its end and gives what it wrote to stdout.
///
/// # Panics
/// Where it fails, with what it wrote.
#[track_caller]
pub fn output(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}\n{text}\n{errors}", output.status);
    text
}

fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

type Order = (Command, mpsc::Sender<io::Result<Child>>);

/// Spawns on a thread that lives as long as this process. The kernel sends the death signal when the *thread* that
/// spawned a child ends, and a test's thread ends with the test, while a shared server goes on.
fn nurse(mut command: Command) -> io::Result<Child> {
    static NURSE: OnceLock<Mutex<mpsc::Sender<Order>>> = OnceLock::new();
    let nurse = NURSE.get_or_init(|| {
        let (orders, received) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                // A test that was cancelled meanwhile wants no answer; the child is killed by its drop then.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(orders)
    });
    // SAFETY: prctl is async-signal-safe and touches nothing of the parent.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
    let (answer, answered) = mpsc::channel();
    nurse.lock().expect("no order panics").send((command, answer)).expect("the thread never ends");
    answered.recv().expect("the thread answers each order")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> (tempfile::TempDir, Process) {
        let dir = tempfile::tempdir().expect("a folder");
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let process = Process::spawn("sh", command, dir.path()).expect("sh starts");
        (dir, process)
    }

    #[test]
    fn output_and_exit_code_are_seen() {
        let (_dir, mut process) = sh("echo out; echo err >&2; exit 7");
        assert_eq!(process.code(Duration::from_secs(5)), 7);
        assert_eq!((process.stdout().as_str(), process.stderr().as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn a_killed_one_says_by_what() {
        let (_dir, mut process) = sh("echo up; exec sleep 60");
        process.until("is up", Duration::from_secs(5), |p| p.stdout().contains("up"));
        assert!(process.rss().expect("it lives") > 0);
        process.signal(libc::SIGTERM);
        assert_eq!(process.code(Duration::from_secs(5)), 128 + libc::SIGTERM);
    }

    #[test]
    fn a_frozen_one_does_nothing_until_it_is_thawed() {
        let (_dir, mut process) = sh("trap 'echo term; exit 3' TERM; echo up; while :; do sleep 0.01; done");
        process.until("is up", Duration::from_secs(5), |p| p.stdout().contains("up"));
        process.freeze();
        let stopped = |p: &Process| {
            std::fs::read_to_string(format!("/proc/{}/stat", p.pid())).is_ok_and(|stat| stat.contains(") T "))
        };
        process.until("is stopped", Duration::from_secs(5), stopped);
        process.signal(libc::SIGTERM);
        assert!(process.poll().is_none());
        process.thaw();
        assert_eq!(process.code(Duration::from_secs(5)), 3);
    }

    #[test]
    fn dropping_kills() {
        let (_dir, process) = sh("exec sleep 60");
        let pid = process.pid();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }
}
