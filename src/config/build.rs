//! From a sound tree to a [`Config`], and the faults that only the whole can show.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::fault::{Fault, Place};
use super::value::{Node, Table, Value, Wrong, nonzero};
use super::{Admin, Config, Job, Log, LogFormat, Queue, Worker, environment, kafka};
use crate::broker::{KafkaOptions, NatsOptions, SqliteOptions, Start, TlsOptions};
use crate::handler::http;
use crate::message::{JobName, Namespace, QueueName};
use crate::time::format_duration;
use crate::worker::retry;

/// The broker where nobody names one and there is no file.
pub const DEFAULT_BROKER: &str = "sqlite://windlass.db";
/// The namespace where nobody names one.
pub const DEFAULT_NAMESPACE: &str = "windlass";
/// Of one attempt.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// Of a job over HTTP.
pub const DEFAULT_HTTP_SLOTS: usize = 8;

/// One table of the tree; reads of what is absent give `None`. Everything in it was checked before.
#[derive(Clone, Copy)]
struct View<'t>(Option<&'t Table>);

impl<'t> View<'t> {
    fn node(self, name: &str) -> Option<&'t Node> {
        self.0.and_then(|table| table.get(name))
    }

    fn table(self, name: &str) -> View<'t> {
        View(self.node(name).and_then(|node| node.value.table()))
    }

    fn entries(self) -> impl Iterator<Item = (&'t String, &'t Node)> {
        self.0.into_iter().flatten()
    }

    fn read<T>(self, name: &str, reader: impl FnOnce(&Value) -> Result<T, Wrong>) -> Option<T> {
        self.node(name).and_then(|node| reader(&node.value).ok())
    }

    fn duration(self, name: &str) -> Option<Duration> {
        self.read(name, |value| value.duration(Duration::ZERO))
    }

    fn text(self, name: &str) -> Option<String> {
        self.read(name, |value| value.text().map(str::to_owned))
    }

    fn path(self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }

    fn count(self, name: &str) -> Option<i64> {
        self.read(name, |value| value.count(0, i64::MAX))
    }

    fn slots(self, name: &str) -> Option<NonZeroUsize> {
        self.count(name).and_then(|number| usize::try_from(number).ok()).and_then(NonZeroUsize::new)
    }

    fn flag(self, name: &str) -> Option<bool> {
        self.read(name, Value::bool)
    }

    fn is(self, name: &str, word: &str) -> bool {
        self.text(name).as_deref() == Some(word)
    }

    fn retry(self) -> retry::Partial {
        let table = self.table("retry");
        retry::Partial {
            attempts: table.count("attempts").map(nonzero),
            first: table.duration("first"),
            factor: table.read("factor", |value| value.number(1.0, f64::MAX)),
            max: table.duration("max"),
            jitter: table.read("jitter", |value| value.number(0.0, 1.0)),
        }
    }

    fn tls(self) -> TlsOptions {
        let table = self.table("tls");
        TlsOptions {
            ca_file: table.path("ca_file"),
            cert_file: table.path("cert_file"),
            key_file: table.path("key_file"),
            first: table.flag("first").unwrap_or(false),
        }
    }
}

/// The configuration and the cautions of `config check`. `partial`: a part of the file could not be read, so what is
/// absent may be in it.
pub(super) fn build(
    tree: &Table,
    file: Option<PathBuf>,
    faults: &mut Vec<Fault>,
    partial: bool,
) -> Option<(Config, Vec<Fault>)> {
    let root = View(Some(tree));
    let broker = root.text("broker");
    let faulty_before = faults.iter().any(|fault| fault.key == "broker");
    if let (None, Some(file), false, false) = (&broker, &file, partial, faulty_before) {
        let place = Place::Whole(file.to_string_lossy().into());
        let fault = Fault::new(&place, "broker", "is missing");
        faults.push(fault.hint(format!(
            "write broker = {DEFAULT_BROKER:?} for a queue in a file, or nats://HOST:4222, or kafka://HOST:9092"
        )));
    }
    let namespace = root.text("namespace").and_then(|text| Namespace::new(&text).ok());
    let config = Config {
        broker_set: broker.is_some(),
        broker: broker.unwrap_or_else(|| DEFAULT_BROKER.to_owned()),
        namespace_set: namespace.is_some(),
        namespace: namespace.or_else(|| Namespace::new(DEFAULT_NAMESPACE).ok())?,
        worker: worker(root.table("worker")),
        queues: queues(root.table("queues")),
        jobs: jobs(root.table("jobs")),
        admin: admin(root.table("admin")),
        log: log(root.table("log")),
        sqlite: SqliteOptions { synchronous_normal: root.table("sqlite").is("synchronous", "normal") },
        nats: nats(root.table("nats")),
        kafka: kafka_options(root.table("kafka")),
        file,
    };
    look_alike(root.table("queues"), faults);
    incomplete(root, faults);
    let cautions = cautions(root, &config);
    Some((config, cautions))
}

fn worker(table: View<'_>) -> Worker {
    let default = Worker::default();
    Worker {
        slots: table.slots("slots").unwrap_or(default.slots),
        bytes_in_flight: table.read("bytes_in_flight", Value::size).unwrap_or(default.bytes_in_flight),
        grace: table.duration("grace").unwrap_or(default.grace),
        lease: table.duration("lease").unwrap_or(default.lease),
        connect: table.duration("connect").unwrap_or(default.connect),
    }
}

fn queues(tables: View<'_>) -> BTreeMap<QueueName, Queue> {
    let named =
        tables.entries().filter_map(|(name, node)| Some((QueueName::new(name).ok()?, View(node.value.table()))));
    named.map(|(name, table)| (name.clone(), queue(&name, table))).collect()
}

fn queue(name: &QueueName, table: View<'_>) -> Queue {
    let topics = table.node("topics").map(|node| &node.value);
    let topics = match topics {
        Some(Value::Array(items)) => items.iter().filter_map(|item| item.value.topic().ok()).collect(),
        _ => Vec::new(),
    };
    let default = Queue::new(name);
    Queue {
        topics,
        job: table.text("job").and_then(|text| JobName::new(&text).ok()).unwrap_or(default.job),
        slots: table.slots("slots"),
        weight: table.count("weight").map_or(default.weight, nonzero),
        timeout: table.duration("timeout").unwrap_or(default.timeout),
        ordered: table.is("order", "key"),
        start: table.read("start", Value::start).unwrap_or(Start::Earliest),
        retry: table.retry(),
        max_crashes: table.count("max_crashes").map_or(default.max_crashes, |number| nonzero(number).get()),
        unroutable_after: table.duration("unroutable_after").unwrap_or(default.unroutable_after),
        keep_dead: table.table("dead_letter").read("keep", Value::keep).unwrap_or(default.keep_dead),
    }
}

fn jobs(tables: View<'_>) -> BTreeMap<JobName, Job> {
    let named = tables.entries().filter_map(|(name, node)| Some((JobName::new(name).ok()?, View(node.value.table()))));
    named.map(|(name, table)| (name, job(table))).collect()
}

fn job(table: View<'_>) -> Job {
    let header = |(name, node): (&String, &Node)| Some((name.clone(), node.value.text().ok()?.to_owned()));
    let http = table.text("http").map(|url| http::Config {
        url,
        headers: table.table("headers").entries().filter_map(header).collect(),
        bearer_file: table.path("bearer_file"),
        ca_file: table.path("ca_file"),
    });
    Job { http, timeout: table.duration("timeout"), retry: table.retry() }
}

fn admin(table: View<'_>) -> Admin {
    let default = Admin::default();
    let listen = table.read("listen", Value::listen);
    Admin {
        listen_set: listen.is_some(),
        listen: listen.unwrap_or(default.listen),
        token_file: table.path("token_file"),
    }
}

fn log(table: View<'_>) -> Log {
    let default = Log::default();
    let format = match table.text("format").as_deref() {
        Some("pretty") => LogFormat::Pretty,
        Some("json") => LogFormat::Json,
        _ => LogFormat::Auto,
    };
    let level = table.text("level");
    Log { level_set: level.is_some(), level: level.unwrap_or(default.level), format }
}

fn nats(table: View<'_>) -> NatsOptions {
    NatsOptions {
        no_create: table.flag("create") == Some(false),
        user: table.text("user"),
        password_file: table.path("password_file"),
        token_file: table.path("token_file"),
        nkey_file: table.path("nkey_file"),
        credentials_file: table.path("credentials_file"),
        tls: table.tls(),
        replicas: table.slots("replicas").map(NonZeroUsize::get),
        keep: table.duration("keep"),
    }
}

fn kafka_options(table: View<'_>) -> KafkaOptions {
    let sasl = table.table("sasl");
    let number = |name| table.count(name).and_then(|number| i32::try_from(number).ok());
    let option = |(name, node): (&String, &Node)| (name.clone(), kafka::text(&node.value));
    KafkaOptions {
        no_create: table.flag("create") == Some(false),
        sasl_mechanism: sasl.text("mechanism"),
        sasl_user: sasl.text("user"),
        sasl_password_file: sasl.path("password_file"),
        sasl_token_command: sasl.text("token_command"),
        tls: table.tls(),
        group_protocol_consumer: table.is("group_protocol", "consumer"),
        instance_id: table.text("instance_id"),
        replication: number("replication"),
        partitions: number("partitions"),
        in_place: table.duration("in_place"),
        from: None,
        options: table.table("options").entries().map(option).collect(),
    }
}

/// Two queues whose variables would have one name.
fn look_alike(queues: View<'_>, faults: &mut Vec<Fault>) {
    let mut spelt: BTreeMap<String, &String> = BTreeMap::new();
    for (name, node) in queues.entries() {
        if let Some(other) = spelt.insert(environment::spelt(name), name) {
            let message =
                format!("the environment cannot tell it from queue {other:?}: both are {}", environment::spelt(name));
            faults.push(Fault::new(&node.key, format!("queues.{name}"), message).hint("rename one"));
        }
    }
}

/// Settings that are of no use without another.
fn incomplete(root: View<'_>, faults: &mut Vec<Fault>) {
    let mut needs = |table: View<'_>, path: &str, name: &str, other: &str| {
        if let (Some(node), None) = (table.node(name), table.node(other)) {
            let message = format!("is of no use without `{other}`");
            faults.push(Fault::new(&node.key, format!("{path}.{name}"), message));
        }
    };
    for (name, node) in root.table("jobs").entries() {
        let path = format!("jobs.{}", super::walk::quoted(name));
        for over_http in ["headers", "bearer_file", "ca_file"] {
            needs(View(node.value.table()), &path, over_http, "http");
        }
    }
    for broker in ["nats", "kafka"] {
        let (tls, path) = (root.table(broker).table("tls"), format!("{broker}.tls"));
        needs(tls, &path, "cert_file", "key_file");
        needs(tls, &path, "key_file", "cert_file");
    }
    let sasl = root.table("kafka").table("sasl");
    for name in ["user", "password_file", "token_command"] {
        needs(sasl, "kafka.sasl", name, "mechanism");
    }
    if let Some(node) = sasl.node("mechanism")
        && sasl.is("mechanism", "OAUTHBEARER")
        && sasl.node("token_command").is_none()
    {
        faults.push(Fault::new(&node.place, "kafka.sasl.mechanism", "OAUTHBEARER needs `token_command`"));
    }
    let nats = root.table("nats");
    let ways: Vec<&str> = ["token_file", "nkey_file", "credentials_file", "password_file"]
        .into_iter()
        .filter(|way| nats.node(way).is_some())
        .collect();
    if let [first, second, ..] = ways[..] {
        let place = nats.node(second).map_or(Place::Default, |node| node.key.clone());
        faults.push(Fault::new(&place, format!("nats.{second}"), format!("cannot be used together with `{first}`")));
    }
}

/// What works and is probably not meant.
fn cautions(root: View<'_>, config: &Config) -> Vec<Fault> {
    let mut cautions = Vec::new();
    let grace = config.worker.grace;
    for kind in ["queues", "jobs"] {
        for (name, node) in root.table(kind).entries() {
            let table = View(node.value.table());
            let path = format!("{kind}.{}", super::walk::quoted(name));
            if let Some(node) = table.node("timeout")
                && table.duration("timeout").is_some_and(|timeout| timeout > grace)
            {
                let message = format!(
                    "a job that runs longer than `worker.grace` ({}) runs again after a deploy",
                    format_duration(grace)
                );
                cautions.push(Fault::new(&node.place, format!("{path}.timeout"), message));
            }
            if let Some(node) = table.node("slots")
                && table.slots("slots").is_some_and(|slots| slots > config.worker.slots)
            {
                let message = format!("is never reached: `worker.slots` is {}", config.worker.slots);
                cautions.push(Fault::new(&node.place, format!("{path}.slots"), message));
            }
        }
    }
    if config.queues.len() > config.worker.slots.get() {
        let place = root.table("worker").node("slots").map_or(Place::Default, |node| node.place.clone());
        let message =
            format!("{} queues need a slot each: `run` must be told which, with --queue", config.queues.len());
        cautions.push(Fault::new(&place, "worker.slots", message));
    }
    cautions
}
