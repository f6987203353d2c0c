//! What a broker must be able to say; [`connect`] is the one place where an address becomes a broker.
//!
//! The worker knows deliveries, dispositions and credit. It knows nothing of leases, offsets, epochs, subjects,
//! rows or batches: an adapter never imports another adapter, and its client library's types never leave its
//! folder. A new broker is a folder, an arm in [`connect`], a feature, and a line in the conformance suite.
//!
//! - **Runtimes.** An adapter does its I/O, and extends its leases, on tasks that it spawns in [`connect`] and
//!   [`Broker::open`], which are called on the I/O runtime. The futures of [`Source`] and [`Settler`] are polled on
//!   the handlers' runtime: they only wait for those tasks, through channels and locks held for an instant.
//! - **Leases.** An adapter extends the lease of every delivery in hand, from receiving it until it is settled or
//!   released. A delivery of a job that this process still has in hand is not handed over a second time: the adapter
//!   lets it join (takes over its newer lease).
//! - **Lanes.** A source serves both lanes of its queue within one credit.
//! - **Order.** Where [`Queue::ordered`], the source hands over at most one delivery of a key at a time, in order, and
//!   a delivery that waits for its retry keeps its key waiting. The engine knows nothing of keys.
//! - **Crashes.** The adapter counts them and says so by [`Delivery::suspect`] and [`Delivery::condemned`].

mod address;
pub mod delivery;
pub mod fingerprint;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
#[cfg(feature = "kafka")]
mod kafka;
/// What Kafka's adapter reads of others, for `fuzz/`: without the client library, which takes minutes to build.
#[cfg(all(feature = "fuzz", not(feature = "kafka")))]
#[allow(dead_code, reason = "the rest of the adapter uses what the fuzzer does not")]
mod kafka {
    pub mod memo;
    pub mod outgoing;
    pub mod span;
}
pub mod letter;
mod memory;
#[cfg(feature = "nats")]
mod nats;
pub mod redrive;
#[cfg(test)]
mod schedule;
pub mod selector;
pub mod shape;
#[cfg(feature = "sqlite")]
mod sqlite;
pub mod yardstick;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

pub(crate) use address::{check, is_loopback, kafka_option_fault};
pub use address::{connect, shown_address};
pub use delivery::{Channel, Delivery, Lane, Leases, Lost, Settlement, Token};
pub(crate) use memory::{Timetable, connect_with_timetable};

use crate::message::record::Record;
use crate::message::{Attempt, Failure, JobName, Message, Namespace, QueueName, Reason, Topic};
use crate::time::{Clock, Timestamp};

/// What kept a broker from doing what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Waiting may help: unreachable, locked, disk full, no leader. Exit code 69.
    #[error("{0}")]
    Unavailable(String),
    /// Somebody else does now what only one may do at a time, and will have ended. Exit code 69.
    #[error("{0}")]
    Taken(String),
    /// A person must change something: credentials, permission, a foreign or newer file, a setting that would
    /// lose jobs. Exit code 78.
    #[error("{0}")]
    Refused(String),
    /// No such queue, dead letter or topic. Exit code 1.
    #[error("{0}")]
    NotFound(String),
    /// This message will never be taken: too large, or no queue hears its topic. Exit code 1.
    #[error("{0}")]
    Rejected(String),
    /// The address or the verb does not fit this broker. Exit code 2.
    #[error("{0}")]
    Usage(String),
}

impl Error {
    /// Waiting may help, without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Taken(_))
    }

    /// The exit code of INTERFACE 5.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unavailable(_) | Self::Taken(_) => 69,
            Self::Refused(_) => 78,
            Self::NotFound(_) | Self::Rejected(_) => 1,
            Self::Usage(_) => 2,
        }
    }
}

/// One queue as a broker needs to know it.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Its name.
    pub name: QueueName,
    /// The topics it hears; none where it takes only jobs enqueued for it.
    pub topics: Vec<Topic>,
    /// The job that its events run.
    pub job: JobName,
    /// Jobs of it running at once in this process.
    pub slots: NonZeroUsize,
    /// Whether events of one key are handed out one at a time and in order.
    pub ordered: bool,
    /// Where a queue that is seen for the first time begins.
    pub start: Start,
    /// Crashes that condemn; at `max_crashes - 1` a job runs alone among suspects.
    pub max_crashes: u32,
    /// How long dead letters are kept; `None` is forever.
    pub keep_dead: Option<Duration>,
}

/// Where a queue that is seen for the first time begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Start {
    /// With the oldest event that is there.
    #[default]
    Earliest,
    /// With what is published from now on.
    Latest,
    /// With what was published from then on.
    At(Timestamp),
}

/// Who connects, which decides what may be created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `run`: everything.
    Worker,
    /// `publish`, `enqueue`: the SQLite file, topics that nobody covers.
    Producer,
    /// All others: nothing.
    Reader,
}

/// What [`connect`] needs beside the address.
#[derive(Clone, Debug)]
pub struct Options {
    /// Begins the name of all that we create.
    pub namespace: Namespace,
    /// Whether the namespace was set by a person (it must be, off loopback).
    pub namespace_set: bool,
    /// Who connects.
    pub role: Role,
    /// How long one request to the broker may take.
    pub timeout: Duration,
    /// After so long a silence a worker's jobs go to others.
    pub lease: Duration,
    /// How long running jobs get at a shutdown; bounds a rebalance's wait.
    pub grace: Duration,
    /// The queues of the configuration, all of them, whether this process works them or not.
    pub queues: Vec<Queue>,
    /// Names this process in presence records and logs.
    pub worker: Arc<str>,
    /// The wall clock.
    pub clock: Clock,
    /// `[sqlite]`
    pub sqlite: SqliteOptions,
    /// `[nats]`
    pub nats: NatsOptions,
    /// `[kafka]`
    pub kafka: KafkaOptions,
}

/// `[sqlite]` of the configuration.
#[derive(Clone, Debug, Default)]
pub struct SqliteOptions {
    /// `synchronous = "normal"`: a power cut may lose the last commits.
    pub synchronous_normal: bool,
}

/// Certificates for TLS.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Trusted roots beside the system's, PEM.
    pub ca_file: Option<std::path::PathBuf>,
    /// Client certificate, PEM.
    pub cert_file: Option<std::path::PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<std::path::PathBuf>,
    /// NATS: TLS before the server's greeting.
    pub first: bool,
}

/// `[nats]` of the configuration. Files are read again at each reconnect.
#[derive(Clone, Debug, Default)]
pub struct NatsOptions {
    /// `create = false`: streams and consumers of ours must be there already.
    pub no_create: bool,
    /// User name.
    pub user: Option<String>,
    /// Its password.
    pub password_file: Option<std::path::PathBuf>,
    /// A token.
    pub token_file: Option<std::path::PathBuf>,
    /// An nkey seed.
    pub nkey_file: Option<std::path::PathBuf>,
    /// A `.creds` file.
    pub credentials_file: Option<std::path::PathBuf>,
    /// TLS.
    pub tls: TlsOptions,
    /// Replicas of streams of ours; `None`: 3 where the cluster has three nodes, else 1.
    pub replicas: Option<usize>,
    /// Age limit of `N_events`; `None`: 7 days.
    pub keep: Option<Duration>,
}

/// `[kafka]` of the configuration.
#[derive(Clone, Debug, Default)]
pub struct KafkaOptions {
    /// `create = false`: topics of ours must be there already.
    pub no_create: bool,
    /// `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or `OAUTHBEARER`.
    pub sasl_mechanism: Option<String>,
    /// SASL user.
    pub sasl_user: Option<String>,
    /// SASL password.
    pub sasl_password_file: Option<std::path::PathBuf>,
    /// A command that prints an OAUTHBEARER token.
    pub sasl_token_command: Option<String>,
    /// TLS.
    pub tls: TlsOptions,
    /// `group_protocol = "consumer"`: KIP-848.
    pub group_protocol_consumer: bool,
    /// Static membership.
    pub instance_id: Option<String>,
    /// Replication factor of topics of ours; `None`: 3 where there are three brokers, else 1.
    pub replication: Option<i32>,
    /// Partitions of topics of ours; `None`: those of the source topic, else 4.
    pub partitions: Option<i32>,
    /// The longest retry that waits in place; `None`: 30 s.
    pub in_place: Option<Duration>,
    /// `run --from`: a person says where groups without a place begin, which each [`Queue::start`] then is. `None`:
    /// a group that had a place and lost it (its offsets have expired) is refused instead of beginning afresh.
    pub from: Option<Start>,
    /// Passed to librdkafka.
    pub options: Vec<(String, String)>,
}

/// A connected broker.
pub trait Broker: Send + Sync {
    /// The address without passwords.
    fn address(&self) -> &str;

    /// Whether it answers now; what `/ready` and `broker_connected` show.
    fn connected(&self) -> bool;

    /// Opens a queue for working it. Creates what is missing where it may.
    fn open<'a>(&'a self, queue: &'a Queue) -> BoxFuture<'a, Result<Opened, Error>>;

    /// For publishing and enqueueing.
    fn publisher(&self) -> Arc<dyn Publisher>;

    /// For the dead-letter verbs.
    fn dead_letters(&self) -> Arc<dyn DeadLetters>;

    /// For `status`, `queues` and `doctor`.
    fn inspect(&self) -> Arc<dyn Inspect>;

    /// Flushes, withdraws this worker's presence, and closes. Nothing may be used afterwards.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// A queue that was opened for work.
pub struct Opened {
    /// One task at a time uses it.
    pub source: Box<dyn Source>,
    /// Shared.
    pub settler: Arc<dyn Settler>,
    /// What to tell the operator about the start: "starts with 1,204 old events". Logged once.
    pub notes: Vec<String>,
}

/// How much may be handed over now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Deliveries, over both lanes. At least 1.
    pub jobs: usize,
    /// Of these, so many are for the fresh lane where it has work.
    pub fresh_floor: usize,
    /// Of these, so many are for the retry lane where it has work.
    pub retry_floor: usize,
    /// Bytes of payload; one delivery may exceed them.
    pub bytes: usize,
    /// Whether a suspect (see [`Delivery::suspect`]) may be handed over: at most one, and none while one runs.
    pub suspect: bool,
}

/// Where deliveries come from. One task at a time owns it.
pub trait Source: Send {
    /// Waits until there is something, and hands over at most the credit (plus at most one a consumer that the
    /// adapter reads). Nothing because of a rebalance, a reconnect or an election is an empty answer, not an
    /// error. An error is final for this source only if it is not transient.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: what had arrived is handed over by the next call.
    fn receive(&mut self, credit: Credit) -> BoxFuture<'_, Result<Vec<Delivery>, Error>>;

    /// Ends intake for good and gives back what the adapter holds and has not handed over. Settling goes on.
    fn stop(&mut self) -> BoxFuture<'_, ()>;
}

/// What we do about an outcome.
#[derive(Clone, Debug, PartialEq)]
pub enum Disposition {
    /// Done: it is not delivered again.
    Ack,
    /// Again at `at`, as attempt `attempt`, to this queue only.
    Retry {
        /// Not before this.
        at: Timestamp,
        /// Attempt that runs then: the next one, or the same one where this used none (snoozed, unroutable).
        attempt: Attempt,
        /// What went wrong; `None` when snoozed or unroutable (an earlier failure is kept).
        failure: Option<Failure>,
        /// Set where no worker knew its job: since when.
        unroutable_since: Option<Timestamp>,
    },
    /// It cannot succeed: kept whole, with the reason.
    DeadLetter {
        /// Why.
        reason: Reason,
        /// What went wrong last.
        failure: Failure,
        /// Attempts made: 0 for malformed ones.
        attempts: u32,
        /// The event's id, where it could be decoded.
        event_id: Option<String>,
        /// The job that ran or would have run.
        job: JobName,
    },
    /// Back to the queue at once, without using an attempt.
    Release,
}

/// How a settlement ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The disposition is stored.
    Stored,
    /// Somebody else owns the job now; nothing was changed, but for a success, which may still end the job.
    Stale,
    /// It could not be confirmed before the lease ended; the job comes again.
    Unconfirmed(String),
}

/// What keeps an adapter from settling: the queue pauses, `/ready` turns to 503 for `DeadLetter`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A dead letter cannot be stored (full, denied, down); the text says what the broker answered.
    DeadLetter(String),
    /// The broker does not answer or refuses; the text says what is known.
    Broker(String),
    /// Partitions are moving.
    Rebalance,
    /// What was read ahead is full of what waits for a key, or for one job, to end, and none of it can be handed over.
    /// The engine goes on asking: what can be handed over next comes at once.
    Order,
}

/// The lowest event, in the order of its log, that has not ended: for as long as it has not, nothing behind it is
/// forgotten by the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Where it lies: a partition and its offset.
    pub place: String,
    /// For how long it has been the lowest.
    pub age: Duration,
    /// How far behind it was read: events, at most.
    pub span: u64,
    /// Whether nothing more of its partition can be handed over until it ends.
    pub full: bool,
}

/// Carries dispositions out. Shared; adapters batch behind it.
pub trait Settler: Send + Sync {
    /// Resolves when each disposition is stored, or cannot be any more; results in the order given. An adapter
    /// tries again by itself for as long as the lease lasts, and reports through [`Settler::trouble`] meanwhile.
    /// The returned future need not be polled for the settlement to proceed.
    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'static, Vec<Settled>>;

    /// Stores that these deliveries are about to start, for those whose [`Delivery::needs_mark`] says so; a
    /// delivery whose mark fails is not started. `true`: stored.
    fn mark<'a>(&'a self, starting: &'a [&'a Delivery]) -> BoxFuture<'a, Vec<bool>>;

    /// How many deliveries may be finished and unconfirmed at once; the engine starts nothing beyond it. `usize::MAX`
    /// where every settlement is stored at once: nothing of it is kept for the case that it is not.
    fn unconfirmed_limit(&self) -> usize;

    /// What keeps it from settling now.
    fn trouble(&self) -> Option<Trouble>;

    /// Events of this queue that were overtaken since the last call: they are gone, and nobody was given them. Asked
    /// once a second; the engine counts them (`lost_total`) and logs each entry as an error. An adapter notices by a
    /// gap between what it has read and where the topic now begins, and says each loss once in the whole process. A
    /// broker whose topics have no retention (memory, SQLite) has none.
    fn overtaken(&self) -> Vec<Overtaken> {
        Vec::new()
    }

    /// Of the events of this queue that hold up what is behind them, the one that has done so for longest. Asked once a
    /// second. `None` where nothing is in hand, and on a broker that settles each event by itself.
    fn head(&self) -> Option<Head> {
        None
    }
}

/// Events that their topic's own retention, or its discarding of old ones, removed before they were handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overtaken {
    /// Where: a stream and its sequences, a partition and its offsets.
    pub place: String,
    /// How many: at most, where a gap holds what was never this queue's.
    pub events: u64,
}

/// Where a message goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To every queue that hears the topic.
    Topic(Topic),
    /// To one queue alone.
    Queue {
        /// The queue.
        queue: QueueName,
        /// The job to run; `None`: the queue's.
        job: Option<JobName>,
        /// Not before this.
        not_before: Option<Timestamp>,
    },
}

/// A message to be stored.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Where to.
    pub destination: Destination,
    /// Headers in the broker's binding (see [`Publisher::binding`]), body, key.
    pub message: Message,
    /// The event's id: the same at each try of the same publication.
    pub id: String,
    /// Store it although no queue hears the topic.
    pub allow_unheard: bool,
}

/// What the broker confirmed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// To how many queues it went; `None` where the broker cannot know.
    pub queues: Option<u32>,
    /// The id that an event without one has, made of where it lies (`nats:STREAM:SEQ`, `kafka:TOPIC:PARTITION:OFFSET`,
    /// `sqlite:TOPIC:ROW`): what [`Origin::event_id`](crate::message::Origin::event_id) gives at its delivery. `None`
    /// for what was enqueued or not stored at all, and where each queue knows it under another.
    pub id: Option<String>,
}

/// Publishes and enqueues.
pub trait Publisher: Send + Sync {
    /// How this broker's headers spell attributes.
    fn binding(&self) -> crate::message::Binding;

    /// Resolves when the broker has confirmed each; results in the order given. Tries again by itself, under the
    /// same record identity, within the options' timeout.
    fn publish(&self, batch: Vec<Publication>) -> BoxFuture<'_, Vec<Result<Published, Error>>>;
}

/// A dead letter.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Opaque, `[A-Za-z0-9_-]+`, unique in its queue.
    pub id: String,
    /// Its queue.
    pub queue: QueueName,
    /// The original: headers, body and key as they were published.
    pub message: Message,
    /// How its headers spell attributes.
    pub binding: crate::message::Binding,
    /// What our record says of it: job (only if the original named one), failure, topic, origin, replays.
    pub record: Record,
    /// The event's id, where it could be decoded.
    pub event_id: Option<String>,
    /// The job that ran or would have run.
    pub job: JobName,
    /// Why it is here.
    pub reason: Reason,
    /// Attempts made.
    pub attempts: u32,
    /// The last failure; its `last` is when the letter was written.
    pub failure: Failure,
}

/// Which letters a listing gives. What is not here (error text, job, key ..) the caller filters.
#[derive(Clone, Debug, Default)]
pub struct LetterQuery {
    /// Of this queue; `None`: of all.
    pub queue: Option<QueueName>,
    /// Last failed at or after this.
    pub since: Option<Timestamp>,
    /// Last failed before this.
    pub until: Option<Timestamp>,
    /// Oldest first; else newest first.
    pub oldest_first: bool,
}

/// A replay that differs from the letter.
#[derive(Clone, Debug, Default)]
pub struct Mend {
    /// Another body.
    pub body: Option<bytes::Bytes>,
    /// Another job.
    pub job: Option<JobName>,
    /// Another queue.
    pub queue: Option<QueueName>,
}

/// The dead-letter queue.
pub trait DeadLetters: Send + Sync {
    /// Letters as a stream, read in pages.
    fn list(&self, query: LetterQuery) -> BoxStream<'_, Result<Letter, Error>>;

    /// Takes the right to replay from `queue`, until the guard is dropped or, after a kill, a lease has passed.
    /// [`Error::Taken`] where somebody has it.
    fn begin_replay<'a>(&'a self, queue: &'a QueueName) -> BoxFuture<'a, Result<ReplayGuard, Error>>;

    /// Stores each letter on its queue (the same event id, attempt 1, `replays + 1`, no `expirytime`), waits until
    /// that is stored, then removes it; results in the order given. `Ok(false)`: it was gone already.
    fn replay<'a>(&'a self, letters: &'a [Letter], mend: &'a Mend) -> BoxFuture<'a, Vec<Result<bool, Error>>>;

    /// Removes letters. `Ok(false)`: it was gone already.
    fn purge<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<bool, Error>>>;

    /// Stores letters that were exported; one whose id exists is replaced.
    fn import<'a>(&'a self, letters: &'a [Letter]) -> BoxFuture<'a, Vec<Result<(), Error>>>;
}

/// Holds the right to replay from a queue; renews it while it lives.
pub struct ReplayGuard(Option<Box<dyn FnOnce() + Send>>);

impl ReplayGuard {
    /// `release` runs when the guard is dropped.
    pub fn new(release: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(Box::new(release)))
    }
}

impl Drop for ReplayGuard {
    fn drop(&mut self) {
        if let Some(release) = self.0.take() {
            release();
        }
    }
}

/// What the broker holds of one queue. `None` is what this broker cannot know.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueStatus {
    /// The queue's name.
    pub name: String,
    /// Waiting, due, in the fresh lane or enqueued.
    pub ready: Option<u64>,
    /// Leased now.
    pub running: Option<u64>,
    /// Waiting for their next attempt.
    pub retrying: Option<u64>,
    /// When the earliest of those that wait for their next attempt is due; `None` also where none waits.
    pub retry_due: Option<Timestamp>,
    /// Enqueued for later.
    pub scheduled: Option<u64>,
    /// Dead letters.
    pub dead: Option<u64>,
    /// Age of the oldest ready one; zero where none is.
    pub oldest_age: Option<Duration>,
    /// Age of the oldest dead letter.
    pub dead_oldest_age: Option<Duration>,
    /// Workers attached.
    pub workers: Option<u64>,
    /// Slots of all workers.
    pub slots: Option<u64>,
    /// What else an operator should know, a sentence each.
    pub notes: Vec<String>,
}

/// A queue that the broker knows.
#[derive(Clone, Debug)]
pub struct KnownQueue {
    /// Its name.
    pub name: QueueName,
    /// The topics it hears.
    pub topics: Vec<String>,
    /// Workers attached, where known.
    pub workers: Option<u64>,
}

/// How bad a finding of `doctor` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Jobs are or will be lost, doubled or stalled.
    Error,
    /// They may be.
    Warn,
    /// Good to know.
    Info,
}

/// A finding of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// How bad.
    pub severity: Severity,
    /// What it is about: a stream, a topic, a file.
    pub subject: String,
    /// What was found.
    pub finding: String,
    /// What to do.
    pub fix: String,
}

/// Reads what the broker holds, without a worker.
pub trait Inspect: Send + Sync {
    /// Of these queues, or of all that are known where none is named. An unknown one is [`Error::NotFound`].
    fn status<'a>(&'a self, queues: &'a [QueueName]) -> BoxFuture<'a, Result<Vec<QueueStatus>, Error>>;

    /// All queues of this namespace.
    fn queues(&self) -> BoxFuture<'_, Result<Vec<KnownQueue>, Error>>;

    /// Removes a queue's consumer and work records (not its dead letters); jobs that it held. Not while workers
    /// are attached, and with jobs left only where `even_with_jobs`.
    fn forget<'a>(&'a self, queue: &'a QueueName, even_with_jobs: bool) -> BoxFuture<'a, Result<u64, Error>>;

    /// What would lose, double or stall jobs.
    fn doctor(&self) -> BoxFuture<'_, Result<Vec<Finding>, Error>>;

    /// Renews this worker's presence record, once a third of a lease, by the engine.
    fn present<'a>(&'a self, queues: &'a [(QueueName, usize)]) -> BoxFuture<'a, Result<(), Error>>;

    /// Removes what `dead_letter.keep` has let expire; how many of each queue. Called by workers once a minute.
    fn expire_dead(&self) -> BoxFuture<'_, Result<Vec<(QueueName, u64)>, Error>>;
}

/// Whether a queue with so many workers and jobs may be forgotten. Workers are [`Error::Unavailable`], for they leave
/// when they are stopped, as with every other thing that somebody else is using; jobs are [`Error::Rejected`].
pub(crate) fn may_forget(queue: &QueueName, workers: u64, jobs: u64, even_with_jobs: bool) -> Result<(), Error> {
    let plural = |count: u64, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    if workers > 0 {
        let workers = plural(workers, "worker");
        return Err(Error::Unavailable(format!("{workers} attached to queue {queue}; stop what works it first")));
    }
    if jobs > 0 && !even_with_jobs {
        let jobs = plural(jobs, "job");
        return Err(Error::Rejected(format!(
            "queue {queue} holds {jobs}, which would be lost; --yes forgets them too"
        )));
    }
    Ok(())
}
