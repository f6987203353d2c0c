//! How a worker is packed, started and used from elsewhere: systemd, containers, local processes, Python.

mod systemd;

mod image;

mod compose;

#[cfg(all(feature = "nats", feature = "kafka"))]
mod python;

use std::path::{Path, PathBuf};

use crate::support::tool;

/// The checkout.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python with what the examples need.
fn python() -> Option<PathBuf> {
    tool::python("examples/fastapi/requirements.txt")
}
