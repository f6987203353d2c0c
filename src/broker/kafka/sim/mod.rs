//! Simulation of the Kafka adapter's own machines: the windows, gates and memos of partitions, the settler, and the
//! choice of moves, as production runs them, in workers that die, freeze and lose their partitions, against a group
//! and logs that do what the references say of real ones.
//!
//! [`log`] is the broker: logs with gaps, commits fenced by the group's generation, transactions that abort, a
//! coordinator that forgets its last commit. [`member`] is a worker: in place of the poll thread, which is all calls
//! of the client, its steps come in the order of the schedule. The laws are looked at in both, at every step.

mod log;
mod member;

use std::sync::Arc;
use std::time::Duration;

use self::log::Log;
use self::member::Member;
use crate::broker::Lane;
use crate::broker::schedule::{self, Broken, Choices};
use crate::message::{Message, Namespace, QueueName};
use crate::time::{Stopped, Timestamp};

/// Numbers of a schedule at the most.
const NUMBERS: usize = 260;
/// After so many rounds of a peaceful end everything must have ended.
const ROUNDS: usize = 600;
/// Crashes that condemn.
const MAX_CRASHES: u32 = 2;

/// The world of one schedule.
struct World {
    clock: Stopped,
    logs: Vec<Log>,
    members: Vec<Member>,
    /// Of the group.
    generation: u64,
    /// Processes that were started.
    born: usize,
    shape: Shape,
}

/// What the schedule is about.
#[derive(Clone, Copy, Debug)]
struct Shape {
    /// Keys in order.
    ordered: bool,
    /// The broker allows transactions.
    transactions: bool,
    /// Its coordinator may forget its last commit.
    forgetful: bool,
    /// The longest retry in place.
    in_place: Duration,
    /// Characters of metadata that the broker takes.
    limit: usize,
    grace: Duration,
}

impl Shape {
    /// The broker takes as much metadata as it does by default.
    fn has_room(self) -> bool {
        self.limit == super::memo::LIMIT
    }
}

fn namespace() -> Namespace {
    Namespace::new("n").expect("a name")
}

fn queue() -> QueueName {
    QueueName::new("q").expect("a name")
}

impl World {
    fn new(choices: &mut Choices) -> Self {
        let shape = Shape {
            ordered: choices.once_in(3),
            transactions: !choices.once_in(4),
            forgetful: choices.once_in(8),
            in_place: Duration::from_millis([400, 0][choices.pick(2)]),
            limit: [4_096, 4_096, 40, 20][choices.pick(4)],
            grace: Duration::from_millis(300),
        };
        let workers = 1 + choices.pick(2);
        Self::of(shape, workers, choices)
    }

    fn of(shape: Shape, workers: usize, choices: &mut Choices) -> Self {
        choices.tell(|| format!("{shape:?}"));
        let work = super::names::work(&namespace(), &queue());
        let logs = vec![
            Log::new("t".into(), 0, Lane::Fresh),
            Log::new("t".into(), 1, Lane::Fresh),
            Log::new(work, 0, Lane::Retry),
        ];
        let clock = Stopped::at(Timestamp::from_millis(1_000_000));
        let mut world = Self { clock, logs, members: Vec::new(), generation: 1, born: 0, shape };
        (0..workers).for_each(|_| world.join());
        for at in 0..world.logs.len() {
            world.logs[at].wanted = at % world.members.len();
        }
        world.assign(choices);
        world
    }

    fn join(&mut self) {
        self.born += 1;
        let member = Member::new(self.born, &self.clock, self.shape, self.generation);
        self.members.push(member);
    }

    fn now(&self) -> i64 {
        self.clock.now().as_millis()
    }

    fn pass(&self, by: u64) {
        self.clock.move_to(self.clock.now().after(Duration::from_millis(by)));
    }

    /// One step of the schedule.
    fn step(&mut self, choices: &mut Choices) -> Result<(), Broken> {
        let member = choices.pick(self.members.len());
        match choices.pick(24) {
            0..=2 => self.publish(choices),
            3..=7 => {
                self.read(choices, member);
                return self.hand(choices, member);
            }
            8..=11 => return self.finish(choices, member),
            12..=15 => {
                self.send(choices, member);
                return self.answer(choices, member);
            }
            16 | 17 => return self.answer(choices, member),
            18 => {
                self.give_back(choices);
                self.assign(choices);
            }
            19 => {
                let by = [1, 20, 200, 700][choices.pick(4)];
                choices.tell(|| format!("{by} ms pass"));
                self.pass(by);
                self.give_back(choices);
            }
            20 => self.revoke(choices),
            21 => self.drop_one(choices, member),
            22 => match choices.pick(3) {
                0 => return self.crash(choices, member),
                1 => self.freeze(choices, member),
                _ => self.thaw(choices, member),
            },
            _ => match choices.pick(3) {
                0 if self.shape.forgetful => self.forget(choices),
                1 if self.members.len() < 3 => self.join(),
                _ => self.expel(choices, member),
            },
        }
        self.give_back(choices);
        Ok(())
    }

    fn publish(&mut self, choices: &mut Choices) {
        let (log, key, gap) = (choices.pick(2), choices.pick(4), choices.pick(6) / 4);
        let plan =
            log::Plan { fails: [0, 0, 0, 1, 2][choices.pick(5)], dead: choices.once_in(5), wait: choices.pick(3) };
        let key = (key < 3).then(|| bytes::Bytes::from(vec![key as u8]));
        let message = Message { body: Some(bytes::Bytes::from_static(b"1")), key, ..Message::default() };
        let (now, log) = (self.clock.now(), &mut self.logs[log]);
        log.next += gap as i64;
        let offset = log.append(message, now, plan, 1);
        choices.tell(|| format!("offset {offset} of {} is published: {plan:?}", log.name()));
    }

    /// Everything heals, and whoever is left ends everything.
    fn end(&mut self, choices: &mut Choices) -> Result<(), Broken> {
        choices.tell(|| "peace".to_owned());
        for member in 0..self.members.len() {
            self.thaw(choices, member);
        }
        for round in 0..ROUNDS {
            self.assign(choices);
            for member in 0..self.members.len() {
                self.read(choices, member);
                self.hand(choices, member)?;
                // What still runs has time to be handed out a second time.
                while round > 3 && self.members[member].runs.iter().any(member::Run::goes_on) {
                    self.finish(choices, member)?;
                    if !self.marked(member) {
                        break;
                    }
                }
                self.send(choices, member);
                self.answer(choices, member)?;
                self.answer(choices, member)?;
            }
            self.give_back(choices);
            self.pass(50);
            // Whoever is idle does not learn that the broker forgot its last commit.
            let idle = |log: &Log| self.shape.forgetful && log.entries.values().all(|entry| entry.ended);
            if self.logs.iter().all(|log| log.is_through() || idle(log)) {
                return self.letters();
            }
        }
        let left: Vec<String> = self.logs.iter().map(Log::left).collect();
        Err(("stuck", format!("after {ROUNDS} rounds without a fault: {}", left.join("; "))))
    }

    /// Each job has ended once: as it was to end.
    fn letters(&self) -> Result<(), Broken> {
        for log in &self.logs {
            for (offset, entry) in &log.entries {
                let (letters, copies) = (entry.letters, entry.copies);
                // Where the broker takes no metadata, nothing says that a record above the watermark was replaced; where
                // there are no transactions, a record is written and its offset committed after: a death, or a
                // partition lost between the two, does it again.
                let once = self.shape.transactions && !self.shape.forgetful && self.shape.has_room();
                if once && letters + copies > 1 {
                    let what = format!("offset {offset} of {}: {letters} letters, {copies} copies", log.name());
                    return Err(("moved twice", what));
                }
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

/// Two records of one key, one worker, in key order: every way through the first answers.
fn small(choices: &mut Choices) -> Result<(), Broken> {
    let mut nothing = Choices::none();
    let shape = Shape {
        ordered: choices.pick(2) == 1,
        transactions: true,
        forgetful: false,
        in_place: Duration::from_millis(400),
        limit: super::memo::LIMIT,
        grace: Duration::from_millis(300),
    };
    let mut world = World::of(shape, 1, &mut nothing);
    let plan = log::Plan { fails: 1, dead: true, wait: 0 };
    for _ in 0..2 {
        let message = Message { body: None, key: Some(bytes::Bytes::from_static(b"k")), ..Message::default() };
        world.logs[0].append(message, world.clock.now(), plan, 1);
    }
    world.send(&mut nothing, 0);
    world.answer(&mut nothing, 0)?;
    world.read(&mut nothing, 0);
    while choices.more() {
        match choices.pick(6) {
            0 => world.hand(&mut nothing, 0)?,
            1 => world.finish(&mut nothing, 0)?,
            2 => world.send(&mut nothing, 0),
            3 => world.answer(&mut nothing, 0)?,
            4 => world.crash(choices, 0)?,
            _ => {
                world.assign(&mut nothing);
                world.read(&mut nothing, 0);
                world.pass(100);
            }
        }
    }
    world.end(&mut nothing)
}

/// Known to all: what stands behind a name of the schedule.
fn arc(text: &str) -> Arc<str> {
    Arc::from(text)
}

#[test]
fn no_schedule_breaks_a_law() {
    schedule::campaign(schedule::wanted(4_000), NUMBERS, play);
}

/// Each bug that was put into this adapter, and the law that sees it.
#[cfg(feature = "seeded-bugs")]
const CAUGHT: [(&str, &str, u64); 10] = [
    ("watermark-highest", "lost", 1),
    ("watermark-early", "repeated", 375),
    ("run-forgotten", "twice", 4),
    ("memo-ignored", "repeated", 97),
    ("retry-unstored", "unstored", 286),
    ("move-unstored", "lost", 8),
    ("key-let-go", "order", 5),
    ("epoch-forgotten", "stuck", 174),
    ("commit-after-revocation", "twice", 4),
    ("letter-before-stored", "lost", 2),
];

#[cfg(feature = "seeded-bugs")]
#[test]
fn every_seeded_bug_of_this_adapter_is_caught() {
    schedule::every_bug_is_caught(&CAUGHT, NUMBERS, play);
}

#[test]
fn no_small_schedule_breaks_a_law() {
    let count = schedule::exhaust(6, small);
    assert!(count > 5_000, "{count} schedules");
}
