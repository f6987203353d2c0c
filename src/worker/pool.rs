//! The pool: the slots of this process, and what each queue has in hand.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::admission::{Admission, floors};
use super::route::Routes;
use super::running::Registry;
use super::settle::Pile;
use crate::broker::{self, Credit, Delivery, Lane, Settler, Source, Trouble};
use crate::message::QueueName;
use crate::shutdown::Shutdown;
use crate::telemetry::meter::{QueueMeter, Why};
use crate::time::{Clock, Timestamp};

/// What all queues of one process share.
pub struct Pool {
    admission: Mutex<Admission>,
    /// A slot or bytes became free.
    freed: Notify,
    waiting: AtomicUsize,
    /// Held by the one suspect that runs.
    pub isolation: Semaphore,
    suspects: AtomicUsize,
    /// Executions and settlements under way.
    pub tasks: TaskTracker,
    /// The stages of leaving.
    pub shutdown: Shutdown,
    /// The wall clock.
    pub clock: Clock,
    /// What was not started so long after it was received is given back: a process that was frozen past its lease
    /// must not start what others own by now.
    pub lease: Duration,
}

impl Pool {
    /// A pool with these slots.
    pub fn new(admission: Admission, shutdown: Shutdown, clock: Clock, lease: Duration) -> Arc<Self> {
        Arc::new(Self {
            admission: Mutex::new(admission),
            freed: Notify::new(),
            waiting: AtomicUsize::new(0),
            isolation: Semaphore::new(1),
            suspects: AtomicUsize::new(0),
            tasks: TaskTracker::new(),
            shutdown,
            clock,
            lease,
        })
    }

    /// Looks at or changes who has which slots.
    pub fn admission<R>(&self, look: impl FnOnce(&mut Admission) -> R) -> R {
        look(&mut self.admission.lock())
    }

    /// Slots came back: wakes whoever waits for one.
    pub fn give(&self, queue: usize, slots: usize) {
        if slots > 0 {
            self.admission.lock().give(queue, slots);
            self.wake();
        }
    }

    /// Bytes were confirmed.
    pub fn remove_bytes(&self, bytes: usize) {
        self.admission.lock().remove_bytes(bytes);
        self.wake();
    }

    /// Whether a suspect is in hand of this process.
    pub fn has_suspects(&self) -> bool {
        self.suspects.load(Ordering::Acquire) > 0
    }

    /// Something changed that intake may wait for.
    pub fn wake(&self) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.freed.notify_waiters();
        }
    }

    /// Waits for the next [`Pool::wake`] unless `ready` already holds. Spurious wakes are possible.
    pub async fn changed(&self, ready: impl Fn() -> bool) {
        let freed = self.freed.notified();
        tokio::pin!(freed);
        freed.as_mut().enable();
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let waiting = Waiting(&self.waiting);
        if !ready() {
            freed.await;
        }
        drop(waiting);
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One queue of this process.
pub struct Queue {
    /// Its place in the admission.
    pub index: usize,
    /// As the broker knows it.
    pub spec: broker::Queue,
    /// What it can run.
    pub routes: Routes,
    /// So long a job that nobody registered here is put back.
    pub unroutable_after: Duration,
    /// Carries dispositions out.
    pub settler: Arc<dyn Settler>,
    /// Where deliveries come from; whoever holds the lock does the receiving.
    pub source: tokio::sync::Mutex<Box<dyn Source>>,
    /// Its figures.
    pub meter: Arc<QueueMeter>,
    /// What runs long enough to be asked about.
    pub running: Registry,
    /// Acknowledgements that wait for each other.
    pub pile: Pile,
    /// Shared by all queues.
    pub pool: Arc<Pool>,
    hand: Mutex<Hand>,
    unconfirmed: AtomicUsize,
    bytes: AtomicUsize,
    /// It received, or waited in vain, since it was opened or last failed.
    pub consuming: AtomicBool,
    /// One of its lanes has said that intake stopped for lack of room, and will say that it goes on.
    pub full: AtomicBool,
    last_success: AtomicI64,
    pause: Mutex<Option<Pause>>,
    /// Jobs done, attempts to be made again, dead letters.
    pub counts: Counts,
}

/// What a queue did since the start.
#[derive(Default)]
pub struct Counts {
    /// Acknowledged.
    pub done: AtomicU64,
    /// To be run again.
    pub retried: AtomicU64,
    /// Dead letters.
    pub dead: AtomicU64,
}

/// Deliveries received and not yet started. Some may have no slot yet: an adapter may give one more than the credit
/// for each consumer it reads.
#[derive(Default)]
struct Hand {
    ready: VecDeque<Delivery>,
    /// When the first of what is in `ready` was received, or before: that becomes another time when all of it is gone.
    received: Option<Instant>,
    /// Slots held for what is in `ready`.
    slots: usize,
    fresh: usize,
    retry: usize,
    retry_turn: bool,
}

/// What [`Queue::take_ready`] found.
pub enum Taken {
    /// Deliveries, each with its slot.
    Some(Vec<Delivery>),
    /// Nothing is in hand.
    Nothing,
    /// What is in hand waits for a slot, or to be alone.
    Blocked,
}

#[derive(Clone, Copy)]
struct Pause {
    until: Option<Instant>,
}

impl Queue {
    /// A queue that was opened.
    pub fn new(
        index: usize,
        spec: broker::Queue,
        routes: Routes,
        unroutable_after: Duration,
        opened: (Box<dyn Source>, Arc<dyn Settler>),
        meter: Arc<QueueMeter>,
        pool: Arc<Pool>,
    ) -> Arc<Self> {
        meter.set_slots(spec.slots.get());
        Arc::new(Self {
            index,
            spec,
            routes,
            unroutable_after,
            source: tokio::sync::Mutex::new(opened.0),
            settler: opened.1,
            meter,
            running: Registry::default(),
            pile: Pile::default(),
            pool,
            hand: Mutex::default(),
            unconfirmed: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            consuming: AtomicBool::new(false),
            full: AtomicBool::new(false),
            last_success: AtomicI64::new(0),
            pause: Mutex::new(None),
            counts: Counts::default(),
        })
    }

    /// The queue's name.
    pub fn name(&self) -> &QueueName {
        &self.spec.name
    }

    /// Takes up to `most` deliveries that have a slot, in the order received.
    pub fn take_ready(&self, most: usize) -> Taken {
        let mut hand = self.hand.lock();
        if hand.ready.is_empty() {
            return Taken::Nothing;
        }
        if hand.received.is_some_and(|received| received.elapsed() >= self.pool.lease) {
            drop(hand);
            self.release_ready();
            return Taken::Nothing;
        }
        if hand.slots < hand.ready.len() {
            let want = hand.ready.len() - hand.slots;
            hand.slots += self.pool.admission(|admission| admission.take(self.index, want));
        }
        let count = most.min(hand.slots).min(hand.ready.len());
        let count = self.pool.admission(|admission| {
            let mut bytes = 0;
            let mut count = count;
            for (place, next) in hand.ready.iter().take(count).enumerate() {
                let size = next.message.size();
                if size > admission.bytes_limit() {
                    // Larger than all that may be in flight: it runs alone, when nothing else is in flight.
                    count = if place == 0 && admission.is_alone() { 1 } else { place };
                    bytes += if count > place { size } else { 0 };
                    break;
                }
                bytes += size;
            }
            admission.start(bytes);
            count
        });
        if count == 0 {
            return Taken::Blocked;
        }
        hand.slots -= count;
        Taken::Some(hand.ready.drain(..count).collect())
    }

    /// Whether something in hand waits to be started.
    pub fn has_ready(&self) -> bool {
        !self.hand.lock().ready.is_empty()
    }

    /// Gives back whatever was not started: dropping a delivery releases it.
    pub fn release_ready(&self) {
        let (ready, slots) = {
            let mut hand = self.hand.lock();
            (std::mem::take(&mut hand.ready), std::mem::take(&mut hand.slots))
        };
        for delivery in ready {
            self.pool.admission(|admission| admission.start(delivery.message.size()));
            self.let_go(&delivery);
        }
        self.pool.give(self.index, slots);
    }

    /// Whether a start so long after the last look may be one in a process that was frozen meanwhile. Leases are
    /// renewed each third of one, so what is left of it is more than this.
    pub fn is_stale(&self, since: Duration) -> bool {
        since >= self.pool.lease / 2
    }

    /// Gives back a delivery that has its slot and was not started.
    pub fn give_back(&self, delivery: Delivery) {
        self.let_go(&delivery);
        self.pool.give(self.index, 1);
    }

    /// How much may be asked for now; takes the slots for it. An error, with the reason: nothing.
    pub fn credit(&self) -> Result<Credit, Why> {
        let room = self.settler.unconfirmed_limit().saturating_sub(self.unconfirmed.load(Ordering::Acquire));
        let other = self.paused().or_else(|| (room == 0).then_some(Why::Full));
        if let Some(why) = other {
            self.pool.admission(|admission| admission.not_hungry(self.index));
            return Err(why);
        }
        let mut hand = self.hand.lock();
        if hand.slots < hand.ready.len() {
            return Err(Why::Full);
        }
        let (jobs, bytes, limit) = self.pool.admission(|admission| {
            let bytes = admission.bytes_left();
            let jobs = if bytes > 0 {
                admission.take(self.index, room)
            } else {
                admission.not_hungry(self.index);
                0
            };
            (jobs, bytes, admission.limit(self.index))
        });
        if bytes == 0 {
            return Err(Why::Bytes);
        }
        if jobs == 0 {
            return Err(Why::Full);
        }
        hand.retry_turn = !hand.retry_turn;
        let (fresh_floor, retry_floor) = floors(limit, hand.fresh, hand.retry, jobs, hand.retry_turn);
        let suspect = !self.pool.has_suspects();
        Ok(Credit { jobs, fresh_floor, retry_floor, bytes, suspect })
    }

    /// What came of a credit of `jobs`.
    pub fn received(&self, jobs: usize, deliveries: Vec<Delivery>) {
        let count = deliveries.len();
        // Before another lane can take them: what is started must have been received.
        let bytes = deliveries.iter().map(|delivery| delivery.message.size()).sum();
        self.pool.admission(|admission| admission.add_bytes(bytes));
        self.meter.set_bytes_in_flight(self.bytes.fetch_add(bytes, Ordering::AcqRel) + bytes);
        let now = Instant::now();
        {
            let mut hand = self.hand.lock();
            for delivery in &deliveries {
                match delivery.lane() {
                    Lane::Fresh => hand.fresh += 1,
                    Lane::Retry => hand.retry += 1,
                }
                if delivery.suspect {
                    self.pool.suspects.fetch_add(1, Ordering::AcqRel);
                }
            }
            if hand.ready.is_empty() {
                hand.received = Some(now);
            }
            hand.ready.extend(deliveries);
            hand.slots += count.min(jobs);
        }
        self.pool.admission(|admission| {
            if count < jobs {
                admission.give(self.index, jobs - count);
                admission.sated(self.index);
            } else {
                admission.filled(self.index);
            }
        });
        if count < jobs {
            self.pool.wake();
        }
    }

    /// A handler has ended, or what was in hand was given back: its lane has one less.
    pub fn lane_done(&self, lane: Lane) {
        let mut hand = self.hand.lock();
        match lane {
            Lane::Fresh => hand.fresh -= 1,
            Lane::Retry => hand.retry -= 1,
        }
    }

    /// Handlers have ended: so many of each lane, with one look at the lock.
    pub fn lanes_done(&self, fresh: usize, retry: usize) {
        let mut hand = self.hand.lock();
        hand.fresh -= fresh;
        hand.retry -= retry;
    }

    fn let_go(&self, delivery: &Delivery) {
        self.lane_done(delivery.lane());
        if delivery.suspect {
            self.suspect_done();
        }
        self.remove_bytes(delivery.message.size());
    }

    fn remove_bytes(&self, bytes: usize) {
        self.meter.set_bytes_in_flight(self.bytes.fetch_sub(bytes, Ordering::AcqRel) - bytes);
        self.pool.remove_bytes(bytes);
    }

    /// Of payload in hand: received, and not yet settled.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Acquire)
    }

    /// A suspect's run has ended, one way or the other.
    pub fn suspect_done(&self) {
        self.pool.suspects.fetch_sub(1, Ordering::AcqRel);
        self.pool.wake();
    }

    /// So many are finished and on their way to the broker.
    pub fn settling(&self, count: usize) {
        let now = self.unconfirmed.fetch_add(count, Ordering::AcqRel) + count;
        self.meter.set_unconfirmed(now);
    }

    /// So many are confirmed, or cannot be any more.
    pub fn settled(&self, count: usize, bytes: usize) {
        let left = self.unconfirmed.fetch_sub(count, Ordering::AcqRel) - count;
        self.meter.set_unconfirmed(left);
        self.remove_bytes(bytes);
    }

    /// Finished and not confirmed.
    pub fn unconfirmed(&self) -> usize {
        self.unconfirmed.load(Ordering::Acquire)
    }

    /// A job succeeded.
    pub fn succeeded(&self, at: Timestamp) {
        self.last_success.store(at.as_millis(), Ordering::Relaxed);
    }

    /// When a job last succeeded.
    pub fn last_success(&self) -> Option<Timestamp> {
        let at = self.last_success.load(Ordering::Relaxed);
        (at > 0).then(|| Timestamp::from_millis(at))
    }

    /// Why nothing may be asked for now, slots aside.
    pub fn paused(&self) -> Option<Why> {
        if self.operator_pause() {
            return Some(Why::Operator);
        }
        match self.settler.trouble()? {
            Trouble::DeadLetter(_) => Some(Why::DeadLetter),
            Trouble::Broker(_) => Some(Why::Broker),
            Trouble::Rebalance => Some(Why::Rebalance),
            // Nothing comes, and what comes next must not wait until we ask again.
            Trouble::Order => None,
        }
    }

    fn operator_pause(&self) -> bool {
        let mut pause = self.pause.lock();
        match *pause {
            None => false,
            Some(Pause { until: Some(until) }) if until <= Instant::now() => {
                *pause = None;
                false
            }
            Some(_) => true,
        }
    }

    /// An operator stops intake, for a while or until further notice.
    pub fn pause(&self, lasting: Option<Duration>) {
        *self.pause.lock() = Some(Pause { until: lasting.map(|lasting| Instant::now() + lasting) });
        self.pool.wake();
    }

    /// An operator lets it go on.
    pub fn resume(&self) {
        *self.pause.lock() = None;
        self.pool.wake();
    }
}
