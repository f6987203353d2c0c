//! The catalogue: every key that there is, once. Reading, the environment's names, `config show`, the schema and
//! `config/windlass.toml` all follow it.

use std::time::Duration;

use super::value::{Value, Wrong};
use crate::message::{JobName, Namespace};

/// One key. A `*` in its path stands for a name that the user chooses.
pub(super) struct Key {
    /// Dotted: `queues.*.retry.attempts`.
    pub path: &'static str,
    /// What may be written there.
    pub kind: Kind,
    /// As TOML; empty where there is none.
    pub default: &'static str,
    /// As TOML, where the default says too little (or there is none).
    pub example: &'static str,
    /// What it is, with its unit, in a line.
    pub doc: &'static str,
}

/// What may be written at a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Address,
    Namespace,
    Job,
    Topics,
    /// A whole number from, to.
    Count(i64, i64),
    /// A number from, to.
    Number(f64, f64),
    Size,
    /// At least so many milliseconds.
    Duration(u64),
    Choice(&'static [&'static str]),
    Start,
    /// A duration or `forever`.
    Keep,
    Url,
    Text,
    Path,
    Listen,
    Level,
    Bool,
    /// Text that is not repeated in messages: a header's value.
    Hidden,
    /// Text, number or boolean, passed on.
    Scalar,
    /// Kept free for later.
    Reserved,
}

impl Kind {
    /// What is wrong with `value` here, if anything.
    pub fn check(self, value: &Value) -> Result<(), Wrong> {
        match self {
            Self::Address => value.address().map(drop),
            Self::Namespace => Namespace::new(value.text()?).map(drop).map_err(Wrong::new),
            Self::Job => JobName::new(value.text()?).map(drop).map_err(Wrong::new),
            Self::Topics => match value {
                Value::Array(_) => Ok(()),
                _ => Err(Wrong {
                    expected: format!(
                        "expected a list of topics such as [\"reports.finalized\"], found {}",
                        value.shown()
                    ),
                    hint: match value {
                        Value::Text(text) => Some(format!("did you mean [{text:?}]?")),
                        _ => None,
                    },
                }),
            },
            Self::Count(min, max) => value.count(min, max).map(drop),
            Self::Number(min, max) => value.number(min, max).map(drop),
            Self::Size => value.size().map(drop),
            Self::Duration(min) => value.duration(Duration::from_millis(min)).map(drop),
            Self::Choice(choices) => value.choice(choices).map(drop),
            Self::Start => value.start().map(drop),
            Self::Keep => value.keep().map(drop),
            Self::Url => value.url().map(drop),
            Self::Text | Self::Path => value.text().map(drop),
            Self::Listen => value.listen().map(drop),
            Self::Level => value.level().map(drop),
            Self::Bool => value.bool().map(drop),
            Self::Hidden => match value {
                Value::Text(text) if reqwest::header::HeaderValue::from_str(text).is_ok() => Ok(()),
                Value::Text(_) => Err(Wrong::new("expected text that can stand in a header")),
                _ => Err(Wrong::new("expected text in quotes")),
            },
            Self::Scalar => match value {
                Value::Text(_) | Value::Integer(_) | Value::Float(_) | Value::Bool(_) => Ok(()),
                _ => Err(Wrong::new(format!("expected text, a number or a boolean, found {}", value.shown()))),
            },
            Self::Reserved => Err(Wrong::new("this name is reserved for a later version and does nothing yet")),
        }
    }
}

/// The key or table that a path with `*` names.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether some key lies below this path.
pub(super) fn is_table(path: &str) -> bool {
    path.is_empty() || KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// `path` and `name` joined.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// What may stand directly in the table `path`, in the order of the catalogue.
pub(super) fn children(path: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for key in KEYS {
        let rest = if path.is_empty() {
            Some(key.path)
        } else {
            key.path.strip_prefix(path).and_then(|rest| rest.strip_prefix('.'))
        };
        let Some(rest) = rest else { continue };
        let name = rest.split('.').next().unwrap_or(rest);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What a table is for, in a line or two.
pub(super) fn table_doc(path: &str) -> &'static str {
    match path {
        "worker" => "The process as a whole.",
        "queues.*" => "A durable subscription to topics, with its own slots, retries and dead letters.",
        "queues.*.retry" => {
            "When a failed job runs again: first * factor^n, at most max, then up to jitter of it more."
        }
        "queues.*.dead_letter" => "What could not succeed.",
        "jobs.*" => "A job over HTTP; for one that is compiled in: timeout and retry.",
        "jobs.*.retry" => "As of a queue; comes before the queue's and before what the job says in code, key by key.",
        "jobs.*.headers" => "Sent with each attempt.",
        "admin" => "Health, metrics and the API.",
        "log" => "What goes to stderr.",
        "sqlite" => "Where the broker is sqlite://.",
        "nats" => "Where the broker is nats://. Secret files are read again at each reconnect.",
        "nats.tls" | "kafka.tls" => "Certificates, PEM.",
        "kafka" => "Where the broker is kafka://.",
        "kafka.sasl" => "Who we are.",
        "kafka.options" => "Passed to librdkafka; the ones that would lose jobs are refused by name.",
        _ => "",
    }
}

const fn key(path: &'static str, kind: Kind, default: &'static str, example: &'static str, doc: &'static str) -> Key {
    Key { path, kind, default, example, doc }
}

const MAX_SLOTS: i64 = 1_000_000;
const ATTEMPTS: Kind = Kind::Count(1, 1_000_000);
const FACTOR: Kind = Kind::Number(1.0, 1000.0);
const JITTER: Kind = Kind::Number(0.0, 1.0);

/// Every key, in the order in which people read about them.
// A table is read by its columns.
#[rustfmt::skip]
pub(super) const KEYS: &[Key] = &[
    key("broker", Kind::Address, "", "\"sqlite://windlass.db\"", "Where jobs come from: sqlite://PATH, nats://HOST:4222, nats+tls://, kafka://HOST:9092, kafka+tls://."),
    key("namespace", Kind::Namespace, "\"windlass\"", "", "Begins the name of all that we create; must be set off loopback on NATS and Kafka."),
    key("worker.slots", Kind::Count(1, MAX_SLOTS), "64", "", "Jobs running at once in this process, over all queues."),
    key("worker.bytes_in_flight", Kind::Size, "\"256MiB\"", "", "Of payload; a job larger than this runs alone."),
    key("worker.grace", Kind::Duration(0), "\"25s\"", "", "Time that running jobs get on SIGTERM; with 3 s to leave it fits Kubernetes' 30."),
    key("worker.lease", Kind::Duration(100), "\"30s\"", "", "After so long a silence a worker's jobs go to others (ack_wait, session.timeout.ms, SQLite lease)."),
    key("worker.connect", Kind::Duration(0), "\"60s\"", "", "How long `run` waits at its start for a broker that is not there."),
    key("queues.*.topics", Kind::Topics, "[]", "[\"reports.finalized\"]", "What it hears; none: only jobs enqueued for this queue."),
    key("queues.*.job", Kind::Job, "", "\"invoice\"", "What runs an event of those topics; default: the queue's name."),
    key("queues.*.slots", Kind::Count(1, MAX_SLOTS), "", "16", "Jobs of it at once; default: worker.slots, 8 where the job is HTTP."),
    key("queues.*.weight", Kind::Count(1, 1_000_000), "1", "", "Its share when queues compete."),
    key("queues.*.timeout", Kind::Duration(1), "\"5m\"", "", "Of one attempt."),
    key("queues.*.order", Kind::Choice(&["none", "key"]), "\"none\"", "", "\"key\": one at a time and in order for each key."),
    key("queues.*.start", Kind::Start, "\"earliest\"", "", "Where a queue that is seen for the first time begins: \"earliest\", \"latest\" or RFC 3339."),
    key("queues.*.retry.attempts", ATTEMPTS, "20", "", "In all, the first included: 3 retries are 4."),
    key("queues.*.retry.first", Kind::Duration(0), "\"1s\"", "", "Before the second attempt."),
    key("queues.*.retry.factor", FACTOR, "2.0", "", "By how much the delay grows each time."),
    key("queues.*.retry.max", Kind::Duration(0), "\"1h\"", "", "The longest delay before jitter."),
    key("queues.*.retry.jitter", JITTER, "0.2", "", "Up to this part of the delay is added, at random; never subtracted."),
    key("queues.*.max_crashes", Kind::Count(2, 1_000), "3", "", "A job that was running in so many workers when they died is a dead letter; at least 2."),
    key("queues.*.unroutable_after", Kind::Duration(0), "\"15m\"", "", "So long a job that nobody registered here is put back, for a newer worker."),
    key("queues.*.dead_letter.keep", Kind::Keep, "\"30d\"", "", "How long dead letters are kept, or \"forever\"."),
    key("queues.*.breaker", Kind::Reserved, "", "", "Reserved."),
    key("queues.*.rate", Kind::Reserved, "", "", "Reserved."),
    key("queues.*.rate_by", Kind::Reserved, "", "", "Reserved."),
    key("jobs.*.http", Kind::Url, "", "\"http://127.0.0.1:8000/jobs/invoice\"", "Each attempt is a POST to this address."),
    key("jobs.*.headers.*", Kind::Hidden, "", "\"billing\"", "A header's value."),
    key("jobs.*.bearer_file", Kind::Path, "", "\"/run/secrets/invoice\"", "A file with a token for `Authorization: Bearer`."),
    key("jobs.*.ca_file", Kind::Path, "", "\"/etc/ssl/internal.pem\"", "Trusted roots beside the system's, PEM."),
    key("jobs.*.timeout", Kind::Duration(1), "", "\"30s\"", "Of one attempt; comes before the queue's."),
    key("jobs.*.retry.attempts", ATTEMPTS, "", "5", "In all, the first included."),
    key("jobs.*.retry.first", Kind::Duration(0), "", "\"1s\"", "Before the second attempt."),
    key("jobs.*.retry.factor", FACTOR, "", "2.0", "By how much the delay grows each time."),
    key("jobs.*.retry.max", Kind::Duration(0), "", "\"10m\"", "The longest delay before jitter."),
    key("jobs.*.retry.jitter", JITTER, "", "0.2", "Up to this part of the delay is added."),
    key("admin.listen", Kind::Listen, "\"127.0.0.1:7464\"", "", "Where health, metrics and the API answer; \"none\" turns it off."),
    key("admin.token_file", Kind::Path, "", "\"/run/secrets/windlass-admin\"", "A token a line, all valid; needed for the API off loopback."),
    key("log.level", Kind::Level, "\"info\"", "", "off, error, warn, info, debug, trace, or a filter such as \"info,windlass=debug\"."),
    key("log.format", Kind::Choice(&["auto", "pretty", "json"]), "\"auto\"", "", "\"auto\": pretty on a terminal, JSON elsewhere."),
    key("sqlite.synchronous", Kind::Choice(&["full", "normal"]), "\"full\"", "", "\"normal\": faster, and a power cut may lose the last commits."),
    key("nats.create", Kind::Bool, "true", "", "Streams and consumers of ours may be created."),
    key("nats.user", Kind::Text, "", "\"windlass\"", "User name, where the address names none."),
    key("nats.password_file", Kind::Path, "", "\"/run/secrets/nats-password\"", "Its password."),
    key("nats.token_file", Kind::Path, "", "\"/run/secrets/nats-token\"", "A token, instead of user and password."),
    key("nats.nkey_file", Kind::Path, "", "\"/run/secrets/nats-nkey\"", "An nkey seed, instead."),
    key("nats.credentials_file", Kind::Path, "", "\"/run/secrets/nats.creds\"", "A .creds file, instead."),
    key("nats.tls.ca_file", Kind::Path, "", "\"/etc/ssl/nats-ca.pem\"", "Trusted roots beside the system's."),
    key("nats.tls.cert_file", Kind::Path, "", "\"/etc/ssl/client.pem\"", "Client certificate."),
    key("nats.tls.key_file", Kind::Path, "", "\"/etc/ssl/client.key\"", "Its key."),
    key("nats.tls.first", Kind::Bool, "false", "", "TLS before the server's greeting."),
    key("nats.replicas", Kind::Count(1, 5), "", "3", "Of streams of ours; default: 3 where the cluster has three nodes, else 1."),
    key("nats.keep", Kind::Duration(1_000), "\"7d\"", "", "Age limit of the stream of events that no stream of yours covers."),
    key("kafka.create", Kind::Bool, "true", "", "Topics of ours may be created."),
    key("kafka.sasl.mechanism", Kind::Choice(&["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"]), "", "\"SCRAM-SHA-512\"", "PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER."),
    key("kafka.sasl.user", Kind::Text, "", "\"windlass\"", "User name, where the address names none."),
    key("kafka.sasl.password_file", Kind::Path, "", "\"/run/secrets/kafka-password\"", "Its password."),
    key("kafka.sasl.token_command", Kind::Text, "", "\"/usr/local/bin/kafka-token\"", "OAUTHBEARER: a command that prints a token."),
    key("kafka.tls.ca_file", Kind::Path, "", "\"/etc/ssl/kafka-ca.pem\"", "Trusted roots beside the system's."),
    key("kafka.tls.cert_file", Kind::Path, "", "\"/etc/ssl/client.pem\"", "Client certificate."),
    key("kafka.tls.key_file", Kind::Path, "", "\"/etc/ssl/client.key\"", "Its key."),
    key("kafka.tls.first", Kind::Bool, "false", "", "Of no effect: Kafka speaks TLS from the first byte."),
    key("kafka.group_protocol", Kind::Choice(&["classic", "consumer"]), "\"classic\"", "", "\"consumer\" is KIP-848, for brokers from 4.0."),
    key("kafka.instance_id", Kind::Text, "", "\"worker-1\"", "Static membership: a name for this process that survives its restart."),
    key("kafka.replication", Kind::Count(1, 15), "", "3", "Of topics of ours; default: 3 where there are three brokers, else 1."),
    key("kafka.partitions", Kind::Count(1, 10_000), "", "12", "Of topics of ours; default: those of the source topic, else 4."),
    key("kafka.in_place", Kind::Duration(0), "\"30s\"", "", "Retries up to this delay hold their offset open instead of moving to a delay topic."),
    key("kafka.options.*", Kind::Scalar, "", "1048576", "A property of librdkafka."),
    key("metrics", Kind::Reserved, "", "", "Reserved."),
    key("tracing", Kind::Reserved, "", "", "Reserved."),
];
