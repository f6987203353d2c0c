//! The stories that every broker has to survive. A new broker is a line at the end.

use std::time::Duration;

use super::judge::Verdict;
use super::story::{Site, lease};
use crate::conformance::subject::{self, Subject};
use crate::support::tool;

/// Workers that work beside each other.
pub(super) const WORKERS: usize = 3;

/// How often something is broken in a short story: a third of `times` where what a dead worker had waits long.
fn few<S: Subject>(times: usize) -> usize {
    if S::LEASE < Duration::from_secs(5) { times } else { times.div_ceil(3) }
}

pub(super) fn site<S: Subject>(seed: u64) -> Option<Site<S>> {
    if !S::SHORT && !tool::full() {
        eprintln!("not told: the stories on {} last for minutes; WINDLASS_TEST_FULL=1 tells them", S::NAME);
        return None;
    }
    staffed(seed)
}

/// A site with its workers, however long its stories last.
fn staffed<S: Subject>(seed: u64) -> Option<Site<S>> {
    let mut site = Site::<S>::new(seed, None)?;
    (0..WORKERS).for_each(|_| site.start());
    Some(site)
}

/// Another one each time; `WINDLASS_TEST_SEED` tells a story again, as far as processes let themselves be told.
pub(super) fn seed() -> u64 {
    let given = std::env::var("WINDLASS_TEST_SEED").ok();
    given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().expect("WINDLASS_TEST_SEED is a number"))
}

#[track_caller]
pub(super) fn clean(verdict: &Verdict) {
    assert!(verdict.findings.is_empty(), "{verdict}");
}

/// Jobs of every behaviour while workers are killed one after the other.
fn kills<S: Subject>(jobs: usize, kills: usize) {
    if let Some(site) = site::<S>(seed()) {
        killed(site, jobs, kills);
    }
}

fn killed<S: Subject>(mut site: Site<S>, jobs: usize, kills: usize) {
    for _ in 0..kills {
        site.publish(jobs / kills * 3 / 4, jobs / kills / 4);
        let more = site.random.usize(1..=jobs / kills);
        site.advance(more, Duration::from_secs(60));
        let victim = site.random.usize(..site.workers());
        site.kill(victim);
        site.start();
    }
    // A long story leaves a long backlog.
    let verdict = site.verdict(Duration::from_secs(if jobs > 5_000 { 900 } else { 120 }));
    clean(&verdict);
    assert!(verdict.explained > 0 || kills < 5, "so many kills hit something: {verdict}");
}

/// Workers are frozen past their lease and come back.
fn freezes<S: Subject>(rounds: usize) {
    let Some(mut site) = site::<S>(seed()) else { return };
    for _ in 0..rounds {
        site.publish(60, 20);
        let more = site.random.usize(1..=40);
        site.advance(more, Duration::from_secs(60));
        let victim = site.random.usize(..site.workers());
        site.freeze(victim, lease::<S>() * 3 / 2);
    }
    clean(&site.verdict(Duration::from_secs(120)));
}

/// Workers leave under load and others come: nothing runs twice that did not outlive its grace.
fn drains<S: Subject>(rounds: usize) {
    let Some(mut site) = site::<S>(seed()) else { return };
    for _ in 0..rounds {
        site.publish(90, 30);
        let more = site.random.usize(1..=60);
        site.advance(more, Duration::from_secs(60));
        let leaving = site.random.usize(..site.workers());
        site.drain(leaving);
        site.start();
    }
    clean(&site.verdict(Duration::from_secs(120)));
}

/// The broker itself dies and comes back.
fn broker_restarts<S: Subject>(rounds: usize) {
    let Some(mut site) = site::<S>(seed()) else { return };
    for _ in 0..rounds {
        site.publish(90, 30);
        let more = site.random.usize(1..=60);
        site.advance(more, Duration::from_secs(60));
        site.restart_broker();
    }
    clean(&site.verdict(Duration::from_secs(120)));
}

/// Where a dead worker's jobs wait for its session: as short as a story can be, and so told always.
#[cfg(feature = "kafka")]
#[test]
fn nothing_is_lost_in_two_kills_on_kafka() {
    if let Some(site) = staffed::<subject::Kafka>(seed()) {
        killed(site, 200, 2);
    }
}

macro_rules! stories {
    ($($(#[$when:meta])* $broker:ident: $subject:ty),* $(,)?) => { $(
        $(#[$when])*
        mod $broker {
            use super::*;

            #[test]
            fn nothing_is_lost_in_a_few_kills() {
                kills::<$subject>(1_000, few::<$subject>(20));
            }

            #[test]
            fn nothing_is_lost_in_a_hundred_kills() {
                if tool::full() {
                    kills::<$subject>(20_000, 100);
                }
            }

            #[test]
            fn a_frozen_worker_changes_nothing() {
                freezes::<$subject>(if tool::full() { 30 } else { few::<$subject>(3) });
            }

            #[test]
            fn a_drain_runs_nothing_twice() {
                drains::<$subject>(if tool::full() { 50 } else { few::<$subject>(6) });
            }

            #[test]
            fn a_broker_that_restarts_loses_nothing() {
                broker_restarts::<$subject>(if tool::full() { 10 } else { 2 });
            }
        }
    )* };
}

stories! {
    #[cfg(feature = "sqlite")]
    sqlite: subject::Sqlite,
    #[cfg(feature = "nats")]
    nats: subject::Nats,
    #[cfg(feature = "kafka")]
    kafka: subject::Kafka,
}
