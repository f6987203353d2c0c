//! Holds a tree of values against the catalogue: what is unknown or unfit is a fault, and is taken out of the tree so
//! that no second fault follows from it.

use super::fault::{Fault, Place};
use super::key::{self, Kind};
use super::value::{Node, Table, Value};
use super::{kafka, meaning};
use crate::message::{JobName, QueueName};

/// Checks a whole tree; what is left in it is sound.
pub(super) fn check(tree: &mut Table, faults: &mut Vec<Fault>) {
    table(tree, "", "", faults);
}

/// `path` as it was written, `pattern` with `*` for chosen names.
fn table(tree: &mut Table, path: &str, pattern: &str, faults: &mut Vec<Fault>) {
    if pattern == "kafka.options" {
        flatten(tree);
    }
    tree.retain(|name, node| {
        let here = key::join(path, &quoted(name));
        let exact = key::join(pattern, name);
        let chosen = key::join(pattern, "*");
        // A quoted name with a dot in it is one name, not a path.
        let plain = name != "*" && !name.contains('.');
        if plain && (key::find(&exact).is_some() || key::is_table(&exact)) {
            entry(node, &here, &exact, faults)
        } else if key::find(&chosen).is_some() || key::is_table(&chosen) {
            if let Some(fault) = chosen_name(pattern, name, node, &here) {
                faults.push(fault);
                return false;
            }
            entry(node, &here, &chosen, faults)
        } else {
            let mut fault = Fault::new(&node.key, here, "unknown key");
            fault.hint = meaning::meant(pattern, name);
            faults.push(fault);
            false
        }
    });
}

fn entry(node: &mut Node, path: &str, pattern: &str, faults: &mut Vec<Fault>) -> bool {
    let Some(known) = key::find(pattern) else {
        return match &mut node.value {
            Value::Table(inner) => {
                table(inner, path, pattern, faults);
                true
            }
            other => {
                let message = format!("expected a table, found {}", other.shown());
                let mut fault = Fault::new(&node.place, path, message);
                if let (Value::Text(text), "queues.*.dead_letter") = (&*other, pattern) {
                    fault.hint = Some(format!("did you mean {{ keep = {text:?} }}?"));
                } else if let (Value::Integer(number), "queues.*.retry" | "jobs.*.retry") = (&*other, pattern) {
                    fault.hint = Some(format!("did you mean {{ attempts = {number} }}?"));
                }
                faults.push(fault);
                false
            }
        };
    };
    if let Err(wrong) = known.kind.check(&node.value) {
        let place = if known.kind == Kind::Reserved { &node.key } else { &node.place };
        faults.push(Fault { place: place.clone(), key: path.to_owned(), message: wrong.expected, hint: wrong.hint });
        return false;
    }
    if let (Kind::Topics, Value::Array(items)) = (known.kind, &mut node.value) {
        topics(items, path, faults);
    }
    true
}

fn topics(items: &mut Vec<Node>, path: &str, faults: &mut Vec<Fault>) {
    let mut seen = Vec::new();
    items.retain(|item| match item.value.topic() {
        Ok(topic) if seen.contains(&topic) => {
            faults.push(Fault::new(&item.place, path, format!("topic {:?} is here twice", topic.as_str())));
            false
        }
        Ok(topic) => {
            seen.push(topic);
            true
        }
        Err(wrong) => {
            faults.push(Fault::new(&item.place, path, wrong.expected));
            false
        }
    });
}

/// What is wrong with a name that the user chose.
fn chosen_name(pattern: &str, name: &str, node: &Node, path: &str) -> Option<Fault> {
    let fault = |message: String| Some(Fault::new(&node.key, path, message));
    match pattern {
        "queues" => match QueueName::new(name) {
            Ok(_) => None,
            Err(message) => {
                let better: String = name
                    .to_lowercase()
                    .chars()
                    .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
                    .take(64)
                    .collect();
                let mut fault = Fault::new(&node.key, path, message);
                fault.hint = QueueName::new(&better).is_ok().then(|| format!("did you mean {better:?}?"));
                Some(fault)
            }
        },
        "jobs" => JobName::new(name).err().and_then(fault),
        "jobs.*.headers" => {
            let lower = name.to_ascii_lowercase();
            if reqwest::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
                fault("expected the name of a header".to_owned())
            } else if lower.starts_with("ce-") {
                fault("names that begin with `ce-` are the event's attributes, which we write".to_owned())
            } else if ["content-type", "content-length", "transfer-encoding", "host"].contains(&lower.as_str()) {
                fault(format!("`{lower}` is written by us, to fit the event"))
            } else {
                None
            }
        }
        "kafka.options" => {
            let reason = kafka::refused(name, &node.value)?;
            fault(reason)
        }
        _ => None,
    }
}

/// `fetch.min.bytes = 1` without quotes makes tables in TOML; librdkafka's names have dots.
fn flatten(options: &mut Table) {
    let mut flat = Table::new();
    let mut rest: Vec<(String, Node)> = std::mem::take(options).into_iter().collect();
    while let Some((name, node)) = rest.pop() {
        match node.value {
            Value::Table(inner) if !inner.is_empty() => {
                rest.extend(inner.into_iter().map(|(last, node)| (format!("{name}.{last}"), node)));
            }
            _ => {
                flat.insert(name, node);
            }
        }
    }
    *options = flat;
}

/// A part of a dotted key as TOML writes it.
pub(super) fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { format!("{name:?}") }
}

/// Lays `upper` over `lower`: tables are merged, everything else is replaced.
pub(super) fn lay_over(lower: &mut Table, upper: Table) {
    for (name, node) in upper {
        match lower.get_mut(&name) {
            Some(Node { value: Value::Table(below), .. }) if matches!(node.value, Value::Table(_)) => {
                if let Value::Table(above) = node.value {
                    lay_over(below, above);
                }
            }
            _ => {
                lower.insert(name, node);
            }
        }
    }
}

/// Puts `value` at `path`, making tables on the way; `false` where something that is no table stands there.
pub(super) fn insert(tree: &mut Table, path: &[String], value: Value, place: &Place) -> bool {
    let Some((last, tables)) = path.split_last() else { return false };
    let mut at = tree;
    for name in tables {
        let node = at.entry(name.clone()).or_insert_with(|| Node {
            value: Value::Table(Table::new()),
            place: place.clone(),
            key: place.clone(),
        });
        match &mut node.value {
            Value::Table(inner) => at = inner,
            _ => return false,
        }
    }
    let mut one = Table::new();
    one.insert(last.clone(), Node { value, place: place.clone(), key: place.clone() });
    lay_over(at, one);
    true
}
