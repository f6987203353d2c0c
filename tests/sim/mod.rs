//! Deterministic simulation: the production engine on a stopped clock, in one thread, against a broker that misbehaves
//! by seed.
//!
//! A [`schedule`] says what a site looks like, what is published and what befalls it. [`world`] holds what the broker
//! and its adapters know and looks at every call; [`broker`] and [`job`] are how the engine meets it; [`site`] plays a
//! schedule, and hands what handlers wrote to the ledger's judge. What is wrong is a broken [`law`]; [`shrink`] makes
//! the schedule that broke it small. Every choice is drawn from the seed by [`chance`], or read from a script, which
//! is how small cases are gone through one and all.

mod broker;
mod chance;
mod job;
mod law;
mod reality;
mod schedule;
#[cfg(feature = "seeded-bugs")]
mod seeded;
mod shrink;
mod site;
mod small;
mod world;

use std::collections::BTreeMap;

use schedule::Schedule;
use site::Outcome;

use crate::support::tool;

/// Schedules played by default, which takes some forty seconds of a core in a debug build, and with `--full`.
const SCHEDULES: (u64, u64) = (10_000, 50_000);

#[test]
fn no_schedule_breaks_a_law() {
    let count = std::env::var("SIM_SCHEDULES").ok().and_then(|count| count.parse().ok());
    let from = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let count = count.unwrap_or(if tool::full() { SCHEDULES.1 } else { SCHEDULES.0 });
    let (mut runs, mut explained, mut workers) = (0, 0, 0);
    let mut wrong: BTreeMap<law::Law, (u64, Outcome)> = BTreeMap::new();
    for seed in from..from + count {
        let schedule = Schedule::from_seed(seed);
        let outcome = site::play(&schedule, false);
        runs += outcome.runs;
        explained += outcome.explained;
        workers += outcome.workers;
        if let Some(law) = outcome.laws().first().copied() {
            wrong.entry(law).or_insert((0, outcome)).0 += 1;
        }
    }
    eprintln!("{count} schedules from {from}: {runs} runs, {explained} again and explained, {workers} processes");
    for (law, (times, outcome)) in &wrong {
        eprintln!("{law:?}, broken by {times} schedules:\n{}", shrink::story(outcome));
    }
    assert!(wrong.is_empty(), "{:?} broken; the stories stand above", wrong.keys());
    assert!(count < 100 || (explained > 0 && workers > count as usize), "the faults of the schedules fire");
}
