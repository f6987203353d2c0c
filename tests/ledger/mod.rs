//! One ledger for all brokers: every run of every job is written down by its handler, and a judge outside the worker
//! says what was lost, run twice without a cause, counted wrong, early, out of order, owned twice, kept twice, over
//! the slots, or stuck.
//!
//! [`record`] is what handlers write (the worker is `examples/ledger.rs`); [`judge`] is a pure function over what was
//! published, what was written and what was broken on purpose; [`story`] makes all three with real processes.

pub mod record;

pub mod judge;
