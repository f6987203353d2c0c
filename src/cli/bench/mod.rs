//! `bench`: how fast the worker is beside the broker's own client, and that it lost nothing meanwhile.
//!
//! Reading order: `plan` is what was asked for; [`run`] gives each round its turn; `round` is the story of one. Whoever
//! is measured is a `process` of its own that does what `play` says, and counts on a `board` that it shares with its
//! measurer; `gauge` reads what it used, `metronome` how
//! late the machine itself is. `body` is a job's argument, `load` publishes, `endpoint` answers HTTP jobs,
//! `name` tells what is left behind by a run that was killed, `figure` is what is told in the end.
//!
//! Invariants: the measurer judges by the board and by the broker, never by what a worker says of itself; whatever is
//! made bears the run's name, and is gone when the measurer has ended, or else when the next one begins.

mod plan;

mod round;

mod process;

mod play;

mod board;

mod gauge;

mod metronome;

mod body;

mod load;

mod endpoint;

mod name;

mod figure;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

pub use self::plan::Arguments;

use self::endpoint::Endpoint;
use self::figure::Figures;
use self::plan::{Kind, Plan};
use self::round::{Round, Scene};
use super::Done;
use super::fault::{FAILED, Fault, INTERRUPTED};
use super::output;
use super::session::Session;
use crate::broker::yardstick::{self, Yardstick};
use crate::broker::{self, Role};
use crate::{app, config};

/// Ended by SIGTERM.
const TERMINATED: u8 = 143;

/// Measures.
pub fn run(session: &Session, arguments: &Arguments) -> Done {
    if let Some(part) = &arguments.part {
        return process::run(session, part);
    }
    if session.global.config.is_some() {
        return Err(Fault::usage(
            "bench reads no configuration file; name the broker with --broker, and set what it needs with --set",
        ));
    }
    let address = session.global.broker.clone().unwrap_or_else(temporary);
    let plan = Plan::new(arguments, &address)?;
    if !yardstick::is_local(&address) && !arguments.yes {
        let shown = config::shown_address(&address);
        output::confirm(&format!("{shown} is not on this machine. Load it with {} jobs?", plan.ids()))?;
    }
    super::session::runtime()?.block_on(Box::pin(measure(session, &plan, &address)))
}

async fn measure(session: &Session, plan: &Plan, address: &str) -> Done {
    let run = name::new();
    let config = round::check(plan, &run, &session.global.set, address)?;
    let options = broker::Options { timeout: session.global.timeout, ..app::options(&config, Role::Worker) };
    let yardstick: Arc<dyn Yardstick> = Arc::from(yardstick::connect(address, &options).await?);
    clear(session, &*yardstick).await?;
    let scratch = Scratch::new(&run)?;
    let endpoint = match plan.kind {
        Kind::Http => Some(Endpoint::start(plan.takes).await?),
        _ => None,
    };
    let scene = Scene {
        session,
        plan,
        run: &run,
        scratch: &scratch.0,
        yardstick: &yardstick,
        address,
        endpoint: endpoint.as_ref(),
    };
    // A signal first: nobody waits for figures in order to leave. What is dropped with the rounds kills their parts.
    let measured = tokio::select! {
        biased;
        code = signalled() => Err(Fault::new(code, "interrupted")),
        rounds = rounds(&scene) => rounds,
    };
    // Of both, what went wrong first is what there is to tell.
    let removed = yardstick.remove(&run).await;
    let rounds = measured?;
    removed?;
    let figures = Figures::new(&config::shown_address(address), plan, &rounds);
    let mut out = session.output();
    if session.json() {
        out.json(&figures)?;
    } else {
        figures.write(&mut out, plan, &rounds)?;
    }
    out.flush()?;
    Ok(ExitCode::from(if figures.passes() { 0 } else { FAILED }))
}

async fn rounds(scene: &Scene<'_>) -> Result<Vec<Round>, Fault> {
    let mut rounds = Vec::new();
    for number in 1..=scene.plan.repeat {
        rounds.push(Box::pin(scene.round(number)).await?);
    }
    Ok(rounds)
}

/// Removes what runs that were killed have left: at the broker, and in the folder for temporary files.
async fn clear(session: &Session, yardstick: &dyn Yardstick) -> Result<(), Fault> {
    let there = std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    for entry in there.filter(|entry| entry.file_name().to_str().is_some_and(name::is_left)) {
        // Somebody else may have removed it, or own it.
        let _ = std::fs::remove_dir_all(entry.path());
    }
    for left in yardstick.runs(name::PREFIX).await?.into_iter().filter(|run| name::is_left(run)) {
        session.note(format_args!("note: removing what was left by {left}, which was killed"));
        yardstick.remove(&left).await?;
    }
    Ok(())
}

/// Waits for SIGINT or SIGTERM, and gives the exit code that it means.
async fn signalled() -> u8 {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    // Either: whichever comes is obeyed.
    tokio::select! {
        _ = int.recv() => INTERRUPTED,
        _ = term.recv() => TERMINATED,
    }
}

/// A folder of this run's own, removed with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(run: &str) -> Result<Self, Fault> {
        let path = std::env::temp_dir().join(run);
        std::fs::create_dir_all(&path).map_err(|error| Fault::file(&path, &error))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Else the next run does it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A file in the folder for temporary ones.
fn temporary() -> String {
    format!("sqlite://{}", std::env::temp_dir().join("windlass-bench.db").display())
}
