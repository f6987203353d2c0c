//! What `run` would refuse although every key is right, and no broker need be asked about: files that are missing or
//! hold something else, topics that the broker can have none of, logins that do not fit together, an unset namespace.

use std::path::Path;
use std::time::Duration;

use super::fault::{Fault, Place};
use super::key::{self, Kind};
use super::value::{Node, Table, Value};
use super::{Config, check_namespace, walk};
use crate::broker::{self, Options, Role};
use crate::handler::http;
use crate::message::Topic;
use crate::time::Clock;

/// What was found.
#[derive(Default)]
pub(super) struct Refusals {
    /// `run` would leave with 78.
    pub faults: Vec<Fault>,
    /// It would if it used them: of brokers that are not in use.
    pub cautions: Vec<Fault>,
}

/// Looks for all of it. `faulty`: something is wrong already, so that what belongs together may be torn apart.
pub(super) fn find(tree: &Table, config: &Config, faulty: bool) -> Refusals {
    let mut found = Refusals::default();
    let used = |path: &str| match path.split('.').next() {
        Some(table @ ("nats" | "kafka")) => kind(&config.broker) == table,
        Some("admin") => config.admin.listen.is_some(),
        _ => true,
    };
    files(tree, "", "", &mut |path, node| {
        let Value::Text(file) = &node.value else { return };
        if let Some(message) = unreadable(path, Path::new(file)) {
            let list = if used(path) { &mut found.faults } else { &mut found.cautions };
            list.push(Fault::new(&node.place, path, message));
        }
    });
    topics(tree, config, &mut found);
    let files_are_there = found.faults.iter().all(|fault| !fault.key.ends_with("_file"));
    if files_are_there && !faulty {
        found.faults.extend(jobs(tree, config));
        found.faults.extend(login(tree, config));
    }
    found.faults.extend(check_namespace(config));
    found
}

/// What is wrong with a topic on the broker at this address.
pub(super) fn unfit(address: &str, topic: &Topic) -> Option<String> {
    let name = topic.as_str();
    match kind(address) {
        "nats" => {
            let tokens: Vec<&str> = name.split('.').collect();
            if tokens.iter().any(|token| token.is_empty()) {
                return Some(format!("topic {name:?} is no subject of NATS: a dot stands between two words"));
            }
            let inside = tokens[..tokens.len() - 1].contains(&">");
            inside.then(|| format!("topic {name:?} is no subject of NATS: `>` stands at the end; `*` is one word"))
        }
        "kafka" => {
            let wrong = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')));
            let no_name = matches!(name, "." | "..").then_some('.');
            wrong.or(no_name).map(|c| {
                format!("topic {name:?} cannot be on Kafka, because of {c:?}: letters, digits, `.`, `_` and `-` can, and no wildcards")
            })
        }
        _ => None,
    }
}

/// Which broker it is, by the name of its table.
fn kind(address: &str) -> &str {
    match address.split_once("://").map_or("", |(scheme, _)| scheme) {
        "nats+tls" | "tls" => "nats",
        "kafka+tls" => "kafka",
        scheme => scheme,
    }
}

/// Calls `visit` with every key that names a file, by the path that it has here.
fn files(table: &Table, path: &str, pattern: &str, visit: &mut dyn FnMut(&str, &Node)) {
    for (name, node) in table {
        let here = key::join(path, &walk::quoted(name));
        let exact = key::join(pattern, name);
        let known = key::find(&exact).is_some() || key::is_table(&exact);
        let pattern = if known { exact } else { key::join(pattern, "*") };
        match node.value.table() {
            Some(inner) => files(inner, &here, &pattern, visit),
            None if key::find(&pattern).is_some_and(|key| key.kind == Kind::Path) => visit(&here, node),
            None => {}
        }
    }
}

/// Why the file that a key names is of no use to it.
fn unreadable(path: &str, file: &Path) -> Option<String> {
    let shown = file.display();
    // librdkafka takes a folder of roots too.
    if path == "kafka.tls.ca_file" && file.is_dir() {
        return None;
    }
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => {
            let text = error.to_string();
            let plain = text.split(" (os error").next().unwrap_or(&text).to_lowercase();
            return Some(format!("{shown} cannot be read: {plain}"));
        }
    };
    if bytes.trim_ascii().is_empty() {
        return Some(format!("{shown} is empty"));
    }
    let is_pem = ["ca_file", "cert_file", "key_file"].iter().any(|name| path.rsplit('.').next() == Some(name));
    let begins = b"-----BEGIN ";
    (is_pem && !bytes.windows(begins.len()).any(|window| window == begins))
        .then(|| format!("{shown} is no PEM file: a line -----BEGIN .. is expected"))
}

fn topics(tree: &Table, config: &Config, found: &mut Refusals) {
    let queues = tree.get("queues").and_then(|node| node.value.table());
    for (name, node) in queues.into_iter().flatten() {
        let topics = node.value.table().and_then(|queue| queue.get("topics"));
        let Some(Value::Array(items)) = topics.map(|node| &node.value) else { continue };
        for item in items {
            let Ok(topic) = item.value.topic() else { continue };
            let path = format!("queues.{}.topics", walk::quoted(name));
            if let Some(message) = unfit(&config.broker, &topic) {
                found.faults.push(Fault::new(&item.place, path, message));
            } else if matches!(kind(&config.broker), "sqlite" | "memory")
                && topic.as_str().split('.').any(|word| word == "*" || word == ">")
            {
                let message = format!("{:?} is a name like any other here: wildcards are NATS's", topic.as_str());
                found.cautions.push(Fault::new(&item.place, path, message));
            }
        }
    }
}

/// What the tokens and certificates of jobs over HTTP hold.
fn jobs(tree: &Table, config: &Config) -> Vec<Fault> {
    let over_http = config.jobs.iter().filter_map(|(name, job)| Some((name, job.http.as_ref()?)));
    let refused = over_http.filter_map(|(name, job)| {
        let said = http::handler(job).err()?;
        let key = ["bearer_file", "ca_file"].into_iter().find(|key| said.contains(key)).unwrap_or("http");
        let place = place(tree, &["jobs", name.as_str(), key]);
        Some(Fault::new(&place, format!("jobs.{}.{key}", walk::quoted(name.as_str())), said))
    });
    refused.collect()
}

/// What the adapter in use says of its address, secrets and certificates.
fn login(tree: &Table, config: &Config) -> Option<Fault> {
    let options = Options {
        namespace: config.namespace.clone(),
        // Said by its own key.
        namespace_set: true,
        role: Role::Worker,
        timeout: Duration::from_secs(5),
        lease: config.worker.lease,
        grace: config.worker.grace,
        queues: Vec::new(),
        worker: "check".into(),
        clock: Clock::System,
        sqlite: config.sqlite.clone(),
        nats: config.nats.clone(),
        kafka: config.kafka.clone(),
    };
    let said = broker::check(&config.broker, &options).err()?.to_string();
    // Which file it is about, where it names one.
    let mut named = None;
    files(tree, "", "", &mut |path, node| {
        if let Value::Text(file) = &node.value
            && path.split('.').next() == Some(kind(&config.broker))
            && said.contains(file.as_str())
        {
            named = Some(Fault::new(&node.place, path, said.clone()));
        }
    });
    Some(named.unwrap_or_else(|| Fault::new(&place(tree, &["broker"]), "broker", said)))
}

fn place(tree: &Table, path: &[&str]) -> Place {
    let Some((last, tables)) = path.split_last() else { return Place::Default };
    let table = tables.iter().try_fold(tree, |table, name| table.get(*name)?.value.table());
    table.and_then(|table| table.get(*last)).map_or(Place::Default, |node| node.place.clone())
}
