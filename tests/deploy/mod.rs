//! How a worker is packed, started and used from elsewhere: systemd, containers, local processes, Python.

mod systemd;

mod image;

mod compose;

#[cfg(all(feature = "nats", feature = "kafka"))]
mod python;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::tool;

/// The checkout.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python with what the examples need, which `scripts/test` made; `None`, said with the reason, where it is not here.
/// Never a failure: what it needs is a package index, and not every machine may ask one.
fn python() -> Option<PathBuf> {
    let mut script = Command::new(root().join("scripts/python"));
    let output = script.env("WINDLASS_TEST_CACHE", tool::cache()).output().expect("bash is there");
    if output.status.success() {
        return Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    eprintln!("not tested: {}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or_default());
    None
}
