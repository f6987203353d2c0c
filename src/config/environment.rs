//! Keys as variables (`WINDLASS_WORKER__SLOTS`) and as flags (`--set worker.slots=128`).

use std::sync::Arc;

use super::document;
use super::fault::{Fault, Place};
use super::key::{self, Kind};
use super::meaning;
use super::value::{Table, Value};
use super::walk::insert;

/// What begins the name of every variable of ours.
const PREFIX: &str = "WINDLASS_";
/// Variables of ours that are no keys: which file to read, and the bug that a test build shall have.
const OTHERS: [&str; 2] = ["CONFIG", "SEEDED_BUG"];

/// The variables as a tree. `below` is what they are laid over: it says which queues and jobs there are. The second
/// answer lists variables that name no key. An empty variable counts as absent.
pub(super) fn read(env: &[(String, String)], below: &Table, faults: &mut Vec<Fault>) -> (Table, Vec<Fault>) {
    let mut tree = Table::new();
    let mut unknown = Vec::new();
    for (name, text) in env {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if text.is_empty() || OTHERS.contains(&rest) || of_kubernetes(rest) {
            continue;
        }
        let place = Place::Variable(Arc::from(name.as_str()));
        match path(rest, below) {
            Some(found) => put(&mut tree, &found, text, &place, faults),
            None => {
                let mut fault = Fault::new(&place, "", "no such variable");
                fault.hint = nearest(rest);
                unknown.push(fault);
            }
        }
    }
    (tree, unknown)
}

/// One `KEY=VALUE` of `--set`, or a flag of its own, into `tree`.
pub(super) fn set(tree: &mut Table, flag: &str, dotted: &str, text: &str, faults: &mut Vec<Fault>) {
    let place = Place::Flag(Arc::from(flag));
    match split(dotted) {
        Some(path) => put(tree, &path, text, &place, faults),
        None => faults.push(Fault::new(&place, dotted, "expected a dotted key such as worker.slots")),
    }
}

/// What Kubernetes makes of a Service that is called like us, or begins so.
fn of_kubernetes(rest: &str) -> bool {
    let (name, made) = match rest.split_once("SERVICE_") {
        Some((name, made)) => (name, made == "HOST" || made == "PORT" || made.starts_with("PORT_")),
        None => match rest.split_once("PORT") {
            Some((name, after)) => (name, after.is_empty() || after.starts_with('_')),
            None => return false,
        },
    };
    made && !rest.contains("__") && (name.is_empty() || name.ends_with('_'))
}

/// `QUEUES__INVOICE__RETRY__FIRST` as `queues`, `invoice`, `retry`, `first`.
fn path(rest: &str, below: &Table) -> Option<Vec<String>> {
    for table in ["queues", "jobs"] {
        let Some(after) = rest.strip_prefix(&format!("{}__", spelt(table))) else { continue };
        let known = below.get(table).and_then(|node| node.value.table());
        let names = known.into_iter().flat_map(|table| table.keys());
        let longest = names.filter(|name| after.strip_prefix(&spelt(name)).is_some_and(|tail| tail.starts_with("__")));
        let (name, tail) = match longest.max_by_key(|name| name.len()) {
            Some(name) => (name.clone(), &after[spelt(name).len() + 2..]),
            None => {
                let (name, tail) = after.split_once("__")?;
                (name.to_lowercase(), tail)
            }
        };
        return Some([vec![table.to_owned(), name], tail_path(&format!("{table}.*"), tail)?].concat());
    }
    tail_path("", rest)
}

/// The rest of a variable's name below the table `pattern`.
fn tail_path(pattern: &str, tail: &str) -> Option<Vec<String>> {
    let (first, more) = tail.split_once("__").map_or((tail, None), |(first, more)| (first, Some(more)));
    for child in key::children(pattern) {
        let here = key::join(pattern, child);
        if child == "*" {
            // A header's words are joined by `-`, a property's by `.`.
            let glue = if pattern == "kafka.options" { "." } else { "-" };
            let open = matches!(pattern, "kafka.options" | "jobs.*.headers") && !tail.is_empty();
            return open.then(|| vec![tail.to_lowercase().replace('_', glue)]);
        }
        if spelt(child) != first {
            continue;
        }
        return match more {
            Some(more) => Some([vec![child.to_owned()], tail_path(&here, more)?].concat()),
            // A table as a whole, but for the ones of names: `WINDLASS_QUEUES__INVOICE__RETRY={ attempts = 3 }`.
            None if here == "queues" || here == "jobs" => None,
            None => Some(vec![child.to_owned()]),
        };
    }
    None
}

/// How the environment spells a name.
pub(super) fn spelt(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect()
}

fn nearest(rest: &str) -> Option<String> {
    let fixed: Vec<String> = key::KEYS
        .iter()
        .filter(|key| !key.path.contains('*') && key.kind != Kind::Reserved)
        .map(|key| key.path.split('.').map(spelt).collect::<Vec<_>>().join("__"))
        .collect();
    if let Some(near) = meaning::nearest(rest, fixed.iter().map(String::as_str)) {
        return Some(format!("did you mean {PREFIX}{near}?"));
    }
    // One underscore where two belong.
    let single = fixed.iter().find(|name| name.replace("__", "_") == rest.replace("__", "_"));
    if let Some(name) = single {
        return Some(format!("did you mean {PREFIX}{name}?"));
    }
    let parts: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
    let (last, tables) = parts.split_last()?;
    let pattern = match tables {
        [] => String::new(),
        [table, _, rest @ ..] if table == "queues" || table == "jobs" => {
            [&[table.clone(), "*".to_owned()], rest].concat().join(".")
        }
        tables => tables.join("."),
    };
    let said = key::is_table(&pattern).then(|| meaning::meant(&pattern, last)).flatten()?;
    // What is named by its whole path is written as a variable here.
    let dotted = said.split('"').nth(1).filter(|path| key::find(path).is_some());
    Some(match dotted {
        Some(path) => {
            let name = path.split('.').map(spelt).collect::<Vec<_>>().join("__");
            said.replace(&format!("{path:?}"), &format!("{PREFIX}{name}"))
        }
        None => said,
    })
}

/// Puts a text at a path, read as the key's kind wants it.
fn put(tree: &mut Table, path: &[String], text: &str, place: &Place, faults: &mut Vec<Fault>) {
    let dotted = path.iter().map(|part| super::walk::quoted(part)).collect::<Vec<_>>().join(".");
    match value(path, text, place) {
        Ok(value) => {
            if !insert(tree, path, value, place) {
                faults.push(Fault::new(place, dotted, "stands in a table that was set as a whole to something else"));
            }
        }
        Err(error) => faults.push(Fault::new(place, dotted, error)),
    }
}

fn value(path: &[String], text: &str, place: &Place) -> Result<Value, String> {
    let pattern = pattern(path);
    let known = key::find(&pattern).map(|key| key.kind);
    let toml = |text: &str| document::parse_value(text, place);
    Ok(match known {
        Some(Kind::Count(..) | Kind::Number(..) | Kind::Bool) => match toml(text.trim()) {
            Ok(value @ (Value::Integer(_) | Value::Float(_) | Value::Bool(_))) => value,
            _ => Value::Text(text.to_owned()),
        },
        Some(Kind::Topics) if !text.trim_start().starts_with('[') => {
            let topics = text.split(',').map(str::trim).filter(|topic| !topic.is_empty());
            let node = |topic: &str| super::value::Node {
                value: Value::Text(topic.to_owned()),
                place: place.clone(),
                key: place.clone(),
            };
            Value::Array(topics.map(node).collect())
        }
        Some(Kind::Topics) => toml(text)?,
        Some(_) if text.len() > 1 && text.starts_with('"') && text.ends_with('"') => {
            toml(text).unwrap_or_else(|_| Value::Text(text.to_owned()))
        }
        Some(_) => Value::Text(text.to_owned()),
        None => toml(text).unwrap_or_else(|_| Value::Text(text.to_owned())),
    })
}

/// A path with `*` for names that the user chose.
fn pattern(path: &[String]) -> String {
    let mut pattern = String::new();
    for name in path {
        let exact = key::join(&pattern, name);
        let chosen = key::join(&pattern, "*");
        let known = key::find(&exact).is_some() || key::is_table(&exact);
        pattern = if !known && (key::find(&chosen).is_some() || key::is_table(&chosen)) { chosen } else { exact };
    }
    pattern
}

/// Splits a dotted key; parts may be quoted. What lies below `kafka.options` is one name, dots and all.
fn split(dotted: &str) -> Option<Vec<String>> {
    let mut parts = Vec::new();
    let mut rest = dotted.trim();
    loop {
        if parts == ["kafka", "options"] && !rest.starts_with('"') {
            parts.push(rest.to_owned());
            return (!rest.is_empty()).then_some(parts);
        }
        let (part, after) = match rest.strip_prefix('"') {
            Some(inner) => inner.split_once('"')?,
            None => {
                let end = rest.find('.').unwrap_or(rest.len());
                rest.split_at(end)
            }
        };
        if part.is_empty() {
            return None;
        }
        parts.push(part.to_owned());
        match after.strip_prefix('.') {
            Some(more) => rest = more,
            None => return after.is_empty().then_some(parts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_makes_of_a_service_is_not_ours() {
        for name in [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_HTTP",
            "PORT",
            "PORT_7464_TCP",
            "PORT_7464_TCP_ADDR",
            "ADMIN_SERVICE_HOST",
            "ADMIN_PORT_80_TCP",
        ] {
            assert!(of_kubernetes(name), "{name}");
        }
        for name in ["BROKER", "ADMIN__PORT", "SUPPORT", "WORKER__SLOTS", "SERVICE_NAME", "KAFKA__OPTIONS__PORT_X"] {
            assert!(!of_kubernetes(name), "{name}");
        }
    }

    #[test]
    fn keys_are_split_at_dots_outside_quotes() {
        assert_eq!(split("worker.slots").as_deref(), Some(&["worker".to_owned(), "slots".to_owned()][..]));
        assert_eq!(split("jobs.\"a.b\".http").map(|parts| parts[1].clone()).as_deref(), Some("a.b"));
        assert_eq!(
            split("kafka.options.fetch.min.bytes").map(|parts| parts[2].clone()).as_deref(),
            Some("fetch.min.bytes")
        );
        for bad in ["", ".", "a.", ".a", "a..b", "\"a", "\"a\"b"] {
            assert_eq!(split(bad), None, "{bad:?}");
        }
    }
}
