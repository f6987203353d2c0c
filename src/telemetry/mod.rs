//! What operators see: log lines and metrics.
//!
//! [`events`] is the catalogue: one struct is one log line and its metrics. [`meter`] counts jobs on the hot path,
//! local to whoever counts, and is flushed once a batch.

pub mod events;
pub mod log;
pub mod meter;
