//! Where servers lie, and what happens where one does not.
//!
//! `scripts/test` fetches them into a cache folder and says where in the environment. A bare `cargo test` finds them
//! in the same folder if they were fetched once. What is not there is reported, and the test passes without having
//! tested; with `WINDLASS_TEST_REQUIRE=1`, which `.ci/run` sets, it fails.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder that `scripts/test` fetches into.
pub fn cache() -> PathBuf {
    match std::env::var_os("WINDLASS_TEST_CACHE") {
        Some(folder) => folder.into(),
        None => match std::env::var_os("XDG_CACHE_HOME") {
            Some(folder) => Path::new(&folder).join("windlass-test"),
            None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache"),
        },
    }
}

/// The path that `variable` names, else `relative` in the cache folder; `None`, reported, where neither is there.
///
/// # Panics
/// Where it is not there and nothing may be missing.
pub fn find(what: &str, variable: &str, relative: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map_or_else(|| cache().join(relative), PathBuf::from);
    if path.exists() {
        return Some(path);
    }
    missing(&format!("{what} is not here ({}); ./scripts/test fetches it, or set {variable}", path.display()))
}

/// `None`, with the reason reported: what the test needs is not on this machine.
///
/// # Panics
/// Where nothing may be missing.
pub fn missing<T>(said: &str) -> Option<T> {
    assert!(std::env::var_os("WINDLASS_TEST_REQUIRE").is_none_or(|value| value != "1"), "{said}");
    eprintln!("not here: {said}");
    None
}

/// A Python with what this file of requirements names, which `scripts/test` made; `None`, said with the reason, where it
/// is not here. Never a failure: what it needs is a package index, and not every machine may ask one.
pub fn python(requirements: &str) -> Option<PathBuf> {
    let mut script = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/python"));
    let output = script.arg(requirements).env("WINDLASS_TEST_CACHE", cache()).output().expect("bash is there");
    if output.status.success() {
        return Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    eprintln!("not tested: {}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default());
    None
}

/// Whether the long runs were asked for: `scripts/test --full`.
pub fn full() -> bool {
    std::env::var_os("WINDLASS_TEST_FULL").is_some_and(|value| value == "1")
}

/// What `scripts/versions` says under `name`.
///
/// # Panics
/// Where it says nothing: a mistake in the test.
pub fn version(name: &str) -> &'static str {
    const VERSIONS: &str = include_str!("../../scripts/versions");
    VERSIONS
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .map(|value| value.trim_matches('"'))
        .unwrap_or_else(|| panic!("scripts/versions has no {name}"))
}
