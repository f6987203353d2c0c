//! Configuration: a raw shape as people write it, then a checked [`Config`]; every fault at once.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use crate::broker::{KafkaOptions, NatsOptions, SqliteOptions, Start};
use crate::handler::http;
use crate::message::{JobName, Namespace, QueueName, Topic};
use crate::worker::retry;

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

/// `[admin]`
#[derive(Clone, Debug)]
pub struct Admin {
    /// Where to listen; `None` turns it off.
    pub listen: Option<std::net::SocketAddr>,
    /// Whether somebody set it: the default may move to the next free port.
    pub listen_set: bool,
    /// Tokens, one a line.
    pub token_file: Option<PathBuf>,
}

/// The address without its password.
pub fn shown_address(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    match rest.rsplit_once('@') {
        Some((user, host)) if scheme != "sqlite" => {
            let user = user.split_once(':').map_or(user, |(name, _)| name);
            format!("{scheme}://{user}@{host}")
        }
        _ => address.to_owned(),
    }
}
