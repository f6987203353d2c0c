//! What operators see: log lines and metrics.
//!
//! - [`meter`] counts jobs on the hot path, local to whoever counts, and is flushed once a batch;
//! - [`histogram`] holds durations in fixed buckets, so that memory does not grow with the number of jobs;
//! - [`exposition`] is all of it in Prometheus' text format;
//! - [`events`] is the catalogue: one struct is one log line; [`throttle`] keeps a storm of them readable;
//! - [`log`] decides where lines go and how they look.
//!
//! Nothing here knows a broker: what a broker holds is handed in by whoever asked it ([`exposition::set_depths`]).

pub mod meter;

pub mod histogram;

pub mod exposition;

pub mod events;

pub mod throttle;

pub mod log;
