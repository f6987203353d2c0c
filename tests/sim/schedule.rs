//! What is played: the shape of a site, its jobs, and what befalls it. Made from a seed, and small enough to be read.

use std::fmt;
use std::time::Duration;

use crate::ledger::judge::Ends;

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule {
    /// What every choice that is not written here is drawn from.
    pub seed: u64,
    /// Of a thousand calls to the broker so many misbehave.
    pub mischief: u32,
    /// The site.
    pub shape: Shape,
    /// What is published and enqueued.
    pub jobs: Vec<Job>,
    /// What befalls it.
    pub faults: Vec<Fault>,
}

/// A site: workers, queues and what they were told.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Workers that should be there; one that dies or leaves is replaced.
    pub workers: usize,
    /// Slots of each, over all queues.
    pub slots: usize,
    /// Tasks of each queue.
    pub lanes: usize,
    /// Queue `a` and, from two on, `b` hear topic `t`; the third, `k`, hears `u`.
    pub queues: usize,
    /// Whether `k` is in key order.
    pub ordered: bool,
    /// Slots of a queue.
    pub queue_slots: usize,
    /// Bytes of payload in flight.
    pub bytes: usize,
    /// The lease.
    pub lease: Duration,
    /// The grace.
    pub grace: Duration,
    /// Attempts in all.
    pub attempts: u32,
    /// Before the second attempt.
    pub first: Duration,
    /// Of one attempt.
    pub timeout: Duration,
    /// Crashes that condemn.
    pub max_crashes: u32,
    /// What the settler allows to be unconfirmed.
    pub unconfirmed: usize,
    /// Whether every start has to be marked, or only that of what came back.
    pub marks_all: bool,
    /// Whether a source may give one more than the credit.
    pub over_credit: bool,
}

/// The longest delay before a retry.
pub const MAX_DELAY: Duration = Duration::from_millis(400);
/// So long a job that nobody registered is put back.
pub const UNROUTABLE_AFTER: Duration = Duration::from_millis(2_500);

/// One message.
#[derive(Clone, Debug)]
pub struct Job {
    /// Its number.
    pub number: u64,
    /// When it is published, in milliseconds from the beginning.
    pub at: u64,
    /// To a topic (`t` or `u`), or for one queue.
    pub to: To,
    /// Its key.
    pub key: Option<u8>,
    /// What its handler does.
    pub act: Act,
    /// Bytes of payload, at least.
    pub size: usize,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// To the queues that hear `t`.
    T,
    /// To the queue that hears `u`.
    U,
    /// To this queue alone, due so many milliseconds later.
    Queue(usize, u64),
}

/// What the handler of a job does. A number of times is the number of attempts that go so before one succeeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Succeeds, after so many milliseconds.
    Succeeds(u64),
    /// Answers with an error that many times; each attempt takes so many milliseconds.
    Fails(u32, u64),
    /// Says that no retry is of use.
    Refuses,
    /// Panics.
    Panics(u32),
    /// Pends for ever; `true`: watches its cancellation and ends by itself then.
    Hangs(u32, bool),
    /// Pends for ever, and panics when it is dropped.
    DiesHard(u32),
    /// Asks to be run later.
    Snoozes(u32),
    /// Is cancelled only at the end of its time, and succeeds then: a handler that watches and is late.
    Finishes,
    /// Kills its process.
    Crashes(u32),
    /// Is not UTF-8.
    Malformed,
    /// Its time was over when it was published.
    Expired,
    /// Nobody knows its job; enqueued only.
    Unroutable,
}

/// What befalls a site. Times are milliseconds from the beginning; workers are named by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `kill -9`.
    Kill(u64, usize),
    /// `kill -9` at this call of the worker to its broker or its handlers, counted from its start.
    KillAtCall(u32, usize),
    /// Told to leave.
    Leave(u64, usize),
    /// Stopped for so long, and continued.
    Freeze(u64, usize, u64),
    /// Cut off from the broker for so long.
    Cut(u64, usize, u64),
    /// The broker is away for so long, and forgets what it had acknowledged and not stored.
    Broker(u64, u64),
    /// Dead letters are refused for so long.
    DeadRefused(u64, u64),
    /// The queue's partitions are taken from this worker.
    Rebalance(u64, usize, usize),
    /// An operator pauses a queue of this worker for so long.
    Pause(u64, usize, usize, u64),
    /// An operator changes the slots of a queue of this worker.
    Slots(u64, usize, usize, usize),
}

impl Job {
    /// How it ends, and after how many attempts, given how many are allowed.
    pub fn ends(&self, shape: &Shape) -> (Ends, u32) {
        match self.act {
            Act::Succeeds(_) | Act::Finishes | Act::Snoozes(_) | Act::Crashes(1) => (Ends::Done, 1),
            Act::Fails(times, _) | Act::Panics(times) | Act::Hangs(times, _) | Act::DiesHard(times) => {
                if times >= shape.attempts {
                    (Ends::Dead("exhausted"), shape.attempts)
                } else {
                    (Ends::Done, times + 1)
                }
            }
            Act::Refuses => (Ends::Dead("permanent"), 1),
            Act::Crashes(_) => (Ends::Dead("crashed"), 1),
            Act::Malformed => (Ends::Dead("malformed"), 0),
            Act::Expired => (Ends::Dead("expired"), 0),
            Act::Unroutable => (Ends::Dead("unroutable"), 0),
        }
    }

    /// The queues that have to run it.
    pub fn queues(&self, shape: &Shape) -> Vec<usize> {
        match self.to {
            To::T => (0..shape.queues.min(2)).collect(),
            To::U => vec![2],
            To::Queue(queue, _) => vec![queue],
        }
    }

    /// The payload: its number, and what it is padded with.
    pub fn body(&self) -> Vec<u8> {
        let mut body = format!("{{\"job\":{}}}", self.number).into_bytes();
        if self.act == Act::Malformed {
            body.insert(0, 0xff);
        }
        let size = self.size.max(body.len());
        body.resize(size, b' ');
        body
    }
}

impl Fault {
    /// When it is over.
    pub fn over(self) -> u64 {
        match self {
            Self::Kill(at, _) | Self::Leave(at, _) | Self::Rebalance(at, ..) | Self::Slots(at, ..) => at,
            Self::KillAtCall(..) => 0,
            Self::Freeze(at, _, lasting) | Self::Cut(at, _, lasting) | Self::Pause(at, _, _, lasting) => at + lasting,
            Self::Broker(at, lasting) | Self::DeadRefused(at, lasting) => at + lasting,
        }
    }
}

impl Schedule {
    /// The schedule of a seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed ^ 0x51_4d55_4c41_5445);
        let random = &mut random;
        let shape = shape(random);
        let count = random.u64(1..=6);
        let jobs = (1..=count).map(|number| job(random, &shape, number)).collect();
        // A third of all schedules have nothing but a broker that misbehaves: what goes wrong there nothing explains.
        let faults = match random.u32(..6) {
            0 | 1 => 0,
            2..=4 => 1,
            _ => random.usize(2..=3),
        };
        let faults = (0..faults).map(|_| fault(random, &shape)).collect();
        let mischief = [0, 30, 100, 250][random.usize(..4)];
        Self { seed, mischief, shape, jobs, faults }
    }
}

fn millis(random: &mut fastrand::Rng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.u64(range))
}

fn shape(random: &mut fastrand::Rng) -> Shape {
    let queues = random.usize(1..=3);
    let slots = queues + random.usize(..3);
    Shape {
        workers: if random.u32(..3) == 0 { 2 } else { 1 },
        slots,
        lanes: random.usize(1..=2),
        queues,
        ordered: random.bool(),
        queue_slots: random.usize(1..=slots),
        bytes: if random.u32(..4) == 0 { 200 } else { 1 << 20 },
        lease: millis(random, 400..900),
        grace: millis(random, 20..500),
        attempts: random.u32(1..=4),
        first: millis(random, 0..100),
        timeout: millis(random, 50..300),
        max_crashes: random.u32(2..=3),
        unconfirmed: if random.u32(..3) == 0 { random.usize(1..=3) } else { 256 },
        marks_all: random.bool(),
        over_credit: random.bool(),
    }
}

fn job(random: &mut fastrand::Rng, shape: &Shape, number: u64) -> Job {
    let times = random.u32(1..=3);
    let ms = if random.bool() { 0 } else { random.u64(1..40) };
    let to = match random.u32(..6) {
        0 => To::Queue(random.usize(..shape.queues), if random.bool() { 0 } else { random.u64(..200) }),
        1..=3 if shape.queues > 2 => To::U,
        _ => To::T,
    };
    let act = match random.u32(..30) {
        0..=2 => Act::Fails(times, ms),
        3 => Act::Fails(9, ms),
        4 => Act::Refuses,
        5 | 6 => Act::Panics(times),
        7 => Act::Hangs(1, false),
        8 => Act::Hangs(1, true),
        9 => Act::Snoozes(times),
        10 => Act::Finishes,
        11 => Act::Crashes(1),
        12 => Act::Crashes(9),
        13 => Act::Malformed,
        14 => Act::Expired,
        15 if matches!(to, To::Queue(..)) => Act::Unroutable,
        16 => Act::DiesHard(1),
        _ => Act::Succeeds(ms),
    };
    let size = if shape.bytes > 200 { 0 } else { [0, 60, 150, 400][random.usize(..4)] };
    let key = random.bool().then(|| random.u8(..2));
    let at = if random.bool() { 0 } else { random.u64(..250) };
    Job { number, at, to, key, act, size }
}

fn fault(random: &mut fastrand::Rng, shape: &Shape) -> Fault {
    let at = random.u64(1..300);
    let worker = random.usize(..shape.workers);
    let queue = random.usize(..shape.queues);
    let lease = shape.lease.as_millis() as u64;
    match random.u32(..14) {
        0 => Fault::Kill(at, worker),
        1..=3 => Fault::KillAtCall(random.u32(1..40), worker),
        4 | 5 => Fault::Leave(at, worker),
        6 => Fault::Freeze(at, worker, random.u64(20..2 * lease)),
        7 | 8 => Fault::Cut(at, worker, random.u64(20..2 * lease)),
        9 => Fault::Broker(at, random.u64(10..600)),
        10 => Fault::DeadRefused(at, random.u64(50..900)),
        11 => Fault::Rebalance(at, worker, queue),
        12 => Fault::Pause(at, worker, queue, random.u64(20..400)),
        _ => Fault::Slots(at, worker, queue, random.usize(1..=shape.slots)),
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, mischief, shape, jobs, faults } = self;
        writeln!(f, "seed {seed}, {mischief} of 1000 calls misbehave, {shape:?}")?;
        for job in jobs {
            let Job { number, at, to, key, act, size } = job;
            writeln!(f, "  {at:>5} ms  job {number} to {to:?}, key {key:?}, {act:?}, at least {size} bytes")?;
        }
        faults.iter().try_for_each(|fault| writeln!(f, "  {fault:?}"))
    }
}
