//! Who may import whom: the arrows of docs/architecture.md, kept true.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Each module with what it may import. A module in parentheses may be imported at that path only, for the reason
/// beside it.
const ARROWS: [(&str, &str); 17] = [
    // It looks at whatever reads bytes of others; compiled for tests and fuzzing only.
    ("fuzz", "admin broker cli config handler message time"),
    ("app", "admin broker client config handler message process seeded shutdown systemd telemetry time worker"),
    ("cli", "app broker client config handler message process shutdown telemetry time fuzz"),
    ("testing", "app broker client config handler message shutdown telemetry time worker"),
    ("admin", "broker client message shutdown telemetry time worker fuzz"),
    // Each module owns its own configuration; here they are put together.
    ("config", "admin broker handler message telemetry time worker"),
    ("worker", "broker handler message seeded shutdown telemetry time"),
    // A retry policy is data that a job may carry; it lives beside the function that decides by it.
    ("handler", "client message telemetry time fuzz (worker::retry)"),
    ("client", "broker message time"),
    // The catalogue says what was done about an outcome, and which error a broker gave.
    ("telemetry", "broker message time"),
    ("broker", "message seeded shutdown telemetry time fuzz"),
    ("message", "time"),
    ("systemd", "shutdown"),
    ("process", ""),
    ("shutdown", ""),
    ("seeded", ""),
    ("time", "seeded"),
];

/// Client libraries, and the one folder that may name each.
const CLIENTS: [(&str, &str); 4] = [
    ("async_nats", "src/broker/nats"),
    ("rdkafka", "src/broker/kafka"),
    ("rdkafka_sys", "src/broker/kafka"),
    ("sqlx", "src/broker/sqlite"),
];

/// Every source file with its text, comments and tests left out.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![root.join("src")];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the sources").flatten() {
            let path = entry.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "tests" {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") && name != "tests" && !name.ends_with("_tests") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
                let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
                let relative = path.strip_prefix(root).expect("below the root").to_owned();
                sources.push((relative, code.collect::<Vec<_>>().join("\n")));
            }
        }
    }
    sources
}

/// The module that a file belongs to: the first part of its path below `src`.
fn module(path: &Path) -> String {
    let first = path.components().nth(1).expect("src/..").as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// What stands behind each `crate::`, groups in braces taken apart: `broker::Error`, `time`.
fn imports(code: &str) -> Vec<String> {
    let mut imports = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let path = |text: &str| -> String {
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect()
        };
        match rest.strip_prefix('{') {
            Some(group) => imports.extend(top_level(group).iter().map(|item| path(item.trim()))),
            None => imports.push(path(rest)),
        }
    }
    imports
}

/// The items of a group up to its closing brace.
fn top_level(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut items) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                items.push(&group[from..at]);
                from = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    items
}

#[test]
fn arrows_point_down() {
    let arrows: BTreeMap<&str, Vec<&str>> =
        ARROWS.iter().map(|(from, to)| (*from, to.split_whitespace().collect())).collect();
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let from = module(&path);
        if from == "main" || from == "lib" {
            continue;
        }
        let Some(allowed) = arrows.get(from.as_str()) else {
            wrong.push(format!("{}: no arrows for module {from}; add it to ARROWS", path.display()));
            continue;
        };
        for import in imports(&code) {
            let first = import.split("::").next().unwrap_or_default();
            let known = arrows.contains_key(first);
            let narrow = allowed.iter().filter_map(|to| to.strip_prefix('(')?.strip_suffix(')'));
            let fine = first == from || allowed.contains(&first) || narrow.into_iter().any(|to| import.starts_with(to));
            if known && !fine {
                wrong.push(format!("{}: {from} may not import crate::{import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_client_library_stays_in_its_adapter() {
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        for (client, home) in CLIENTS {
            let own = path.starts_with(home) || path == Path::new(&format!("{home}.rs"));
            // By its types; a log filter may name it.
            let named = [format!("{client}::"), format!("use {client};"), format!("use {client} as")];
            if !own && named.iter().any(|name| code.contains(name)) {
                wrong.push(format!("{}: {client} may not leave {home}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn adapters_do_not_know_each_other_and_the_worker_knows_none() {
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let adapters = ["memory", "sqlite", "nats", "kafka"];
        let own = adapters.into_iter().find(|name| path.starts_with(format!("src/broker/{name}")));
        for other in adapters.into_iter().filter(|other| own.is_some_and(|own| own != *other)) {
            if code.contains(&format!("{other}::")) {
                wrong.push(format!("{}: an adapter may not import {other}", path.display()));
            }
        }
        let named = ["sqlite", "nats", "kafka"].into_iter().find(|name| code.to_lowercase().contains(name));
        if let Some(name) = named.filter(|_| path.starts_with("src/worker")) {
            wrong.push(format!("{}: the worker may not name {name}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn groups_are_taken_apart() {
    let code = "use crate::{app, broker::{self, Error}, time::Clock};\nlet x = crate::seeded::bug(1);";
    assert_eq!(imports(code), ["app", "broker::", "time::Clock", "seeded::bug"]);
}
