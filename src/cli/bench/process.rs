//! A part that is measured, as its measurer sees it: a child of this program, or a thread of it.

use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::gauge::Gauge;
use super::play::{Inside, Order, Part, play};
use crate::cli::fault::Fault;
use crate::cli::session::Session;
use crate::telemetry::log;

/// How long a part may take to leave.
const LEAVE: Duration = Duration::from_secs(30);

/// A part that runs. Dropped before it has left, it is killed.
pub struct Process {
    /// What it uses.
    pub gauge: Gauge,
    /// When it was started; see [`now`](super::board::now).
    pub began: u64,
    inner: Inner,
}

enum Inner {
    Child { child: Child, orders: Option<ChildStdin> },
    Thread { thread: Option<JoinHandle<Result<(), Fault>>>, orders: Option<mpsc::UnboundedSender<Order>> },
}

impl Process {
    /// Starts it; `scratch` is a folder for what it reads.
    pub fn start(part: &Part, inside: Option<Inside>, scratch: &Path, session: &Session) -> Result<Self, Fault> {
        let failed = |error: std::io::Error| Fault::failed(format!("starting what is measured: {error}"));
        let began = super::board::now();
        if let Some(inside) = inside {
            let (sender, orders) = mpsc::unbounded_channel();
            let (part, gauge) = (part.clone(), Gauge(std::process::id()));
            gauge.reset_peak();
            let thread = std::thread::Builder::new()
                .name("windlass-bench".to_owned())
                .spawn(move || crate::cli::session::runtime()?.block_on(play(part, Some(inside), orders)))
                .map_err(failed)?;
            let inner = Inner::Thread { thread: Some(thread), orders: Some(sender) };
            return Ok(Self { gauge, began, inner });
        }
        let path = scratch.join("part.json");
        std::fs::write(&path, serde_json::to_vec(part).unwrap_or_default()).map_err(failed)?;
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("bench").arg("--part").arg(&path).stdin(Stdio::piped()).stdout(Stdio::null());
        command.args(std::iter::repeat_n("-v", session.global.verbose.into()));
        // An interrupt on the terminal is for the measurer, which ends its parts itself.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(failed)?;
        let orders = child.stdin.take();
        Ok(Self { gauge: Gauge(child.id()), began, inner: Inner::Child { child, orders } })
    }

    /// Has it publish.
    pub fn order(&mut self, order: &Order) -> Result<(), Fault> {
        let gone = || Fault::failed("what is measured ended early");
        match &mut self.inner {
            Inner::Child { orders, .. } => {
                let line = serde_json::to_string(order).unwrap_or_default();
                let orders = orders.as_mut().ok_or_else(gone)?;
                writeln!(orders, "{line}").and_then(|()| orders.flush()).map_err(|_| gone())
            }
            Inner::Thread { orders, .. } => orders.as_ref().ok_or_else(gone)?.send(order.clone()).map_err(|_| gone()),
        }
    }

    /// Whether it has ended by itself, which it should not; what it had to say is on stderr already.
    pub fn check(&mut self) -> Result<(), Fault> {
        match &mut self.inner {
            Inner::Child { child, .. } => match child.try_wait() {
                Ok(Some(status)) => Err(ended(status)),
                Ok(None) => Ok(()),
                Err(error) => Err(Fault::failed(format!("waiting for what is measured: {error}"))),
            },
            Inner::Thread { thread, .. } => match thread.take_if(|thread| thread.is_finished()) {
                Some(thread) => Err(joined(thread).err().unwrap_or_else(|| Fault::failed("the part ended early"))),
                None => Ok(()),
            },
        }
    }

    /// Has it leave, and waits until it has.
    pub async fn leave(mut self) -> Result<(), Fault> {
        let deadline = Instant::now() + LEAVE;
        loop {
            let left = match &mut self.inner {
                Inner::Child { child, orders } => {
                    drop(orders.take());
                    match child.try_wait() {
                        Ok(Some(status)) if status.success() => true,
                        Ok(Some(status)) => return Err(ended(status)),
                        Ok(None) => false,
                        Err(error) => return Err(Fault::failed(format!("waiting for what is measured: {error}"))),
                    }
                }
                Inner::Thread { thread, orders } => {
                    drop(orders.take());
                    match thread.take_if(|thread| thread.is_finished()) {
                        Some(thread) => return joined(thread),
                        None => false,
                    }
                }
            };
            if left {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(Fault::failed(format!("what is measured did not leave within {LEAVE:?}")));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Inner::Child { child, .. } = &mut self.inner {
            // It may have ended already; nothing else can be done about one that cannot be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ended(status: std::process::ExitStatus) -> Fault {
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0);
    Fault::new(code.unwrap_or(crate::cli::fault::FAILED), format!("what is measured ended early ({status})"))
}

fn joined(thread: JoinHandle<Result<(), Fault>>) -> Result<(), Fault> {
    thread.join().unwrap_or_else(|_| Err(Fault::failed("what is measured panicked")))
}

/// The other side: what `bench --part FILE` does. Orders come as lines of stdin, whose end says to leave, also where
/// the measurer was killed.
pub fn run(session: &Session, path: &Path) -> Result<ExitCode, Fault> {
    let text = std::fs::read(path).map_err(|error| Fault::file(path, &error))?;
    let part: Part = serde_json::from_slice(&text)
        .map_err(|error| Fault::usage(format!("{} is not for you: {error}", path.display())))?;
    let level = session.level().unwrap_or("error");
    let log = log::Config { level: level.to_owned(), level_set: true, format: log::Format::Pretty };
    log::install(&log, &log::worker_name(), false).map_err(|error| Fault::failed(error.to_string()))?;
    let (sender, orders) = mpsc::unbounded_channel();
    // Ends with stdin, or with the process.
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if let Ok(order) = serde_json::from_str(&line)
                && sender.send(order).is_err()
            {
                return;
            }
        }
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("windlass-bench")
        .enable_all()
        .build()
        .map_err(|error| Fault::failed(format!("starting the runtime: {error}")))?;
    let played = runtime.block_on(play(part, None, orders));
    runtime.shutdown_background();
    played.map(|()| ExitCode::SUCCESS)
}
