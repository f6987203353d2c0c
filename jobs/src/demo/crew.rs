//! The workers: this same program, started again as a process of its own, so that one can be killed.

use std::error::Error;
use std::io;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::process::{Child, Command};
use windlass::config::{Source, load};
use windlass::shutdown::Shutdown;
use windlass::{App, Context, Registry};
use windlass_lab::report::Report;
use windlass_lab::{Lab, analytics, archive, invoice, notify, render};

use crate::ledger::Pen;

/// The word that makes this program a worker.
pub const WORKER: &str = "worker";

/// A worker as a process of its own. It dies with the demonstration.
pub struct Hand(Child);

impl Hand {
    /// Starts one in the demonstration's folder; mail goes to this server where there is one.
    pub fn start(folder: &Path, smtp: Option<&str>) -> io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(WORKER).arg(folder).args(smtp).stdin(Stdio::null()).kill_on_drop(true);
        // Ctrl-C is the demonstration's: it ends, and its workers with it.
        Ok(Self(command.process_group(0).spawn()?))
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.0.id().unwrap_or(0)
    }

    /// Says why, where it has ended.
    pub fn check(&mut self) -> Result<(), Box<dyn Error>> {
        match self.0.try_wait()? {
            None => Ok(()),
            Some(status) => Err(format!("the worker left before everything was done: {status}").into()),
        }
    }

    /// `kill -9`.
    pub async fn kill(mut self) -> io::Result<()> {
        self.0.kill().await
    }

    /// SIGTERM: a drain. Resolves when it has left.
    pub async fn leave(mut self) -> Result<(), Box<dyn Error>> {
        let pid = libc::pid_t::try_from(self.pid())?;
        // SAFETY: sends a signal to our own child, which was not waited for yet; touches no memory.
        if unsafe { libc::kill(pid, libc::SIGTERM) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        let status = tokio::time::timeout(Duration::from_secs(30), self.0.wait()).await??;
        if status.success() { Ok(()) } else { Err(format!("the worker left with {status}").into()) }
    }

    /// Its resident memory in MiB; `None` where the system does not say.
    pub fn memory(&self) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib / 1_024.0)
    }
}

/// What a worker does: `demo worker FOLDER [SMTP]`.
pub fn work(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let Some(folder) = arguments.next() else { return ExitCode::from(2) };
    match run(Path::new(&folder), arguments.next()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demonstration's worker: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &Path, smtp: Option<String>) -> Result<(), Box<dyn Error>> {
    let source = Source::new().file(Some(folder.join("reports.toml")));
    let config = load(source.flag("the demonstration", "admin.listen", "none"))?.config;
    let lab = Lab::at(folder);
    let lab = match smtp {
        Some(url) => lab.with_smtp(&url).map_err(|error| error.message().to_owned())?,
        None => lab,
    };
    App::new(config, registry(lab, &Pen::at(&folder.join("ledger"))?)).run(Shutdown::default())?;
    Ok(())
}

/// The laboratory's jobs, each of which writes down when it begins and when it has ended.
fn registry(lab: Lab, pen: &Pen) -> Registry {
    Registry::new()
        .job("notify", noted(pen, notify::notify))
        .job("invoice", noted(pen, invoice::invoice))
        .job("analytics", noted(pen, analytics::analytics))
        .blocking("archive", noted_blocking(pen, archive::archive))
        .blocking("render", noted_blocking(pen, render::render))
        .state(lab)
}

fn noted<T, Fut>(
    pen: &Pen,
    job: fn(Report, Context) -> Fut,
) -> impl Fn(Report, Context) -> futures_util::future::BoxFuture<'static, Result<T, windlass::Error>> + Send + Sync + 'static
where
    T: Send + 'static,
    Fut: Future<Output = Result<T, windlass::Error>> + Send + 'static,
{
    let pen = pen.clone();
    move |report, cx| {
        let pen = pen.clone();
        Box::pin(async move {
            pen.start(&report, &cx)?;
            pen.end(&cx.clone(), job(report, cx).await)
        })
    }
}

fn noted_blocking<T>(
    pen: &Pen,
    job: fn(Report, Context) -> Result<T, windlass::Error>,
) -> impl Fn(Report, Context) -> Result<T, windlass::Error> + Send + Sync + 'static
where
    T: 'static,
{
    let pen = pen.clone();
    move |report, cx| {
        pen.start(&report, &cx)?;
        pen.end(&cx.clone(), job(report, cx))
    }
}
