//! `config check|show|init|schema`, and how every verb gets its configuration.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::Done;
use super::fault::{CONFIG, Fault};
use super::session::Session;
use crate::config::{self, Config, Faults, Loaded, Source};
use crate::handler::Registry;

/// The verbs of `config`.
#[derive(Args, Debug)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Check a configuration, and say every fault at once
    #[command(after_help = "\
Examples:
  windlass config check
  windlass config check deploy/windlass.toml

Leaves with 78 where something must be changed. Checks the environment and --set too.")]
    Check {
        /// The file; else --config, WINDLASS_CONFIG or windlass.toml
        file: Option<PathBuf>,
    },
    /// Show what is in force, and where each value came from; secrets are hidden
    #[command(after_help = "\
Examples:
  windlass config show
  windlass config show --set worker.slots=128 | grep slots")]
    Show,
    /// Write a commented file that runs as it is (queue hello, job log)
    #[command(after_help = "\
Examples:
  windlass config init && windlass run
  windlass config init - | less

Never writes over a file that is there.")]
    Init {
        /// The file, or - for stdout
        #[arg(default_value = config::FILE)]
        file: PathBuf,
        /// Say what would be done, and do nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Write a JSON Schema of the file, for editors
    #[command(after_help = "\
Examples:
  windlass config schema > windlass.schema.json")]
    Schema,
}

/// Carries the verb out.
pub fn run(session: Session, registry: Registry, arguments: Arguments) -> Done {
    match arguments.verb {
        Verb::Check { file } => check(&session, &registry, file),
        Verb::Show => show(&session),
        Verb::Init { file, dry_run } => init(&session, file, dry_run),
        Verb::Schema => {
            let mut out = session.output();
            out.line(config::schema().trim_end())?;
            out.flush()?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What is in force: defaults < file < environment < flags.
pub fn load(session: &Session) -> Result<Config, Fault> {
    let loaded = config::load(source(session, None)).map_err(refused)?;
    for unknown in &loaded.unknown {
        session.note(format_args!("warning: {unknown}"));
    }
    Ok(loaded.config)
}

/// What `config check` would warn of; nothing where the configuration cannot be read.
pub fn cautions(session: &Session) -> Vec<config::Fault> {
    config::load(source(session, None)).map(|loaded| loaded.cautions).unwrap_or_default()
}

fn source(session: &Session, file: Option<PathBuf>) -> Source {
    let flag = file.or_else(|| session.global.config.clone());
    let mut source = Source::new()
        .file(config::find(flag, std::env::var_os("WINDLASS_CONFIG")))
        .env(std::env::vars_os())
        .sets(&session.global.set);
    if let Some(broker) = &session.global.broker {
        source = source.flag("--broker", "broker", broker);
    }
    source
}

/// Every fault, a line each.
pub fn refused(faults: Faults) -> Fault {
    let lines: Vec<String> = faults.0.iter().map(ToString::to_string).collect();
    Fault::new(CONFIG, lines.join("\nerror: "))
}

fn check(session: &Session, registry: &Registry, file: Option<PathBuf>) -> Done {
    let mut out = session.output();
    let loaded = match config::check(source(session, file)) {
        Ok(loaded) => loaded,
        Err(faults) if session.json() => {
            faults.0.iter().try_for_each(|fault| out.json(fault))?;
            out.flush()?;
            return Ok(ExitCode::from(CONFIG));
        }
        Err(faults) => return Err(refused(faults)),
    };
    for caution in &loaded.cautions {
        session.note(format_args!("warning: {caution}"));
    }
    // Another binary may have the jobs, so that an absent one is no fault of the file.
    if let Err(faults) = config::check_run(&loaded.config, &[], &|job| registry.get(job).is_some()) {
        for fault in faults.0 {
            session.note(format_args!("warning: `windlass run` of this binary would refuse: {fault}"));
        }
    }
    if !session.json() {
        let what =
            loaded.config.file.as_ref().map_or_else(|| "the defaults".to_owned(), |file| file.display().to_string());
        session.note(format_args!("{what}: nothing wrong"));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(session: &Session) -> Done {
    let loaded: Loaded = config::load(source(session, None)).map_err(refused)?;
    for unknown in &loaded.unknown {
        session.note(format_args!("warning: {unknown}"));
    }
    let mut out = session.output();
    if session.json() {
        config::settings(&loaded).iter().try_for_each(|setting| out.json(setting))?;
    } else {
        out.line(config::show(&loaded).trim())?;
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn init(session: &Session, file: PathBuf, dry_run: bool) -> Done {
    if file.as_os_str() == "-" {
        let mut out = session.output();
        out.bytes(config::init().as_bytes())?;
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    if dry_run {
        if file.exists() {
            return Err(exists(&file));
        }
        session.note(format_args!("dry run: {} would be written", file.display()));
        return Ok(ExitCode::SUCCESS);
    }
    match config::write_new(&file, config::init()) {
        Ok(()) => {
            session.note(format_args!(
                "{} is written; try:\n  windlass run\n  windlass publish hello.said '{{\"name\":\"Ada\"}}'",
                file.display()
            ));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists(&file)),
        Err(error) => Err(Fault::file(&file, &error)),
    }
}

fn exists(file: &std::path::Path) -> Fault {
    Fault::failed(format!(
        "{} is there already and is left as it is; name another file, or - for stdout",
        file.display()
    ))
}
