//! Simulation of the NATS adapter's own machines: credit, what is in hand and its leases, and confirmation, as
//! production runs them, in workers that freeze, die and are cut off, against a server that does what the references
//! say of real ones.
//!
//! [`server`] is the server with two durables, whose messages and answers wait in pipes: they come late, are lost with
//! their connection, or half of them goes out on the next one. [`worker`] has the pump's steps without its I/O, moves
//! among them: what replaces a delivery is stored under an id of its own, then the delivery is acknowledged.

mod server;
mod worker;

use std::collections::BTreeMap;
use std::time::Duration;

use self::server::{FRESH, Server, WORK};
use self::worker::Worker;
use crate::broker::schedule::{self, Broken, Choices};

/// Numbers of a schedule at the most.
const NUMBERS: usize = 260;
/// After so many rounds of a peaceful end everything must have ended.
const ROUNDS: usize = 900;
/// The lease.
const LEASE: Duration = Duration::from_millis(1_500);
/// Of each worker.
const SLOTS: usize = 3;

/// The truth about a job: `(its stream, its sequence)` is where it is now.
#[derive(Clone, Copy, Debug, Default)]
struct Job {
    /// So many attempts fail.
    fails: u32,
    /// Its last attempt is refused for good.
    dead: bool,
    done: bool,
    /// Somebody was told that its end is stored.
    confirmed: bool,
    letters: u32,
}

struct World {
    server: Server,
    workers: Vec<Worker>,
    jobs: BTreeMap<u32, Job>,
    now: Duration,
    born: u64,
    grouping: bool,
}

impl World {
    fn new(choices: &mut Choices) -> Self {
        let grouping = !choices.once_in(3);
        let forgetful = choices.once_in(3);
        let mut world = Self {
            server: Server::new(forgetful),
            workers: Vec::new(),
            jobs: BTreeMap::new(),
            now: Duration::from_secs(10),
            born: 0,
            grouping,
        };
        choices.tell(|| format!("grouping {grouping}, forgetful {forgetful}"));
        for _ in 0..1 + choices.pick(2) {
            world.join();
        }
        for at in 0..world.workers.len() {
            world.connect(choices, at);
        }
        world
    }

    fn join(&mut self) {
        self.born += 1;
        self.workers.push(Worker::new(self.born, self.grouping));
    }

    fn step(&mut self, choices: &mut Choices) -> Result<(), Broken> {
        let at = choices.pick(self.workers.len());
        match choices.pick(24) {
            0..=2 => self.publish(choices),
            3..=7 => {
                if choices.pick(3) == 0 {
                    self.connect(choices, at);
                }
                return self.turn(choices, at);
            }
            8..=11 => return self.serve(choices, at),
            12..=14 => return self.begin(choices, at),
            15..=17 => self.finish(choices, at),
            18 | 19 => {
                let by = [1, 60, 500, 1_600][choices.pick(4)];
                choices.tell(|| format!("{by} ms pass"));
                self.pass(by);
            }
            20 => match choices.pick(3) {
                0 => self.cut(choices, at),
                1 => self.half_open(choices, at),
                _ => self.connect(choices, at),
            },
            21 => match choices.pick(3) {
                0 => self.freeze(choices, at),
                1 => self.thaw(choices, at),
                _ => self.crash(choices, at),
            },
            22 => match choices.pick(4) {
                0 => self.restart(choices),
                1 => self.new_leader(choices),
                2 if self.workers.len() < 3 => self.join(),
                _ => self.lose(choices, at),
            },
            _ => self.release(choices, at),
        }
        Ok(())
    }

    fn pass(&mut self, by: u64) {
        self.now += Duration::from_millis(by);
        self.server.tick(self.now);
    }

    fn publish(&mut self, choices: &mut Choices) {
        let number = self.jobs.len() as u32 + 1;
        let job = Job { fails: [0, 0, 1, 2][choices.pick(4)], dead: choices.once_in(5), ..Job::default() };
        choices.tell(|| format!("job {number} is published: {} fail, dead {}", job.fails, job.dead));
        self.jobs.insert(number, job);
        self.server.store(FRESH, number, 1, format!("p{number}"), self.now);
    }

    /// Everything heals, and whoever is left ends everything.
    fn end(&mut self, choices: &mut Choices) -> Result<(), Broken> {
        choices.tell(|| "peace".to_owned());
        for at in 0..self.workers.len() {
            self.thaw(choices, at);
            self.connect(choices, at);
        }
        for _ in 0..ROUNDS {
            for at in 0..self.workers.len() {
                self.connect(choices, at);
                self.turn(choices, at)?;
                self.begin(choices, at)?;
                for _ in 0..SLOTS {
                    self.finish(choices, at);
                }
                self.turn(choices, at)?;
                self.serve(choices, at)?;
            }
            self.pass(30);
            if self.server.durables.iter().all(|durable| durable.messages.is_empty()) {
                return self.ended();
            }
        }
        let left: Vec<_> = [FRESH, WORK].map(|at| self.server.durables[at].left()).to_vec();
        Err(("stuck", format!("after {ROUNDS} rounds without a fault: {left:?}")))
    }

    fn ended(&self) -> Result<(), Broken> {
        for (number, job) in &self.jobs {
            let letters = u32::from(job.dead);
            if !job.done && job.letters == 0 {
                return Err(("lost", format!("job {number} is nowhere, and has not ended: {job:?}")));
            }
            if job.letters > letters || job.done && job.dead {
                return Err(("ending", format!("job {number}: {job:?}")));
            }
        }
        Ok(())
    }
}

fn play(choices: &mut Choices) -> Result<(), Broken> {
    let mut world = World::new(choices);
    while choices.more() {
        world.step(choices)?;
    }
    world.end(choices)
}

/// One job, two workers, one of which is cut off, frozen or killed at any moment.
fn small(choices: &mut Choices) -> Result<(), Broken> {
    let mut nothing = Choices::none();
    let mut world = World::new(&mut nothing);
    world.join();
    for at in 0..2 {
        world.connect(&mut nothing, at);
        world.turn(&mut nothing, at)?;
    }
    world.jobs.insert(1, Job { fails: 1, ..Job::default() });
    world.server.store(FRESH, 1, 1, "p1".to_owned(), world.now);
    while choices.more() {
        match choices.pick(7) {
            0 => world.serve(&mut nothing, 0)?,
            1 => world.turn(&mut nothing, 0)?,
            2 => {
                world.begin(&mut nothing, 0)?;
                world.finish(&mut nothing, 0);
            }
            3 => world.cut(&mut nothing, 0),
            4 => world.freeze(&mut nothing, 0),
            5 => world.pass(LEASE.as_millis() as u64 + 1),
            _ => {
                world.turn(&mut nothing, 1)?;
                world.serve(&mut nothing, 1)?;
                world.turn(&mut nothing, 1)?;
                world.begin(&mut nothing, 1)?;
            }
        }
    }
    world.end(&mut nothing)
}

/// Each bug that was put into this adapter's machines, and the law that sees it.
#[cfg(feature = "seeded-bugs")]
const CAUGHT: [(&str, &str, u64); 3] = [
    ("lease-from-arrival", "two owners", 1_220),
    ("lease-endless", "two owners", 5_019),
    ("credit-twice", "credit", 7_934),
];

#[cfg(feature = "seeded-bugs")]
#[test]
fn every_seeded_bug_of_this_adapter_is_caught() {
    schedule::every_bug_is_caught(&CAUGHT, NUMBERS, play);
}

#[test]
fn no_schedule_breaks_a_law() {
    schedule::campaign(schedule::wanted(4_000), NUMBERS, play);
}

#[test]
fn no_small_schedule_breaks_a_law() {
    let count = schedule::exhaust(5, small);
    assert_eq!(count, 7_u64.pow(5));
}
