//! Windlass: a job worker that loses nothing.
//!
//! It pulls jobs and events from NATS JetStream, Kafka, or an embedded SQLite queue, runs them in a bounded pool of
//! tokio tasks, retries what fails, keeps what cannot succeed as a dead letter, and slows its own intake when the
//! pool is full.
//!
//! Reading order: [`message`] is the vocabulary; [`broker`] says what a broker must be able to do; [`handler`] what a
//! job is; [`worker`] is the story: receive, decode, admit, execute, decide, settle; [`app`] puts it together from a
//! [`config`]; [`cli`] and [`admin`] are what people and machines meet; [`testing`] is for the tests of your own jobs.

#![warn(missing_docs)]

#[cfg(not(feature = "seeded-bugs"))]
mod seeded;
#[cfg(feature = "seeded-bugs")]
#[doc(hidden)]
pub mod seeded;

pub mod time;

pub mod message;

pub mod broker;

pub mod handler;

pub mod worker;

pub mod client;

pub mod telemetry;

pub mod shutdown;

mod process;

#[cfg(target_os = "linux")]
pub mod systemd;

pub mod config;

pub mod app;

pub mod admin;

pub mod cli;

#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;

pub mod testing;

pub use app::App;
pub use client::Client;
pub use config::Config;
pub use handler::{Context, Error, Registry};

/// The pages whose Rust must compile: documentation tests, and nothing else.
#[cfg(doctest)]
mod pages {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/writing-a-job.md")]
    struct WritingAJob;
    #[doc = include_str!("../docs/testing-a-job.md")]
    struct TestingAJob;
}
