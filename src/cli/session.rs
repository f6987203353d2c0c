//! What verbs share: the flags of every verb, the configuration, the runtime, and the broker.

use std::future::Future;
use std::sync::Arc;

use super::args::{Format, Global};
use super::fault::Fault;
use super::output::Output;
use crate::broker::{self, Broker, Role};
use crate::config::Config;
use crate::telemetry::log;
use crate::{app, config};

/// One run of a verb.
pub struct Session {
    /// The flags of every verb.
    pub global: Global,
}

/// A verb's connection to the broker.
pub struct Connection {
    /// The broker.
    pub broker: Arc<dyn Broker>,
    /// What is in force.
    pub config: Config,
}

impl Session {
    /// With these flags.
    pub fn new(global: Global) -> Self {
        Self { global }
    }

    /// Whether stdout gets JSON.
    pub fn json(&self) -> bool {
        self.global.format() == Format::Json
    }

    /// Stdout.
    pub fn output(&self) -> Output {
        Output::stdout()
    }

    /// Says something on stderr, unless `-q`.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.global.quiet {
            eprintln!("{text}");
        }
    }

    /// The log level that `-q`, `-v` and `-vv` ask for.
    pub fn level(&self) -> Option<&'static str> {
        match (self.global.quiet, self.global.verbose) {
            (true, _) => Some("error"),
            (false, 0) => None,
            (false, 1) => Some("debug"),
            (false, _) => Some("trace"),
        }
    }

    /// The configuration: defaults < file < environment < flags.
    pub fn load(&self) -> Result<Config, Fault> {
        super::config::load(self)
    }

    /// Runs a verb that talks to the broker, in a runtime that lives as long as it does, and closes the broker.
    pub fn with_broker<T, F>(&self, role: Role, verb: &str, work: impl FnOnce(Connection) -> F) -> Result<T, Fault>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let config = self.load()?;
        if config.broker.starts_with("memory:") {
            return Err(Fault::usage(format!(
                "memory:// lives within one process, so `windlass {verb}` finds nothing there; use sqlite://PATH, \
                 nats://HOST:4222 or kafka://HOST:9092"
            )));
        }
        if !config.broker_set {
            self.note(format_args!(
                "note: no broker is set (--broker, WINDLASS_BROKER or a configuration file); using {}",
                config::shown_address(&config.broker)
            ));
        }
        if let Some(level) = self.level().filter(|_| !self.global.quiet) {
            let log = log::Config { level: level.to_owned(), level_set: true, format: log::Format::Pretty };
            log::install(&log, &log::worker_name(), false).map_err(|error| Fault::failed(error.to_string()))?;
        }
        runtime()?.block_on(async {
            let options = broker::Options { timeout: self.global.timeout, ..app::options(&config, role) };
            let broker = broker::connect(&config.broker, options).await?;
            let result = work(Connection { broker: broker.clone(), config }).await;
            broker.close().await;
            result
        })
    }
}

/// The runtime of a verb.
pub fn runtime() -> Result<tokio::runtime::Runtime, Fault> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Fault::failed(format!("starting the runtime: {error}")))
}

/// `--dry-run` of the verbs that write.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct DryRun {
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The known name that is nearest to what was typed, as `; did you mean "x"?`, or nothing.
pub fn did_you_mean<'a>(typed: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(typed, name), name))
        .filter(|(distance, name)| *distance <= 2.max(name.len() / 3))
        .min();
    near.map(|(_, name)| format!("; did you mean {name:?}?")).unwrap_or_default()
}
