//! One integration binary: behaviour against real servers. Each module is one subject.

// A test says what must hold; `expect` and `unwrap` are how it says so.
#![allow(clippy::unwrap_used)]

mod support;

#[cfg(feature = "kafka")]
mod kafka;

mod layout;

mod readme;

mod docs;

mod conformance;

mod ledger;

mod sim;

#[cfg(all(feature = "sqlite", feature = "nats", feature = "kafka"))]
mod soak;

mod admin;

#[cfg(feature = "sqlite")]
mod cli;

#[cfg(feature = "nats")]
mod nats;

#[cfg(feature = "sqlite")]
mod deploy;
