//! TOML text as a tree of values that know their line and column.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::fault::{Fault, Place};
use super::value::{Node, Table, Value};

/// Reads as much as can be read; the faults are those of TOML's syntax.
pub(super) fn parse(path: &Arc<str>, text: &str) -> (Table, Vec<Fault>) {
    let lines = Lines { path: path.clone(), text, starts: starts(text) };
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut faults: Vec<Fault> = Vec::new();
    for error in errors {
        let place = error.span().map_or_else(|| Place::Whole(path.clone()), |span| lines.place(span.start));
        let fault = Fault::new(&place, "", format!("not TOML: {}", error.message().replace('\n', "; ")));
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
    (table(document.get_ref(), &lines), faults)
}

/// Reads one TOML value, as a variable or a flag may hold one. Every part of it stands at `place`.
pub(super) fn parse_value(text: &str, place: &Place) -> Result<Value, String> {
    let value = DeValue::parse(text).map_err(|error| error.message().replace('\n', "; "))?;
    let lines = Lines { path: "".into(), text, starts: Vec::new() };
    let mut node = Node { value: convert(value.get_ref(), &lines), place: place.clone(), key: place.clone() };
    move_to(&mut node, place);
    Ok(node.value)
}

fn move_to(node: &mut Node, place: &Place) {
    node.place = place.clone();
    node.key = place.clone();
    match &mut node.value {
        Value::Array(items) => items.iter_mut().for_each(|item| move_to(item, place)),
        Value::Table(table) => table.values_mut().for_each(|item| move_to(item, place)),
        _ => {}
    }
}

fn table(table: &DeTable<'_>, lines: &Lines<'_>) -> Table {
    table.iter().map(|(name, value)| (name.get_ref().to_string(), node(name, value, lines))).collect()
}

fn node(name: &Spanned<DeString<'_>>, value: &Spanned<DeValue<'_>>, lines: &Lines<'_>) -> Node {
    Node {
        value: convert(value.get_ref(), lines),
        place: lines.place(value.span().start),
        key: lines.place(name.span().start),
    }
}

fn convert(value: &DeValue<'_>, lines: &Lines<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => Value::Odd(format!("the number {}", number.as_str())),
        },
        DeValue::Float(number) => match number.as_str().parse() {
            Ok(number) => Value::Float(number),
            Err(_) => Value::Odd(format!("the number {}", number.as_str())),
        },
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| {
                    let place = lines.place(item.span().start);
                    Node { value: convert(item.get_ref(), lines), key: place.clone(), place }
                })
                .collect(),
        ),
        DeValue::Table(inner) => Value::Table(table(inner, lines)),
    }
}

/// Turns byte offsets into lines and columns.
struct Lines<'t> {
    path: Arc<str>,
    text: &'t str,
    /// Where each line begins.
    starts: Vec<usize>,
}

fn starts(text: &str) -> Vec<usize> {
    std::iter::once(0)
        .chain(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1))
        .collect()
}

impl Lines<'_> {
    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset).max(1);
        let start = self.starts.get(line - 1).copied().unwrap_or(0);
        let column = self.text.get(start..offset.min(self.text.len())).map_or(1, |before| before.chars().count() + 1);
        Place::File { path: self.path.clone(), line, column }
    }
}
