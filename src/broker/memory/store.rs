//! One queue in memory: what is ready, what waits, what is in hand.

use std::collections::hash_map::{self, HashMap};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::broker::{
    Channel, Credit, Delivery, Disposition, Lane, Leases, Letter, Lost, QueueStatus, Settled, Settlement, Token,
};
use crate::message::record::Record;
use crate::message::{Binding, JobName, Message, Origin, Place, QueueName, Topic};
use crate::time::{Clock, Timestamp};

/// One queue.
pub(super) struct Store {
    name: QueueName,
    ordered: bool,
    clock: Clock,
    wake: Notify,
    this: Weak<Store>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    topics: Vec<Topic>,
    channels: HashMap<(Option<Arc<str>>, bool), Arc<Channel>>,
    fresh: VecDeque<Entry>,
    retry: VecDeque<Entry>,
    delayed: BTreeMap<(Timestamp, u64), Entry>,
    held: Vec<Held>,
    free: Vec<usize>,
    keys: HashMap<Key, VecDeque<Entry>>,
    letters: BTreeMap<u64, Letter>,
    replaying: bool,
    next: u64,
    generation: u64,
    slots: usize,
}

struct Entry {
    message: Message,
    channel: Arc<Channel>,
    seq: u64,
    at: Timestamp,
    record: Option<Box<Record>>,
    /// It was handed out and given back.
    came_back: bool,
}

/// A place for a delivery in hand; the generation tells it from the one that had the place before.
struct Held {
    generation: u64,
    entry: Option<Entry>,
}

/// What is in order with what: events of one topic, or what was enqueued, with the same key.
type Key = (Option<Arc<str>>, Bytes);

impl Store {
    pub(super) fn new(name: QueueName, ordered: bool, clock: Clock) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            name,
            ordered,
            clock,
            wake: Notify::new(),
            this: this.clone(),
            state: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> &QueueName {
        &self.name
    }

    pub(super) fn hear(&self, topics: &[Topic]) {
        let mut state = self.state.lock();
        for topic in topics {
            if !state.topics.contains(topic) {
                state.topics.push(topic.clone());
            }
        }
    }

    pub(super) fn hears(&self, topic: &Topic) -> bool {
        self.state.lock().topics.contains(topic)
    }

    pub(super) fn topics(&self) -> Vec<String> {
        self.state.lock().topics.iter().map(ToString::to_string).collect()
    }

    pub(super) fn set_slots(&self, slots: usize) {
        self.state.lock().slots = slots;
    }

    pub(super) fn slots(&self) -> usize {
        self.state.lock().slots
    }

    pub(super) fn publish(&self, topic: &Topic, message: Message) {
        let mut state = self.state.lock();
        let channel = self.channel(&mut state, Some(topic.shared()), Lane::Fresh);
        let entry =
            Entry { message, channel, seq: state.sequence(), at: self.clock.now(), record: None, came_back: false };
        self.admit(&mut state, entry);
        drop(state);
        self.wake.notify_one();
    }

    pub(super) fn enqueue(&self, message: Message, job: Option<JobName>, not_before: Option<Timestamp>) {
        self.store(message, Record { job, not_before, ..Record::default() });
    }

    /// Stores a record of ours on this queue.
    pub(super) fn store(&self, message: Message, record: Record) {
        let mut state = self.state.lock();
        let channel = self.channel(&mut state, record.topic.clone(), Lane::Retry);
        let now = self.clock.now();
        let record = Some(Box::new(record));
        let entry = Entry { message, channel, seq: state.sequence(), at: now, record, came_back: false };
        self.admit(&mut state, entry);
        drop(state);
        self.wake.notify_one();
    }

    fn channel(&self, state: &mut State, topic: Option<Arc<str>>, lane: Lane) -> Arc<Channel> {
        let entry = state.channels.entry((topic.clone(), lane == Lane::Retry));
        let make = || {
            let label = topic.as_deref().unwrap_or(self.name.as_str());
            let place = Place {
                position: format!("memory:{label}"),
                source: format!("memory://{label}"),
                topic: topic.clone(),
                binding: Binding::Dash,
            };
            let leases = Arc::new(StoreLeases(self.this.clone()));
            Arc::new(Channel { lane, place: Arc::new(place), leases })
        };
        entry.or_insert_with(make).clone()
    }

    fn key(&self, entry: &Entry) -> Option<Key> {
        let key = if self.ordered { entry.message.key.clone() } else { None };
        key.map(|key| (entry.channel.place.topic.clone(), key))
    }

    /// Takes in something new: behind others of its key, where there are any.
    fn admit(&self, state: &mut State, entry: Entry) {
        if let Some(key) = self.key(&entry) {
            match state.keys.entry(key) {
                hash_map::Entry::Occupied(mut waiting) => return waiting.get_mut().push_back(entry),
                hash_map::Entry::Vacant(free) => free.insert(VecDeque::new()),
            };
        }
        self.queue(state, entry);
    }

    /// Puts what may be handed out where it is handed out from.
    fn queue(&self, state: &mut State, entry: Entry) {
        let due = entry.record.as_ref().and_then(|record| record.not_before);
        match due {
            Some(due) if due > self.clock.now() => {
                let tie = state.sequence();
                state.delayed.insert((due, tie), entry);
            }
            _ if entry.channel.lane == Lane::Retry => state.retry.push_back(entry),
            _ => state.fresh.push_back(entry),
        }
    }

    /// The key's next, once its first has ended.
    fn advance(&self, state: &mut State, key: Option<Key>) {
        let Some(key) = key else { return };
        let next = state.keys.get_mut(&key).and_then(VecDeque::pop_front);
        match next {
            Some(next) => self.queue(state, next),
            None => {
                state.keys.remove(&key);
            }
        }
    }

    fn promote_due(&self, state: &mut State) {
        if state.delayed.is_empty() {
            return;
        }
        let now = self.clock.now();
        while let Some(first) = state.delayed.first_entry() {
            if first.key().0 > now {
                break;
            }
            let entry = first.remove();
            if entry.channel.lane == Lane::Retry { state.retry.push_back(entry) } else { state.fresh.push_back(entry) }
        }
    }

    pub(super) fn take(&self, credit: Credit) -> Vec<Delivery> {
        let mut state = self.state.lock();
        self.promote_due(&mut state);
        let state = &mut *state;
        let retry_first = credit.retry_floor.min(state.retry.len());
        let fresh = (credit.jobs - retry_first).min(state.fresh.len());
        let retry = (credit.jobs - fresh).min(state.retry.len());
        let mut deliveries = Vec::with_capacity(fresh + retry);
        let mut bytes = 0;
        for lane in [(Lane::Retry, retry), (Lane::Fresh, fresh)] {
            for _ in 0..lane.1 {
                let from = if lane.0 == Lane::Retry { &mut state.retry } else { &mut state.fresh };
                let size = from.front().map_or(0, |entry| entry.message.size());
                if bytes > 0 && bytes + size > credit.bytes {
                    break;
                }
                let Some(entry) = from.pop_front() else { break };
                bytes += size;
                deliveries.push(state.hold(entry));
            }
        }
        deliveries
    }

    /// Resolves when there may be something to take.
    pub(super) async fn changed(&self) {
        let next = self.next_due();
        let due = async {
            match next {
                Some(due) => self.clock.until(due).await,
                None => std::future::pending().await,
            }
        };
        // Either means: look again.
        tokio::select! {
            () = self.wake.notified() => {}
            () = due => {}
        }
    }

    /// When the first of what waits for its time is due.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        self.state.lock().delayed.keys().next().map(|(due, _)| *due)
    }

    /// Whether nothing is handed out, and nothing could be now.
    pub(super) fn is_at_rest(&self) -> bool {
        let mut state = self.state.lock();
        self.promote_due(&mut state);
        state.fresh.is_empty() && state.retry.is_empty() && state.held.len() == state.free.len()
    }

    pub(super) fn settle(&self, batch: Vec<Settlement>) -> Vec<Settled> {
        let mut state = self.state.lock();
        let mut wake = false;
        let results = batch
            .into_iter()
            .map(|settlement| {
                let (delivery, disposition) = settlement.take();
                let Some(entry) = state.unhold(delivery.token) else { return Settled::Stale };
                wake |= self.apply(&mut state, entry, disposition);
                Settled::Stored
            })
            .collect();
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        results
    }

    /// Whether there may be something to take now.
    fn apply(&self, state: &mut State, mut entry: Entry, disposition: Disposition) -> bool {
        match disposition {
            Disposition::Ack => {
                let Some(key) = self.key(&entry) else { return false };
                self.advance(state, Some(key));
            }
            Disposition::Release => self.give_back(state, entry),
            Disposition::Retry { at, attempt, failure, unroutable_since } => {
                let mut record = entry.record().again(at, attempt, failure, unroutable_since);
                record.first_seen.get_or_insert(entry.at);
                entry.record = Some(Box::new(record));
                entry.came_back = false;
                entry.channel = self.channel(state, entry.channel.place.topic.clone(), Lane::Retry);
                self.queue(state, entry);
            }
            Disposition::DeadLetter { reason, failure, attempts, event_id, job } => {
                let key = self.key(&entry);
                let id = state.sequence();
                let record = entry.record();
                let letter = Letter {
                    id: format!("m{id}"),
                    queue: self.name.clone(),
                    message: entry.message,
                    binding: Binding::Dash,
                    record,
                    event_id,
                    job,
                    reason,
                    attempts,
                    failure,
                };
                state.letters.insert(id, letter);
                self.advance(state, key);
            }
        }
        true
    }

    /// Back to where it came from, first in line.
    fn give_back(&self, state: &mut State, entry: Entry) {
        let entry = Entry { came_back: true, ..entry };
        if entry.channel.lane == Lane::Retry { state.retry.push_front(entry) } else { state.fresh.push_front(entry) }
    }

    fn release(&self, token: Token) {
        let mut state = self.state.lock();
        let Some(entry) = state.unhold(token) else { return };
        self.give_back(&mut state, entry);
        drop(state);
        self.wake.notify_one();
    }

    /// Jobs that are not finished.
    pub(super) fn jobs(&self) -> u64 {
        let state = self.state.lock();
        let waiting: usize = state.keys.values().map(VecDeque::len).sum();
        let held = state.held.len() - state.free.len();
        (state.fresh.len() + state.retry.len() + state.delayed.len() + waiting + held) as u64
    }

    pub(super) fn status(&self) -> QueueStatus {
        let mut state = self.state.lock();
        self.promote_due(&mut state);
        let now = self.clock.now();
        let retried = |entry: &&Entry| entry.record.as_ref().is_some_and(|record| record.failure.is_some());
        let waiting: usize = state.keys.values().map(VecDeque::len).sum();
        let retrying = state.delayed.values().filter(retried).count();
        let retry_due = state.delayed.iter().find(|(_, entry)| retried(entry)).map(|((due, _), _)| *due);
        let oldest = [state.fresh.front(), state.retry.front()].into_iter().flatten().map(|entry| entry.at).min();
        let oldest_dead = state.letters.values().map(|letter| letter.failure.last).min();
        QueueStatus {
            name: self.name.to_string(),
            ready: Some((state.fresh.len() + state.retry.len() + waiting) as u64),
            running: Some((state.held.len() - state.free.len()) as u64),
            retrying: Some(retrying as u64),
            retry_due,
            scheduled: Some((state.delayed.len() - retrying) as u64),
            dead: Some(state.letters.len() as u64),
            oldest_age: Some(oldest.map_or(Duration::ZERO, |at| at.until(now))),
            dead_oldest_age: Some(oldest_dead.map_or(Duration::ZERO, |at| at.until(now))),
            workers: Some(u64::from(state.slots > 0)),
            slots: Some(state.slots as u64),
            notes: Vec::new(),
        }
    }

    pub(super) fn letters(&self) -> Vec<Letter> {
        self.state.lock().letters.values().cloned().collect()
    }

    pub(super) fn has_letter(&self, id: &str) -> bool {
        self.state.lock().letters.values().any(|letter| letter.id == id)
    }

    pub(super) fn remove_letter(&self, id: &str) -> bool {
        let mut state = self.state.lock();
        let Some(number) = state.letters.iter().find(|(_, letter)| letter.id == id).map(|(number, _)| *number) else {
            return false;
        };
        state.letters.remove(&number);
        true
    }

    pub(super) fn put_letter(&self, letter: Letter) {
        let mut state = self.state.lock();
        let existing = state.letters.iter().find(|(_, known)| known.id == letter.id).map(|(number, _)| *number);
        let number = existing.unwrap_or_else(|| state.sequence());
        state.letters.insert(number, letter);
    }

    /// Whether nobody replays from here; if so, the caller does now.
    pub(super) fn begin_replay(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().replaying, true)
    }

    pub(super) fn end_replay(&self) {
        self.state.lock().replaying = false;
    }
}

impl Entry {
    /// Its record; a new one where it is fresh from its topic.
    fn record(&mut self) -> Record {
        match self.record.take() {
            Some(record) => *record,
            None => Record::fresh(&Origin { place: &self.channel.place, seq: self.seq, at: self.at }),
        }
    }
}

impl State {
    fn sequence(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn hold(&mut self, entry: Entry) -> Delivery {
        self.generation += 1;
        let generation = self.generation;
        let index = self.free.pop().unwrap_or_else(|| {
            self.held.push(Held { generation: 0, entry: None });
            self.held.len() - 1
        });
        let token = Token(index as u64, generation);
        let mut delivery = Delivery::new(entry.message.clone(), entry.channel.clone(), entry.seq, entry.at, token);
        delivery.record = entry.record.clone();
        delivery.redelivered = entry.came_back;
        self.held[index] = Held { generation, entry: Some(entry) };
        delivery
    }

    fn unhold(&mut self, token: Token) -> Option<Entry> {
        let index = usize::try_from(token.0).ok()?;
        let held = self.held.get_mut(index).filter(|held| held.generation == token.1)?;
        let entry = held.entry.take()?;
        self.free.push(index);
        Some(entry)
    }
}

struct StoreLeases(Weak<Store>);

impl Leases for StoreLeases {
    fn release(&self, token: Token) {
        if let Some(store) = self.0.upgrade() {
            store.release(token);
        }
    }

    fn lost(&self, _token: Token) -> Lost {
        Lost::new()
    }
}
