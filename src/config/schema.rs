//! `config schema`: the catalogue as a JSON Schema, for editors.

use serde_json::{Map, Value, json};

use super::key::{self, KEYS, Kind};

/// A JSON Schema (draft 2020-12) of the configuration file, as pretty JSON.
pub fn schema() -> String {
    let mut root = object("");
    root.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    root.insert("title".to_owned(), json!("Windlass configuration"));
    let mut text = serde_json::to_string_pretty(&Value::Object(root)).expect("maps with text keys are JSON");
    text.push('\n');
    text
}

fn object(pattern: &str) -> Map<String, Value> {
    let mut properties = Map::new();
    let mut names = None;
    for child in key::children(pattern) {
        let here = key::join(pattern, child);
        let inner = match KEYS.iter().find(|key| key.path == here) {
            Some(key) if key.kind == Kind::Reserved => continue,
            Some(key) => leaf(key),
            None => Value::Object(object(&here)),
        };
        if child == "*" {
            names = Some(inner);
        } else {
            properties.insert(child.to_owned(), inner);
        }
    }
    let mut object = Map::new();
    object.insert("type".to_owned(), json!("object"));
    let doc = key::table_doc(pattern);
    if !doc.is_empty() {
        object.insert("description".to_owned(), json!(doc));
    }
    if !properties.is_empty() {
        object.insert("properties".to_owned(), Value::Object(properties));
    }
    match (pattern, names) {
        // The one place where tables may stand among the names: `fetch.min.bytes` without quotes.
        ("kafka.options", Some(_)) => object.insert("additionalProperties".to_owned(), json!(true)),
        (_, Some(inner)) => {
            if pattern == "queues" {
                object.insert("propertyNames".to_owned(), json!({ "pattern": "^[a-z0-9][a-z0-9_-]{0,63}$" }));
            }
            object.insert("additionalProperties".to_owned(), inner)
        }
        (_, None) => object.insert("additionalProperties".to_owned(), json!(false)),
    };
    object
}

fn leaf(key: &key::Key) -> Value {
    let mut schema = match kind(key.kind) {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    schema.insert("description".to_owned(), json!(key.doc));
    if let Some(default) = json_of(key.default) {
        schema.insert("default".to_owned(), default);
    }
    if let Some(example) = json_of(key.example) {
        schema.insert("examples".to_owned(), json!([example]));
    }
    Value::Object(schema)
}

/// The catalogue's TOML values are JSON too.
fn json_of(toml: &str) -> Option<Value> {
    serde_json::from_str(toml).ok()
}

fn kind(kind: Kind) -> Value {
    const DURATION: &str = "^([0-9]+(ms|s|m|h|d))+$";
    match kind {
        Kind::Address => {
            json!({ "type": "string", "pattern": "^(sqlite|memory|nats|nats\\+tls|tls|kafka|kafka\\+tls)://" })
        }
        Kind::Namespace => json!({ "type": "string", "pattern": "^[a-z0-9-]{1,32}$" }),
        Kind::Job => json!({ "type": "string", "pattern": "^[!-~]{1,128}$" }),
        Kind::Topics => {
            json!({ "type": "array", "items": { "type": "string", "minLength": 1, "maxLength": 249 }, "uniqueItems": true })
        }
        Kind::Count(min, max) => json!({ "type": "integer", "minimum": min, "maximum": max }),
        Kind::Number(min, max) => json!({ "type": "number", "minimum": min, "maximum": max }),
        Kind::Size => json!({ "type": "string", "pattern": "^[0-9]+ ?(B|KiB|MiB|GiB)$" }),
        Kind::Duration(_) => json!({ "type": "string", "pattern": DURATION }),
        Kind::Choice(choices) => json!({ "enum": choices }),
        Kind::Start => {
            json!({ "type": "string", "anyOf": [{ "enum": ["earliest", "latest"] }, { "format": "date-time" }] })
        }
        Kind::Keep => json!({ "type": "string", "pattern": format!("{DURATION}|^forever$") }),
        Kind::Url => json!({ "type": "string", "pattern": "^https?://" }),
        Kind::Text | Kind::Path | Kind::Level => json!({ "type": "string", "minLength": 1 }),
        Kind::Hidden => json!({ "type": "string" }),
        Kind::Listen => json!({ "type": "string", "pattern": "^(none|.+:[0-9]+)$" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::Scalar | Kind::Reserved => json!({ "type": ["string", "number", "boolean"] }),
    }
}
