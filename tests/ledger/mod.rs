//! One ledger for all brokers: every run of every job is written down by its handler, and a judge outside the worker
//! says what was lost, run twice without a cause, counted wrong, early, out of order, owned twice, kept twice, over
//! the slots, or stuck.
//!
//! [`record`] is what handlers write (the worker is `worker.rs`, a binary of its own); [`judge`] is a pure function
//! over what was published, what was written and what was broken on purpose; [`story`] makes all three with real
//! processes; [`chaos`] are the stories, [`kills`] the one of a thousand deaths, [`trouble`]
//! those of clocks, disks, connections and rude handlers, [`torment`] draws its own by a seed; [`seeded`] shows that each rule catches the bug that it is there for.
//!
//! The stories need the worker's binary, which the feature `seeded-bugs` builds: `scripts/test ledger`, or
//! `cargo test --features seeded-bugs --test it ledger`. A new broker is a line in [`chaos`].

#[allow(dead_code, reason = "the worker appends, the stories read, and both only with seeded bugs")]
pub mod record;

pub mod judge;

#[cfg(feature = "seeded-bugs")]
mod story;

#[cfg(feature = "seeded-bugs")]
mod chaos;

#[cfg(feature = "seeded-bugs")]
mod kills;

#[cfg(feature = "seeded-bugs")]
mod trouble;

#[cfg(feature = "seeded-bugs")]
mod torment;

#[cfg(all(feature = "seeded-bugs", feature = "sqlite"))]
mod seeded;
