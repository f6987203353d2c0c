//! What the simulated broker holds, and what is known of each worker: one state machine, without runtime or clock.
//!
//! It plays the broker and the adapter's side of it at once, for all workers, and looks at every call whether the
//! engine kept its word. Time is milliseconds from the beginning of the schedule.

mod fate;
mod hand;
mod run;
mod settle;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use windlass::broker::{Credit, Disposition, Lane, Settled};
use windlass::message::Message;
use windlass::message::record::Record;
use windlass::time::Timestamp;

use super::chance::Chance;
use super::law::{Broken, Law};
use super::schedule::{Act, Fault, Job, Schedule, Shape, To};
use super::site::QUEUES;
use crate::ledger::judge;
use crate::ledger::record::{self, What};

/// The wall time at the beginning of every schedule.
pub const BEGINNING: i64 = 1_700_000_000_000;
/// How long an adapter waits for an answer before it asks again.
const PATIENCE: std::ops::Range<u64> = 40..120;
/// What was acknowledged so shortly before a leader was lost may be forgotten.
const FORGETS: u64 = 100;

/// A message in a queue.
pub struct Entry {
    /// The job's number.
    pub number: u64,
    /// Its queue.
    pub queue: usize,
    /// As it was published.
    pub message: Message,
    /// Whether it came by a topic; else it was enqueued.
    pub by_topic: bool,
    /// What our record says.
    pub record: Option<Record>,
    /// When it was stored.
    pub at: u64,
    /// It came back unsettled before.
    pub redelivered: bool,
    crashes: u32,
    place: Place,
    generation: u64,
}

enum Place {
    /// Waits from then on.
    Ready(u64),
    Held(Box<Hold>),
    /// Acknowledged at that time.
    Done(u64),
    Dead,
}

/// A delivery in somebody's hand.
struct Hold {
    worker: usize,
    token: u64,
    taken: u64,
    lost: CancellationToken,
    needs_mark: bool,
    marked: bool,
    suspect: bool,
    condemned: bool,
    run: Option<Run>,
    /// Given to the settler.
    settling: bool,
}

#[derive(Clone, Copy)]
struct Run {
    ended: Option<What>,
}

/// A worker's process.
pub struct Worker {
    /// Its place at the site.
    pub place: usize,
    /// Killed.
    pub dead: bool,
    /// Told to leave, at that time.
    pub leaving: Option<u64>,
    /// It left.
    pub left: bool,
    /// Stopped until then.
    pub frozen: u64,
    /// Cut off until then.
    pub cut: u64,
    calls: u32,
    kill_at_call: Option<u32>,
    moving: Vec<Option<u64>>,
    /// Of each queue: something may have changed.
    pub wake: Vec<Arc<Notify>>,
}

struct Op {
    entry: usize,
    token: u64,
    worker: usize,
    disposition: Disposition,
    answer: Option<oneshot::Sender<Settled>>,
    applied: Option<Settled>,
}

/// Something that will happen by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// A message is published.
    Publish(usize),
    /// A fault begins.
    Fault(usize),
    /// A settlement reaches the broker.
    Apply(usize),
    /// The broker's answer reaches the worker.
    Answer(usize),
    /// A lease ends, unless it was extended.
    LeaseEnd(usize, u64),
    /// A rebalance waited long enough.
    Moved(usize, usize),
    /// A new worker takes this place.
    Start(usize),
    /// Nothing but a moment at which somebody should look.
    Look,
}

/// What the driver has to do.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// Start a worker at this place.
    Start(usize),
    /// Tell this worker to leave.
    Leave(usize),
    /// Pause a queue of this worker for so long.
    Pause(usize, usize, u64),
    /// Change the slots of a queue of this worker.
    Slots(usize, usize, usize),
}

/// See the module.
pub struct World {
    /// What is played.
    pub schedule: Schedule,
    /// All choices.
    pub chance: Chance,
    /// What handlers wrote.
    pub records: Vec<record::Record>,
    /// What befell whom, for the judge.
    pub faults: Vec<judge::Fault>,
    /// Dead letters.
    pub letters: Vec<judge::Letter>,
    /// What was wrong on the way.
    pub broken: Vec<Broken>,
    /// Every step, for people; empty unless asked for.
    pub story: Option<Vec<(u64, String)>>,
    /// Every process that there was.
    pub workers: Vec<Worker>,
    entries: Vec<Entry>,
    ops: Vec<Op>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    orders: Vec<Order>,
    /// Who is told of what will happen before that moment.
    pub watch: Option<(u64, Arc<Notify>)>,
    steps: u64,
    down: u64,
    refusing: u64,
    /// Whether the workers open `k` in key order.
    pub ordered: bool,
    /// How often a worker asked for deliveries.
    pub asked: u32,
    /// When everything had ended.
    pub over: u64,
    /// A number that tells two runs of a schedule apart if they differ.
    pub print: u64,
}

/// What came of asking for deliveries.
pub enum Take {
    /// These.
    Some(Vec<Given>),
    /// An error that may pass.
    Error,
    /// None, though there is no error.
    Empty,
    /// None; ask again when woken, or then.
    Nothing(Option<u64>),
    /// The process is dead.
    Dead,
}

/// A delivery as the adapter makes it.
pub struct Given {
    /// Its place among the entries.
    pub entry: usize,
    /// Its token.
    pub token: u64,
    /// The lane.
    pub lane: Lane,
    /// The rest, as [`windlass::broker::Delivery`] has it.
    pub message: Message,
    /// What our record says.
    pub record: Option<Record>,
    /// When it was stored.
    pub at: Timestamp,
    /// See there.
    pub by_topic: bool,
    /// See there.
    pub redelivered: bool,
    /// See there.
    pub suspect: bool,
    /// See there.
    pub condemned: bool,
    /// See there.
    pub needs_mark: bool,
}

/// The wall time of a moment.
pub fn wall(now: u64) -> Timestamp {
    Timestamp::from_millis(BEGINNING + now as i64)
}

impl World {
    /// A world in which nothing has happened yet.
    pub fn new(schedule: Schedule, chance: Chance, told: bool) -> Self {
        let mut world = Self {
            chance,
            records: Vec::new(),
            faults: Vec::new(),
            letters: Vec::new(),
            broken: Vec::new(),
            story: told.then(Vec::new),
            workers: Vec::new(),
            entries: Vec::new(),
            ops: Vec::new(),
            events: BinaryHeap::new(),
            orders: Vec::new(),
            watch: None,
            steps: 0,
            down: 0,
            refusing: 0,
            ordered: false,
            asked: 0,
            over: 0,
            print: 0xcbf2_9ce4_8422_2325,
            schedule,
        };
        for index in 0..world.schedule.jobs.len() {
            world.push(world.schedule.jobs[index].at, Event::Publish(index));
        }
        for index in 0..world.schedule.faults.len() {
            let at = match world.schedule.faults[index] {
                Fault::KillAtCall(..) => continue,
                Fault::Kill(at, _)
                | Fault::Leave(at, _)
                | Fault::Freeze(at, ..)
                | Fault::Cut(at, ..)
                | Fault::Broker(at, _)
                | Fault::DeadRefused(at, _)
                | Fault::Rebalance(at, ..)
                | Fault::Pause(at, ..)
                | Fault::Slots(at, ..) => at,
            };
            world.push(at, Event::Fault(index));
        }
        for place in 0..world.schedule.shape.workers {
            world.push(0, Event::Start(place));
        }
        world
    }

    /// The shape of the site.
    pub fn shape(&self) -> &Shape {
        &self.schedule.shape
    }

    /// Writes a step into the story and the print.
    pub fn tell(&mut self, now: u64, step: std::fmt::Arguments<'_>) {
        self.steps += 1;
        self.print = (self.print ^ now ^ (self.steps << 32)).wrapping_mul(0x0100_0000_01b3);
        if let Some(story) = &mut self.story {
            story.push((now, step.to_string()));
        }
    }

    fn wrong(&mut self, now: u64, law: Law, what: String) {
        self.tell(now, format_args!("!! {law:?}: {what}"));
        self.broken.push(Broken { law, what });
    }

    fn push(&mut self, at: u64, event: Event) {
        self.steps += 1;
        self.events.push(Reverse((at, self.steps, event)));
        self.stir(at);
    }

    /// Something happens at that moment that the driver did not know of.
    fn stir(&self, at: u64) {
        if let Some((until, stirred)) = &self.watch
            && at < *until
        {
            stirred.notify_one();
        }
    }

    /// When something happens next by itself.
    pub fn next_event(&self) -> Option<u64> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Lets happen what is due, and says what the driver has to do about it.
    pub fn happen(&mut self, now: u64) -> Vec<Order> {
        while self.next_event().is_some_and(|at| at <= now) {
            let Some(Reverse((_, _, event))) = self.events.pop() else { break };
            match event {
                Event::Publish(index) => self.publish(now, index),
                Event::Fault(index) => self.befall(now, self.schedule.faults[index]),
                Event::Apply(op) => self.apply(now, op),
                Event::Answer(op) => self.answer(now, op),
                Event::LeaseEnd(entry, token) => self.lease_end(now, entry, token),
                Event::Moved(worker, queue) => self.moved(now, worker, queue),
                Event::Start(place) => self.orders.push(Order::Start(place)),
                Event::Look => {}
            }
        }
        std::mem::take(&mut self.orders)
    }

    /// Whether every message has ended.
    pub fn is_over(&self) -> bool {
        let published = !self.events.iter().any(|Reverse((_, _, event))| matches!(event, Event::Publish(_)));
        published && self.entries.iter().all(|entry| matches!(entry.place, Place::Done(_) | Place::Dead))
    }

    /// Whether somebody has something in hand or on its way: time then passes in small steps.
    pub fn is_busy(&self) -> bool {
        self.entries.iter().any(|entry| match &entry.place {
            Place::Held(hold) => !self.workers[hold.worker].dead,
            Place::Ready(_) => true,
            _ => false,
        })
    }

    /// How many of each queue have not ended.
    pub fn left(&self) -> Vec<u64> {
        let mut left = vec![0; self.shape().queues];
        let open = self.entries.iter().filter(|entry| !matches!(entry.place, Place::Done(_) | Place::Dead));
        open.for_each(|entry| left[entry.queue] += 1);
        left
    }

    fn publish(&mut self, now: u64, index: usize) {
        let job = self.schedule.jobs[index].clone();
        self.tell(now, format_args!("job {} is published to {:?}", job.number, job.to));
        for queue in job.queues(self.shape()) {
            self.store(now, &job, queue);
        }
    }

    fn store(&mut self, now: u64, job: &Job, queue: usize) {
        let record = match job.to {
            To::Queue(_, delay) => Some(Record {
                job: (job.act == Act::Unroutable).then(|| "nobody".parse().expect("a name")),
                not_before: (delay > 0).then(|| wall(now + delay)),
                ..Record::default()
            }),
            To::T | To::U => None,
        };
        let expired = (job.act == Act::Expired).then(|| ("ce-expirytime", wall(0).to_rfc3339()));
        let headers = expired.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let key = job.key.map(|key| bytes::Bytes::from(vec![b'k', key]));
        let message = Message { headers, body: Some(job.body().into()), key };
        self.add(now, job.number, queue, message, record, matches!(job.to, To::T | To::U));
    }

    /// Stores a message on a queue.
    pub fn add(
        &mut self,
        now: u64,
        number: u64,
        queue: usize,
        message: Message,
        record: Option<Record>,
        by_topic: bool,
    ) {
        let since = due(&record).map_or(now, |due| due.max(now));
        self.entries.push(Entry {
            number,
            queue,
            message,
            by_topic,
            record,
            at: now,
            redelivered: false,
            crashes: 0,
            place: Place::Ready(since),
            generation: 0,
        });
        self.wake(queue, since);
    }

    fn wake(&mut self, queue: usize, at: u64) {
        self.push(at, Event::Look);
        for worker in self.workers.iter().filter(|worker| !worker.dead) {
            worker.wake[queue].notify_one();
        }
    }

    fn wake_all(&self) {
        for worker in self.workers.iter().filter(|worker| !worker.dead) {
            worker.wake.iter().for_each(|wake| wake.notify_one());
        }
    }
}

impl Entry {
    fn lane(&self) -> Lane {
        if self.record.is_some() { Lane::Retry } else { Lane::Fresh }
    }

    fn attempt(&self) -> u32 {
        self.record.as_ref().map_or(1, |record| record.attempt.get())
    }
}

fn due(record: &Option<Record>) -> Option<u64> {
    let due = record.as_ref()?.not_before?;
    Some((due.as_millis() - BEGINNING).max(0) as u64)
}

/// A moment on the records' clock.
pub fn ns(now: u64) -> u64 {
    now * 1_000_000
}

fn brief(disposition: &Disposition) -> String {
    match disposition {
        Disposition::Ack => "done".to_owned(),
        Disposition::Release => "give back".to_owned(),
        Disposition::Retry { at, attempt, .. } => {
            format!("attempt {attempt} at {} ms", at.as_millis() - BEGINNING)
        }
        Disposition::DeadLetter { reason, attempts, .. } => {
            format!("dead letter, {}, after {attempts} attempts", reason.as_str())
        }
    }
}
