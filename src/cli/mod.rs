//! The command line: one file a verb group.
//!
//! Reading order: `args` is what may be typed, [`main`] sends each verb to its file, `session` is what verbs share
//! (configuration, broker, output), `fault` how they fail. Data goes to stdout, everything else to stderr; what
//! scripts rely on is in `shape`.

mod args;
mod dlq;

mod attempt;
mod bench;
mod completions;
mod config;
mod doctor;
mod enqueue;
mod publish;
mod queues;
mod ready;
mod run;
mod status;

mod condition;
mod event;
mod fault;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod input;
mod output;
mod session;
mod shape;
mod table;
mod when;

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue, ErrorKind};

use self::args::{Arguments, Verb};
use self::fault::Fault;
use self::session::Session;
use crate::handler::Registry;

/// Runs the command line of a binary with these jobs: `windlass::cli::main(Registry::new().job("invoice", invoice))`.
pub fn main(registry: Registry) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    let session = Session::new(arguments.global);
    let done = match arguments.verb {
        Verb::Run(arguments) => run::run(session, registry, arguments),
        Verb::Publish(arguments) => publish::run(session, arguments),
        Verb::Enqueue(arguments) => enqueue::run(session, arguments),
        Verb::Status(arguments) => status::run(session, arguments),
        Verb::Dlq(arguments) => dlq::run(session, arguments),
        Verb::Queues(arguments) => queues::run(session, arguments),
        Verb::Completions(arguments) => completions::run(session, arguments),
        Verb::Try(arguments) => attempt::run(session, registry, arguments),
        Verb::Ready(arguments) => ready::run(session, arguments),
        Verb::Config(arguments) => config::run(session, registry, arguments),
        Verb::Doctor(arguments) => doctor::run(session, registry, arguments),
        Verb::Bench(arguments) => bench::run(&session, &arguments),
    };
    match done {
        Ok(code) => code,
        Err(fault) => fault.report(),
    }
}

/// Verbs that have a name and no meaning yet.
const RESERVED: [&str; 6] = ["jobs", "pause", "resume", "adopt", "cancel", "schedule"];

/// What clap says of a wrong command line: help with 0, everything else with 2.
fn refuse(error: &clap::Error) -> ExitCode {
    let said = error.print();
    if error.kind() == ErrorKind::InvalidSubcommand
        && let Some(ContextValue::String(verb)) = error.get(ContextKind::InvalidSubcommand)
        && RESERVED.contains(&verb.as_str())
    {
        eprintln!("\n  note: `{verb}` is reserved for a later version of windlass; this one does not have it");
    }
    match said {
        // A closed pipe: whoever asked for help has read enough of it.
        Err(_) => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
    }
}

/// A fault or an exit code that says how it went.
type Done = Result<ExitCode, Fault>;
