//! Config -> build -> App -> run; the only file that knows every module.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::{self, Broker, Options, Role};
use crate::config::Config;
use crate::handler::Registry;
use crate::seeded;
use crate::shutdown::Shutdown;
use crate::telemetry::log;
use crate::time::Clock;

/// What keeps an application from starting or ended it early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker.
    #[error("{0}")]
    Broker(#[from] broker::Error),
    /// A person must change something; exit code 78.
    #[error("{0}")]
    Config(String),
}

impl Error {
    /// The exit code of INTERFACE 5.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Broker(error) => error.exit_code(),
            Self::Config(_) => 78,
        }
    }
}

/// The broker options that a configuration says, for a process in this role.
pub fn options(config: &Config, role: Role) -> Options {
    let queues = config.queues.iter().map(|(name, queue)| broker::Queue {
        name: name.clone(),
        topics: queue.topics.clone(),
        job: queue.job.clone(),
        slots: config.slots(name),
        ordered: queue.ordered && !seeded::bug("order-ignored"),
        start: queue.start,
        max_crashes: queue.max_crashes,
        keep_dead: queue.keep_dead,
    });
    Options {
        namespace: config.namespace.clone(),
        namespace_set: config.namespace_set,
        role,
        timeout: REQUEST_TIMEOUT,
        lease: config.worker.lease,
        grace: config.worker.grace,
        queues: queues.collect(),
        worker: log::worker_name().into(),
        clock: Clock::System,
        sqlite: config.sqlite.clone(),
        nats: config.nats.clone(),
        kafka: config.kafka.clone(),
    }
}

/// How long one request to the broker may take, unless `--timeout` says otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to the configured broker in this role. Must be called within a tokio runtime, which the broker's own
/// tasks live on.
pub async fn connect(config: &Config, role: Role) -> Result<Arc<dyn Broker>, broker::Error> {
    broker::connect(&config.broker, options(config, role)).await
}

/// What a worker did, for `run --burst`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Jobs done.
    pub done: u64,
    /// Attempts that will be made again.
    pub retried: u64,
    /// Dead letters.
    pub dead: u64,
}

/// How a worker runs beside what its configuration says.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Only these queues; all where empty.
    pub queues: Vec<crate::message::QueueName>,
    /// Leave once nothing is ready, running or to be retried within this time.
    pub burst: Option<Duration>,
    /// `--from`: where groups whose offsets have expired begin.
    pub from: Option<broker::Start>,
}

/// An application: a checked configuration and its jobs.
pub struct App {
    config: Config,
    registry: Registry,
    options: RunOptions,
}

impl App {
    /// Checks that every queue's job is there.
    pub fn new(config: Config, registry: Registry) -> Result<Self, Error> {
        Ok(Self { config, registry, options: RunOptions::default() })
    }

    /// With these options.
    pub fn with(mut self, options: RunOptions) -> Self {
        self.options = options;
        self
    }

    /// Works until `shutdown` says to leave (or the burst is over). Blocks this thread; makes its own runtimes:
    /// one for handlers, one for broker I/O and leases, one thread for the admin port.
    pub fn run(self, _shutdown: Shutdown) -> Result<Tally, Error> {
        let _ = (self.config, self.registry, self.options);
        Err(Error::Config("not built yet".to_owned()))
    }
}
