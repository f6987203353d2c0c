//! `config init`, and the file that lists every key.

use std::io::Write;
use std::path::Path;

use super::key::{KEYS, Kind, table_doc};

/// What `config init` writes: a commented file that runs as it is (queue `hello`, job `log`).
pub fn init() -> &'static str {
    include_str!("init.toml")
}

/// Writes `text` to a file that is not there yet; an existing one is an error (`AlreadyExists`), never touched.
pub fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = std::fs::File::create_new(path)?;
    file.write_all(text.as_bytes())
}

/// Every key with its default, commented: what `config/windlass.toml` holds. A line that begins with `#` and no space
/// is a setting.
pub fn template() -> String {
    let mut text = HEAD.to_owned();
    let mut table = String::new();
    for key in KEYS.iter().filter(|key| key.kind != Kind::Reserved) {
        let path = named(key.path);
        let depth = if key.path.contains(".*.") && !key.path.starts_with("kafka") { 2 } else { 1 };
        let parts: Vec<&str> = key.path.splitn(depth + 1, '.').collect();
        let (head, name) = match parts.split_last() {
            Some((_, [])) | None => (String::new(), path.clone()),
            Some((name, head)) => (head.join("."), named_from(name, key.path)),
        };
        if head != table {
            let doc = table_doc(&head);
            let live = if head.contains('*') { "#" } else { "" };
            text.push_str(&format!("\n# {doc}\n{live}[{}]\n", named(&head)));
            table = head;
        }
        let value = if key.default.is_empty() || key.default == "[]" { key.example } else { key.default };
        let live = if key.path == "broker" { "" } else { "#" };
        let line = format!("{live}{name} = {value}");
        text.push_str(&format!("{line:<52} # {}\n", key.doc));
    }
    text
}

fn named(path: &str) -> String {
    path.replacen("queues.*", "queues.invoice", 1).replacen("jobs.*", "jobs.invoice", 1)
}

fn named_from(name: &str, path: &str) -> String {
    match path {
        "jobs.*.headers.*" => "headers.x-team".to_owned(),
        "kafka.options.*" => "options.\"fetch.message.max.bytes\"".to_owned(),
        _ => name.to_owned(),
    }
}

const HEAD: &str = "\
# Windlass: every key there is. What is commented out shows its default, or an example where the text says so.
#
# Order: defaults < this file < environment (WINDLASS_WORKER__SLOTS=128; `-` in a name is written `_`) < flags
# (--set worker.slots=128). Durations: a whole number and ms, s, m, h or d, which add up (\"1h30m\"). Sizes: B, KiB,
# MiB, GiB. `windlass config check` lists every fault at once, `windlass config show` what is in force.

";
