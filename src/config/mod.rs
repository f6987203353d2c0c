//! Configuration: a tree as people write it, then a checked [`Config`]; every fault at once.
//!
//! What others call:
//!
//! | function | for |
//! |---|---|
//! | [`find`]`(flag, env) -> Option<PathBuf>` | `--config`, `WINDLASS_CONFIG`, `windlass.toml` |
//! | [`load`]`(Source) -> Result<Loaded, Faults>` | every verb; [`Loaded::unknown`] are warnings |
//! | [`check`]`(Source) -> Result<Loaded, Faults>` | `config check`; [`Loaded::cautions`] are its warnings |
//! | [`check_run`]`(&Config, &[QueueName], &dyn Fn(&str) -> bool) -> Result<(), Faults>` | `run`, before it connects |
//! | [`check_namespace`]`(&Config) -> Option<Fault>` | verbs that write, off loopback |
//! | [`Config::slots`], [`Config::policy`], [`Config::timeout`] | what holds for a queue and a job |
//! | [`show`]`(&Loaded) -> String`, [`settings`]`(&Loaded) -> Vec<Setting>` | `config show`, as text and for JSON |
//! | [`init`]`() -> &'static str`, [`write_new`]`(path, text)` | `config init` |
//! | [`schema`]`() -> String` | `config schema` |
//! | [`template`]`() -> String` | `config/windlass.toml` |
//!
//! ```
//! use windlass::config::{Source, load};
//! let source = Source::new().text("windlass.toml", "broker = \"sqlite://a.db\"").sets(["worker.slots=128"]);
//! let loaded = load(source.flag("--broker", "broker", "sqlite://b.db")).unwrap();
//! assert_eq!((loaded.config.broker.as_str(), loaded.config.worker.slots.get()), ("sqlite://b.db", 128));
//! let faults = load(Source::new().text("windlass.toml", "borker = \"sqlite://a.db\"")).unwrap_err();
//! assert!(faults.to_string().starts_with("windlass.toml:1:1: borker: unknown key; did you mean \"broker\"?"));
//! ```
//!
//! Inside: `key` is the catalogue of keys; `document` and `environment` read, `walk` holds what was read against
//! the catalogue, `build` makes a [`Config`] of it.

mod fault;
mod key;
mod value;

mod document;
mod environment;
mod kafka;
mod meaning;
mod walk;

mod build;
mod load;
mod refusal;

mod effective;
mod schema;
mod show;
mod template;

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

pub use crate::broker::shown_address;
pub use build::{DEFAULT_BROKER, DEFAULT_HTTP_SLOTS, DEFAULT_NAMESPACE, DEFAULT_TIMEOUT};
pub use effective::{check_namespace, check_run};
pub use fault::{Fault, Faults, Place};
pub use load::{FILE, Loaded, Source, check, find, load};
pub use schema::schema;
pub use show::{Setting, settings, show};
pub use template::{init, template, write_new};

use crate::broker::{KafkaOptions, NatsOptions, SqliteOptions, Start};
use crate::handler::http;
use crate::message::{JobName, Namespace, QueueName, Topic};
use crate::worker::retry;

/// `[admin]`
pub use crate::admin::Config as Admin;
/// `[log]`
pub use crate::telemetry::log::{Config as Log, Format as LogFormat};

/// A configuration that was checked: whatever it says can be done.
#[derive(Clone, Debug)]
pub struct Config {
    /// The broker's address, password included; show it through [`shown_address`].
    pub broker: String,
    /// Whether somebody set it, or it is the default.
    pub broker_set: bool,
    /// Begins the name of all that we create.
    pub namespace: Namespace,
    /// Whether somebody set it.
    pub namespace_set: bool,
    /// `[worker]`
    pub worker: Worker,
    /// `[queues.X]`
    pub queues: BTreeMap<QueueName, Queue>,
    /// `[jobs.X]`
    pub jobs: BTreeMap<JobName, Job>,
    /// `[admin]`
    pub admin: Admin,
    /// `[log]`
    pub log: Log,
    /// `[sqlite]`
    pub sqlite: SqliteOptions,
    /// `[nats]`
    pub nats: NatsOptions,
    /// `[kafka]`
    pub kafka: KafkaOptions,
    /// Where the file was, if there was one.
    pub file: Option<PathBuf>,
}

/// `[worker]`
#[derive(Clone, Debug)]
pub struct Worker {
    /// Jobs running at once in this process, over all queues.
    pub slots: NonZeroUsize,
    /// Bytes of payload in flight; a job larger than this runs alone.
    pub bytes_in_flight: usize,
    /// What running jobs get on SIGTERM.
    pub grace: Duration,
    /// After so long a silence a worker's jobs go to others.
    pub lease: Duration,
    /// How long `run` waits at its start for a broker that is not there.
    pub connect: Duration,
}

/// `[queues.X]`
#[derive(Clone, Debug)]
pub struct Queue {
    /// Topics it hears.
    pub topics: Vec<Topic>,
    /// What runs an event of those topics.
    pub job: JobName,
    /// Its slots; `None`: `worker.slots`, or 8 where the job is HTTP.
    pub slots: Option<NonZeroUsize>,
    /// Its share when queues compete.
    pub weight: NonZeroU32,
    /// Of one attempt.
    pub timeout: Duration,
    /// `order = "key"`.
    pub ordered: bool,
    /// Of a queue seen for the first time.
    pub start: Start,
    /// Retry settings written for this queue.
    pub retry: retry::Partial,
    /// Crashes that condemn.
    pub max_crashes: u32,
    /// So long a job that nobody registered here is put back.
    pub unroutable_after: Duration,
    /// How long dead letters are kept; `None` is forever.
    pub keep_dead: Option<Duration>,
}

/// `[jobs.X]`
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Where it runs, if over HTTP.
    pub http: Option<http::Config>,
    /// Of one attempt.
    pub timeout: Option<Duration>,
    /// Retry settings written for this job.
    pub retry: retry::Partial,
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            slots: NonZeroUsize::new(64).expect("64 is not 0"),
            bytes_in_flight: 256 << 20,
            grace: Duration::from_secs(25),
            lease: Duration::from_secs(30),
            connect: Duration::from_secs(60),
        }
    }
}

impl Queue {
    /// A queue of this name with nothing but defaults: it hears no topic, and its job is called as it is.
    pub fn new(name: &QueueName) -> Self {
        Self {
            topics: Vec::new(),
            job: JobName::new(name.as_str()).expect("every queue's name is a job's name"),
            slots: None,
            weight: NonZeroU32::MIN,
            timeout: DEFAULT_TIMEOUT,
            ordered: false,
            start: Start::Earliest,
            retry: retry::Partial::default(),
            max_crashes: 3,
            unroutable_after: Duration::from_secs(15 * 60),
            keep_dead: Some(Duration::from_secs(30 * 86_400)),
        }
    }
}

#[cfg(test)]
mod tests;
