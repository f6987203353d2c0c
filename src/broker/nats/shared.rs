//! What the engine's side and the I/O side of an open queue share: what may be handed over, and who waits for what.
//!
//! The engine's futures only lock for an instant, or wait for a notification; all I/O is the pump's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::link::Link;
use crate::broker::{
    Credit, Delivery, Disposition, Error, Lane, Leases, Lost, Settled, Settlement, Settler, Source, Token, Trouble,
};

/// Nothing is handed over where the pump has not looked at its leases for so long: the process was frozen, and what
/// waits may be somebody else's by now.
const STALE: Duration = Duration::from_millis(500);

/// What the engine asks of the pump.
pub enum Command {
    /// Acknowledge these, and say how each ended.
    Acknowledge(Vec<Token>, oneshot::Sender<Vec<Settled>>),
    /// Carry these out, and say how each ended.
    Settle(Vec<(Delivery, Disposition)>, oneshot::Sender<Vec<Settled>>),
    /// Give it back.
    Release(Token),
    /// Store that these are about to start.
    Mark(Vec<Token>, oneshot::Sender<Vec<bool>>),
    /// End intake; answered when what was held is given back.
    Stop(oneshot::Sender<()>),
}

/// The engine's credit and what waits to be handed over.
#[derive(Default)]
struct Inbound {
    fresh: VecDeque<Delivery>,
    retry: VecDeque<Delivery>,
    bytes: usize,
    largest: usize,
    credit: Option<Credit>,
    stopped: bool,
}

#[derive(Default)]
struct Watch {
    tokens: HashMap<Token, Lost>,
    lost: HashSet<Token>,
    /// In hand when the server was found to be another one: what has not begun by then must not begin.
    barred: HashSet<Token>,
}

/// Shared by source, settler, deliveries and pump.
pub struct Shared {
    inbound: Mutex<Inbound>,
    ready: Notify,
    /// The pump waits for this: the credit has changed.
    pub demand: Notify,
    commands: mpsc::UnboundedSender<Command>,
    watch: Mutex<Watch>,
    watched: AtomicBool,
    dead_letter: Mutex<Option<String>>,
    dead_letters: AtomicUsize,
    broker: Mutex<Option<String>>,
    fatal: Mutex<Option<String>>,
    limit: AtomicUsize,
    checked: Mutex<Instant>,
    link: Arc<Link>,
    /// The connection that the pump knows of.
    epoch: AtomicU64,
}

/// How much the pump may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Deliveries, over both lanes.
    pub jobs: usize,
    /// See [`Credit`].
    pub fresh_floor: usize,
    /// See [`Credit`].
    pub retry_floor: usize,
}

impl Shared {
    /// With nothing in it.
    pub fn new(limit: usize, link: Arc<Link>) -> (Arc<Self>, mpsc::UnboundedReceiver<Command>) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let shared = Self {
            inbound: Mutex::default(),
            ready: Notify::new(),
            demand: Notify::new(),
            commands,
            watch: Mutex::default(),
            watched: AtomicBool::new(false),
            dead_letter: Mutex::default(),
            dead_letters: AtomicUsize::new(0),
            broker: Mutex::default(),
            fatal: Mutex::default(),
            limit: AtomicUsize::new(limit),
            checked: Mutex::new(Instant::now()),
            link,
            epoch: AtomicU64::new(0),
        };
        (Arc::new(shared), receiver)
    }

    /// Deliveries that came, for the engine; what comes after the stop is given back by being dropped.
    pub fn push(&self, deliveries: impl Iterator<Item = Delivery>) {
        let mut late = Vec::new();
        {
            let mut inbound = self.inbound.lock();
            for delivery in deliveries {
                if inbound.stopped {
                    late.push(delivery);
                    continue;
                }
                let size = delivery.message.size();
                inbound.bytes += size;
                inbound.largest = inbound.largest.max(size);
                match delivery.lane() {
                    Lane::Fresh => inbound.fresh.push_back(delivery),
                    Lane::Retry => inbound.retry.push_back(delivery),
                }
            }
        }
        self.ready.notify_one();
        drop(late);
    }

    /// What waits to be handed over and is not `kept`, taken back; its tokens. It is not given back to the server.
    pub fn take_back(&self, kept: impl Fn(Token) -> bool) -> Vec<Token> {
        let mut inbound = self.inbound.lock();
        let inbound = &mut *inbound;
        let mut taken = Vec::new();
        for queue in [&mut inbound.fresh, &mut inbound.retry] {
            let (keep, back): (VecDeque<_>, VecDeque<_>) = queue.drain(..).partition(|next| kept(next.token));
            *queue = keep;
            taken.extend(back);
        }
        inbound.bytes -= taken.iter().map(|delivery| delivery.message.size()).sum::<usize>();
        taken.into_iter().map(|delivery| delivery.settle(Disposition::Release).take().0.token).collect()
    }

    /// The pump has looked at all leases just now.
    pub fn checked(&self) {
        if std::mem::replace(&mut *self.checked.lock(), Instant::now()).elapsed() >= STALE {
            self.ready.notify_one();
        }
    }

    /// How much may be asked for, where `preparing` deliveries are being looked up. Bytes count by the largest that
    /// came so far.
    pub fn demand(&self, preparing: usize) -> Demand {
        let inbound = self.inbound.lock();
        let Some(credit) = inbound.credit.filter(|_| !inbound.stopped) else {
            return Demand { jobs: 0, fresh_floor: 0, retry_floor: 0 };
        };
        let waiting = inbound.fresh.len() + inbound.retry.len() + preparing;
        let free = credit.bytes.saturating_sub(inbound.bytes);
        let fit = (free / inbound.largest.max(1)).max(usize::from(waiting == 0));
        Demand {
            jobs: credit.jobs.saturating_sub(waiting).min(fit),
            fresh_floor: credit.fresh_floor.saturating_sub(inbound.fresh.len()),
            retry_floor: credit.retry_floor.saturating_sub(inbound.retry.len()),
        }
    }

    /// Bytes that may still be handed over.
    pub fn free_bytes(&self) -> usize {
        let inbound = self.inbound.lock();
        inbound.credit.map_or(usize::MAX, |credit| credit.bytes.saturating_sub(inbound.bytes))
    }

    /// There is a connection, and the pump knows whose it is. Without one nothing begins: the server may have been
    /// killed, and give what waits here to somebody else.
    fn is_known(&self) -> bool {
        self.link.connected() && self.link.epoch() == self.epoch.load(Ordering::Acquire)
    }

    /// The pump knows of this connection, and has taken back what must not begin on it.
    pub fn connected(&self, epoch: u64) {
        self.epoch.store(epoch, Ordering::Release);
        self.ready.notify_one();
    }

    /// Those of these that have not begun must not begin.
    pub fn bar(&self, tokens: impl Iterator<Item = Token>) {
        self.watched.store(true, Ordering::Release);
        self.watch.lock().barred.extend(tokens);
    }

    /// This lease was lost.
    pub fn lose(&self, token: Token) {
        self.watched.store(true, Ordering::Release);
        let mut watch = self.watch.lock();
        watch.lost.insert(token);
        if let Some(lost) = watch.tokens.remove(&token) {
            lost.cancel();
        }
    }

    /// This delivery is out of hand: nobody asks for its lease again.
    pub fn forget(&self, token: Token) {
        if self.watched.load(Ordering::Acquire) {
            let mut watch = self.watch.lock();
            watch.lost.remove(&token);
            watch.tokens.remove(&token);
            watch.barred.remove(&token);
        }
    }

    /// Something that only a person can mend: the source ends with it.
    pub fn fail(&self, why: String) {
        let mut fatal = self.fatal.lock();
        if fatal.is_none() {
            tracing::error!(error = %why, "a queue can no longer be read");
            *fatal = Some(why);
        }
        drop(fatal);
        self.ready.notify_one();
    }

    /// What the broker keeps us from, if anything.
    pub fn set_broker_trouble(&self, why: Option<String>) {
        let mut broker = self.broker.lock();
        if *broker != why {
            *broker = why;
        }
    }

    /// A dead letter cannot be stored, until the guard is dropped.
    pub fn dead_letter_trouble(self: &Arc<Self>, why: String) -> DeadLetterTrouble {
        if self.dead_letters.fetch_add(1, Ordering::AcqRel) == 0 {
            tracing::error!(error = %why, "a dead letter cannot be stored; its queue waits");
        }
        *self.dead_letter.lock() = Some(why);
        DeadLetterTrouble(self.clone())
    }

    /// How many may be finished and unconfirmed at once.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Ordering::Release);
    }

    fn send(&self, command: Command) {
        // The pump is gone: what it held comes back by its lease, and whoever waits sees the closed channel.
        let _ = self.commands.send(command);
    }
}

/// Lives while a dead letter cannot be stored.
pub struct DeadLetterTrouble(Arc<Shared>);

impl Drop for DeadLetterTrouble {
    fn drop(&mut self) {
        if self.0.dead_letters.fetch_sub(1, Ordering::AcqRel) == 1 {
            *self.0.dead_letter.lock() = None;
        }
    }
}

impl Leases for Shared {
    fn release(&self, token: Token) {
        self.send(Command::Release(token));
    }

    fn may_begin(&self, token: Token) -> bool {
        if !self.is_known() {
            return false;
        }
        if !self.watched.load(Ordering::Acquire) {
            return true;
        }
        let watch = self.watch.lock();
        !watch.barred.contains(&token) && !watch.lost.contains(&token)
    }

    fn lost(&self, token: Token) -> Lost {
        self.watched.store(true, Ordering::Release);
        let mut watch = self.watch.lock();
        if watch.lost.contains(&token) {
            let lost = Lost::new();
            lost.cancel();
            return lost;
        }
        watch.tokens.entry(token).or_default().clone()
    }
}

/// The engine's end of the deliveries.
pub struct NatsSource(pub Arc<Shared>);

impl NatsSource {
    fn take(&self, credit: Credit) -> Result<Vec<Delivery>, Error> {
        if let Some(why) = self.0.fatal.lock().clone() {
            return Err(Error::Refused(why));
        }
        if !self.0.is_known() || self.0.checked.lock().elapsed() >= STALE {
            return Ok(Vec::new());
        }
        let mut inbound = self.0.inbound.lock();
        let inbound = &mut *inbound;
        let mut taken = Vec::new();
        let (mut bytes, mut suspect) = (0, credit.suspect);
        // Each lane has its floor; beyond them fresh ones go first, as they wait longest in a backlog.
        let retries = inbound.retry.len().min(credit.jobs.saturating_sub(credit.fresh_floor.min(inbound.fresh.len())));
        let retries = retries.min(credit.jobs.saturating_sub(inbound.fresh.len()).max(credit.retry_floor));
        let mut from = |queue: &mut VecDeque<Delivery>, most: usize, taken: &mut Vec<Delivery>, total: &mut usize| {
            for _ in 0..most {
                let Some(next) = queue.front() else { return };
                let size = next.message.size();
                if (next.suspect && !suspect) || (!taken.is_empty() && bytes + size > credit.bytes) {
                    return;
                }
                suspect &= !next.suspect;
                bytes += size;
                *total -= size;
                taken.extend(queue.pop_front());
            }
        };
        from(&mut inbound.retry, retries, &mut taken, &mut inbound.bytes);
        let left = credit.jobs - taken.len();
        from(&mut inbound.fresh, left, &mut taken, &mut inbound.bytes);
        let jobs = credit.jobs - taken.len();
        inbound.credit = Some(Credit {
            jobs,
            fresh_floor: credit.fresh_floor.min(jobs),
            retry_floor: credit.retry_floor.min(jobs),
            bytes: credit.bytes.saturating_sub(bytes),
            suspect,
        });
        Ok(taken)
    }
}

impl Source for NatsSource {
    fn receive(&mut self, credit: Credit) -> BoxFuture<'_, Result<Vec<Delivery>, Error>> {
        Box::pin(async move {
            loop {
                let ready = self.0.ready.notified();
                let taken = self.take(credit)?;
                self.0.demand.notify_one();
                if !taken.is_empty() {
                    return Ok(taken);
                }
                ready.await;
            }
        })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let held = {
                let mut inbound = self.0.inbound.lock();
                inbound.stopped = true;
                let mut held: Vec<Delivery> = inbound.fresh.drain(..).collect();
                held.extend(inbound.retry.drain(..));
                inbound.bytes = 0;
                held
            };
            drop(held);
            let (sender, stopped) = oneshot::channel();
            self.0.send(Command::Stop(sender));
            // A pump that is gone has stopped.
            let _ = stopped.await;
        })
    }
}

impl Settler for Shared {
    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'static, Vec<Settled>> {
        let count = batch.len();
        let (sender, settled) = oneshot::channel();
        // Of one that is acknowledged nothing but its name is needed any more.
        self.send(if batch.iter().all(|settlement| settlement.disposition == Disposition::Ack) {
            Command::Acknowledge(batch.into_iter().map(|settlement| settlement.take().0.token).collect(), sender)
        } else {
            Command::Settle(batch.into_iter().map(Settlement::take).collect(), sender)
        });
        Box::pin(async move {
            settled.await.unwrap_or_else(|_| vec![Settled::Unconfirmed("the connection was closed".to_owned()); count])
        })
    }

    fn mark<'a>(&'a self, starting: &'a [&'a Delivery]) -> BoxFuture<'a, Vec<bool>> {
        Box::pin(async move {
            let tokens: Vec<Token> = starting.iter().map(|delivery| delivery.token).collect();
            let (sender, marked) = oneshot::channel();
            let count = tokens.len();
            self.send(Command::Mark(tokens, sender));
            marked.await.unwrap_or_else(|_| vec![false; count])
        })
    }

    fn unconfirmed_limit(&self) -> usize {
        self.limit.load(Ordering::Acquire)
    }

    fn trouble(&self) -> Option<Trouble> {
        if let Some(why) = self.dead_letter.lock().clone() {
            return Some(Trouble::DeadLetter(why));
        }
        self.broker.lock().clone().map(Trouble::Broker)
    }
}
