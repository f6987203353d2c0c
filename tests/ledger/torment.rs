//! A campaign: faults drawn from a seed, one after the other, while jobs of every behaviour are published and run, and
//! one judgement over all of it.
//!
//! `scripts/torment [--broker B] [--seed S] [--minutes M]` makes long ones; a short one is part of the tests. The same
//! seed gives the same jobs and the same faults in the same order; when each comes between two instructions of a
//! worker is the machine's affair.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use super::chaos::{clean, seed};
use super::judge;
use super::story::{Site, lease};
#[cfg(feature = "sqlite")]
use super::trouble::Small;
use crate::conformance::subject::{self, Subject};

/// What is done to the workers or to their broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// `kill -9` of a worker, and another in its place.
    Kill,
    /// `kill -9` of all workers at once, and as many others.
    Massacre,
    /// A worker is stopped for longer than its lease.
    Freeze,
    /// A worker is told to leave, and another comes.
    Drain,
    /// One worker more, until the next drain.
    Join,
    /// The broker's server is killed and started again.
    Restart,
    /// Every connection is reset; of SQLite, somebody else locks the file.
    Cut,
    /// The wall clock is set forward by more than a lease, and back by the next.
    Clock,
    /// Handlers keep their threads for a while, in the middle of whatever comes next.
    Rude,
    /// What goes over the connections vanishes, and they break then.
    Swallow,
    /// What goes over the connections is held up. It explains nothing.
    Delay,
    /// No dead letter can be stored. By itself it explains nothing.
    Refuse,
    /// The disk is full, for longer than a lease (SQLite).
    Disk,
}

const FAULTS: [Fault; 13] = [
    Fault::Kill,
    Fault::Massacre,
    Fault::Freeze,
    Fault::Drain,
    Fault::Join,
    Fault::Restart,
    Fault::Cut,
    Fault::Clock,
    Fault::Rude,
    Fault::Swallow,
    Fault::Disk,
    Fault::Delay,
    Fault::Refuse,
];

/// How long a rude handler keeps its thread: a worker that is told to leave can wait for two of them.
const RUDE: Duration = Duration::from_millis(700);

/// Workers at the start.
const WORKERS: usize = 3;

/// Workers at the most.
const MOST: usize = 5;

/// Where a campaign ends.
enum Until {
    /// After so many faults.
    Faults(usize),
    /// After so long.
    Time(Duration),
}

/// What a campaign did.
#[derive(Default)]
struct Tally {
    /// How often each fault was set, and how many runs it met: going on, or finished and possibly unconfirmed.
    faults: BTreeMap<Fault, (usize, usize)>,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<10} {:>6} {:>10}", "fault", "times", "runs met")?;
        self.faults.iter().try_for_each(|(fault, (times, met))| {
            let name = format!("{fault:?}").to_lowercase();
            writeln!(f, "{name:<10} {times:>6} {met:>10}")
        })
    }
}

impl Fault {
    /// Sets it; `false` where this broker cannot have it. `disk` is full where it says so.
    fn set<S: Subject>(self, site: &mut Site<S>, clock: &mut i64, disk: Option<&dyn Fn(bool)>) -> bool {
        let victim = site.random.usize(..site.workers());
        match self {
            Self::Kill => {
                site.kill(victim);
                site.start();
            }
            Self::Massacre => {
                let count = site.workers();
                (0..count).for_each(|_| site.kill(0));
                (0..count).for_each(|_| site.start());
            }
            Self::Freeze => site.freeze(victim, lease::<S>() * 3 / 2),
            Self::Drain => {
                site.drain(victim);
                if site.workers() < WORKERS {
                    site.start();
                }
            }
            Self::Join if site.workers() < MOST => site.start(),
            Self::Join => return false,
            Self::Restart => return site.restart_broker(),
            Self::Cut => return site.cut(),
            Self::Clock => {
                *clock = if *clock == 0 { lease::<S>().as_millis() as i64 * 3 / 2 } else { 0 };
                site.set_clock(*clock);
            }
            Self::Rude => site.publish_rude(2, RUDE),
            Self::Swallow => {
                let quarters = site.random.u32(1..=6);
                return site.swallow(lease::<S>() * quarters / 4);
            }
            Self::Delay => return site.delay(lease::<S>()),
            Self::Refuse => return site.refuse_letters(lease::<S>() * 3 / 2),
            Self::Disk => {
                let Some(disk) = disk else { return false };
                site.disturb(|site| {
                    disk(true);
                    site.advance(usize::MAX / 2, lease::<S>() * 3 / 2);
                    disk(false);
                });
            }
        }
        true
    }
}

fn campaign<S: Subject>(until: &Until, subject: Option<S>, disk: Option<&dyn Fn(bool)>) {
    let seed = seed();
    let Some(mut site) = subject.map(|subject| Site::with(subject, seed, None)) else { return };
    (0..WORKERS).for_each(|_| site.start());
    let (begun, mut count, mut clock) = (Instant::now(), 0, 0);
    let mut set: Vec<(Fault, usize)> = Vec::new();
    while match until {
        Until::Faults(most) => count < *most,
        Until::Time(lasting) => begun.elapsed() < *lasting,
    } {
        let (mixed, keyed) = (site.random.usize(20..=60), site.random.usize(5..=25));
        site.publish(mixed, keyed);
        let more = site.random.usize(1..=mixed);
        site.advance(more, Duration::from_secs(60));
        let fault = FAULTS[site.random.usize(..FAULTS.len())];
        let before = site.faults().len();
        if fault.set(&mut site, &mut clock, disk) {
            count += 1;
            let after = site.faults().len();
            // What breaks nothing is counted too.
            let indices = if before == after { usize::MAX..=usize::MAX } else { before..=after - 1 };
            set.extend(indices.map(|index| (fault, index)));
        }
    }
    site.set_clock(0);
    site.settle(Duration::from_secs(240));
    let mut tally = Tally::default();
    for (fault, index) in set {
        let met = site.faults().get(index).map_or(0, |set| judge::met(site.story(), set));
        let (times, runs) = tally.faults.entry(fault).or_default();
        (*times, *runs) = (*times + 1, *runs + met);
    }
    let jobs = site.story().jobs.len();
    let killed = site.faults().iter().filter(|fault| fault.kind == judge::Kind::Killed).count();
    let verdict = site.verdict(Duration::from_secs(240));
    eprintln!(
        "{} with seed {seed}: {jobs} jobs, {count} faults, {killed} workers killed, in {:?}\n{tally}",
        S::NAME,
        begun.elapsed()
    );
    clean(&verdict);
}

/// As long as the environment says; `None`: this broker was not asked for.
fn asked(broker: &str, faults: usize) -> Option<Until> {
    let of = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match of("WINDLASS_TORMENT_MINUTES") {
        Some(minutes) => {
            let only = of("WINDLASS_TORMENT_BROKER");
            let minutes: f64 = minutes.parse().expect("WINDLASS_TORMENT_MINUTES is a number");
            let wanted = only.is_none_or(|only| only == broker);
            wanted.then(|| Until::Time(Duration::from_secs_f64(minutes * 60.0)))
        }
        None => (faults > 0).then_some(Until::Faults(faults)),
    }
}

#[cfg(feature = "sqlite")]
#[test]
fn sqlite() {
    if let Some(until) = asked("sqlite", 8) {
        let small = Small::mount("96m");
        let subject = match &small {
            Some(small) => {
                let folder = small.path().join("queue");
                std::fs::create_dir(&folder).expect("a folder");
                Some(subject::Sqlite::within(&folder))
            }
            None => subject::Sqlite::fresh(),
        };
        let disk = |full: bool| {
            let small = small.as_ref().expect("asked only where there is one");
            if full { small.fill() } else { small.relieve() }
        };
        campaign::<subject::Sqlite>(&until, subject, small.as_ref().map(|_| &disk as &dyn Fn(bool)));
    }
}

#[cfg(feature = "nats")]
#[test]
fn nats() {
    if let Some(until) = asked("nats", 5) {
        campaign::<subject::Nats>(&until, subject::Nats::fresh(), None);
    }
}

#[cfg(feature = "kafka")]
#[test]
fn kafka() {
    if let Some(until) = asked("kafka", 0) {
        campaign::<subject::Kafka>(&until, subject::Kafka::fresh(), None);
    }
}
