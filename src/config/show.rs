//! `config show`: what is in force, and where each value came from.

use serde::Serialize;

use super::fault::Place;
use super::key::{self, KEYS, Key, Kind};
use super::load::Loaded;
use super::value::{Table, Value};
use super::walk::quoted;
use super::{kafka, shown_address};
use crate::message::QueueName;

/// One key that is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Dotted: `queues.invoice.retry.attempts`.
    pub key: String,
    /// As TOML writes it, and as JSON does where it is serialised; secrets are `"***"`.
    #[serde(serialize_with = "as_json")]
    pub value: String,
    /// `windlass.toml:3:9`, a variable, a flag, or `default`.
    pub origin: String,
}

fn as_json<S: serde::Serializer>(value: &str, serializer: S) -> Result<S::Ok, S::Error> {
    let read = toml::from_str::<toml::Table>(&format!("value = {value}")).ok();
    match read.and_then(|mut table| table.remove("value")) {
        Some(toml::Value::Datetime(_)) | None => serializer.serialize_str(value),
        Some(value) => value.serialize(serializer),
    }
}

/// Every key that has a value, in the order of the documentation. Queues and jobs by name.
pub fn settings(loaded: &Loaded) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut chosen_done = Vec::new();
    for entry in KEYS.iter().filter(|entry| entry.kind != Kind::Reserved) {
        let Some((table, _)) = entry.path.split_once(".*") else {
            one(entry, entry.path, None, loaded, &mut settings);
            continue;
        };
        // All keys of one queue or job stand together.
        if matches!(table, "queues" | "jobs") {
            if !chosen_done.contains(&table) {
                chosen_done.push(table);
                all_named(table, loaded, &mut settings);
            }
        } else {
            open(entry, table, loaded, &mut settings);
        }
    }
    settings
}

/// [`settings`] as TOML with the origins as comments.
pub fn show(loaded: &Loaded) -> String {
    let mut text = String::new();
    let mut table = "";
    let settings = settings(loaded);
    for setting in &settings {
        let (head, name) = split(&setting.key);
        if head != table {
            table = head;
            text.push_str(&format!("\n[{table}]\n"));
        }
        let line = format!("{name} = {}", setting.value);
        text.push_str(&format!("{line:<48}  # {}\n", setting.origin));
    }
    text
}

/// `queues.invoice.retry.attempts` as `queues.invoice` and `retry.attempts`; `worker.slots` as `worker` and `slots`.
fn split(key: &str) -> (&str, &str) {
    let from = if key.starts_with("queues.") || key.starts_with("jobs.") {
        let start = key.find('.').map_or(0, |at| at + 1);
        match key[start..].strip_prefix('"') {
            Some(inner) => start + 1 + inner.find("\".").map_or(0, |at| at + 1),
            None => start,
        }
    } else {
        0
    };
    match key[from..].find('.') {
        Some(at) => (&key[..from + at], &key[from + at + 1..]),
        None => ("", key),
    }
}

fn all_named(table: &str, loaded: &Loaded, settings: &mut Vec<Setting>) {
    let Some(named) = loaded.values.get(table).and_then(|node| node.value.table()) else { return };
    let within = format!("{table}.*.");
    for (name, node) in named {
        let path = format!("{table}.{}", quoted(name));
        for entry in KEYS.iter().filter(|entry| entry.path.starts_with(&within) && entry.kind != Kind::Reserved) {
            let rest = &entry.path[within.len()..];
            match rest.strip_suffix(".*") {
                Some(inner) => {
                    let values = node.value.table().and_then(|table| table.get(inner));
                    values_of(entry, &key::join(&path, inner), values.and_then(|node| node.value.table()), settings);
                }
                None => one(entry, &key::join(&path, rest), Some(name), loaded, settings),
            }
        }
    }
}

fn open(entry: &Key, table: &str, loaded: &Loaded, settings: &mut Vec<Setting>) {
    let mut at = Some(&loaded.values);
    for name in table.split('.') {
        at = at.and_then(|table| table.get(name)).and_then(|node| node.value.table());
    }
    values_of(entry, table, at, settings);
}

fn values_of(entry: &Key, path: &str, values: Option<&Table>, settings: &mut Vec<Setting>) {
    for (name, node) in values.into_iter().flatten() {
        settings.push(Setting {
            key: key::join(path, &quoted(name)),
            value: shown(entry.kind, name, &node.value),
            origin: node.place.to_string(),
        });
    }
}

fn one(entry: &Key, path: &str, name: Option<&String>, loaded: &Loaded, settings: &mut Vec<Setting>) {
    let found = lookup(&loaded.values, entry.path, name);
    let (value, origin) = match found {
        Some(node) => (shown(entry.kind, entry.path, &node.value), node.place.clone()),
        None => match default(entry, name, loaded) {
            Some(value) => (value, Place::Default),
            None => return,
        },
    };
    settings.push(Setting { key: path.to_owned(), value, origin: origin.to_string() });
}

fn lookup<'t>(values: &'t Table, path: &str, name: Option<&String>) -> Option<&'t super::value::Node> {
    let mut parts = path.split('.').map(|part| if part == "*" { name.map_or("*", |name| name) } else { part });
    let mut node = values.get(parts.next()?)?;
    for part in parts {
        node = node.value.table()?.get(part)?;
    }
    Some(node)
}

/// What holds where nothing is written.
fn default(entry: &Key, name: Option<&String>, loaded: &Loaded) -> Option<String> {
    match (entry.path, name) {
        ("broker", _) => Some(text(super::DEFAULT_BROKER)),
        ("queues.*.job", Some(name)) => Some(text(name)),
        ("queues.*.slots", Some(name)) => Some(loaded.config.slots(&QueueName::new(name).ok()?).to_string()),
        _ => (!entry.default.is_empty()).then(|| entry.default.to_owned()),
    }
}

/// A value as TOML, with what is secret masked.
fn shown(kind: Kind, name: &str, value: &Value) -> String {
    const SECRET: [&str; 7] = ["authorization", "token", "secret", "password", "cookie", "api-key", "credential"];
    let lower = name.to_ascii_lowercase();
    let secret = || SECRET.iter().any(|word| lower.contains(word));
    match (kind, value) {
        (Kind::Address, Value::Text(address)) => text(&shown_address(address)),
        (Kind::Url, Value::Text(address)) => text(&without_password(address)),
        (Kind::Hidden | Kind::Scalar, _) if secret() => text("***"),
        (Kind::Scalar, value) => text(&kafka::text(value)),
        (_, value) => toml(value),
    }
}

fn without_password(address: &str) -> String {
    match reqwest::Url::parse(address) {
        Ok(mut url) if url.password().is_some() => match url.set_password(Some("***")) {
            Ok(()) => url.to_string(),
            Err(()) => "***".to_owned(),
        },
        _ => address.to_owned(),
    }
}

fn toml(value: &Value) -> String {
    match value {
        Value::Text(found) => text(found),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Bool(flag) => flag.to_string(),
        Value::Date(date) | Value::Odd(date) => date.clone(),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(|item| toml(&item.value)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(table) => {
            let pairs: Vec<String> =
                table.iter().map(|(name, node)| format!("{} = {}", quoted(name), toml(&node.value))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
    }
}

fn text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
