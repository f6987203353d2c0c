//! What a queue in key order does otherwise: it reads only while it owns the queue, hands out the first of each key,
//! and keeps what waits for its retry in hand.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Done, NAK, Pump};
use crate::broker::nats::api::Error;
use crate::broker::nats::credit::{EXPIRES, Moment};
use crate::broker::nats::held::Key;
use crate::broker::nats::names;
use crate::broker::nats::order::{Count, Line};
use crate::broker::nats::owner::Until;
use crate::broker::nats::topology::Subscription;
use crate::broker::{Delivery, Disposition, Settled, Token};
use crate::message::record::Record;
use crate::message::{Message, Origin, attribute, decode};

/// Deliveries in hand for each slot of a queue in key order.
const WINDOW: usize = 4;
/// The time between two counts of what is unsettled.
const COUNT: Duration = Duration::from_millis(50);

/// Places of the stream, behind the last that was delivered, where what is missing is called back.
const CALLED: u64 = 4_096;

/// What the server says of a consumer.
pub struct Counts {
    /// Unsettled deliveries.
    pending: usize,
    /// Deliveries in all.
    sequence: u64,
    /// The last message that was delivered, by its place in the stream.
    last: u64,
    /// Up to here everything is settled.
    floor: u64,
}

/// The state of a queue in key order.
pub struct Ordered {
    /// By consumer.
    lines: Vec<Line<Waiting>>,
    /// By consumer: a count is under way, or the next is made then.
    counts: Vec<Result<Moment, ()>>,
    until: watch::Receiver<Until>,
    leave: CancellationToken,
    owned: bool,
}

/// A delivery that is made once its turn has come.
#[derive(Clone)]
struct Waiting(std::sync::Arc<Delivery>, Option<Box<Record>>);

impl Ordered {
    /// Over so many consumers, owned `until` then.
    pub fn new(consumers: usize, until: watch::Receiver<Until>, leave: CancellationToken) -> Self {
        let lines = std::iter::repeat_with(Line::default).take(consumers).collect();
        Self { lines, counts: vec![Ok(Moment::ZERO); consumers], until, leave, owned: false }
    }

    /// Whether it is owned long enough for a pull request to end before.
    fn may_read(&self) -> bool {
        self.until.borrow().is_some_and(|until| Instant::now() + EXPIRES < until)
    }
}

impl Pump {
    /// A delivery came over this consumer. Whether it may be taken.
    pub(super) fn line_seen(&mut self, index: usize, sequence: u64) -> bool {
        let Some(ordered) = &mut self.ordered else { return true };
        ordered.lines[index].seen(sequence);
        ordered.owned
    }

    /// Somebody else may have got something that is not settled.
    pub(super) fn line_shut(&mut self, index: usize) {
        if let Some(ordered) = &mut self.ordered {
            ordered.lines[index].shut();
        }
    }

    /// It is in hand and has its place in the order.
    pub(super) fn line_arrived(&mut self, key: Key, delivery: &Delivery) {
        if let Some(ordered) = &mut self.ordered {
            let message = &delivery.message;
            ordered.lines[key.0 as usize].arrive(key.1, order_key(message, &delivery.origin()), message.size());
        }
    }

    /// It is known well enough to be handed out: at once where there is no order, else when its turn has come.
    pub(super) fn line_wait(&mut self, key: Key, delivery: Delivery) -> Option<Delivery> {
        let Some(ordered) = &mut self.ordered else { return Some(delivery) };
        // The line has it from here on; deliveries are made of it.
        let (delivery, _) = delivery.settle(Disposition::Release).take();
        let due = delivery.record.as_ref().and_then(|record| record.not_before);
        let record = delivery.record.clone();
        ordered.lines[key.0 as usize].wait(key.1, Waiting(std::sync::Arc::new(delivery), record), due);
        None
    }

    /// It was given back and stays in hand, first of its key. False where it must leave the hand.
    pub(super) fn put_back(&mut self, key: Key) -> bool {
        if self.stopping || self.closed.is_cancelled() {
            return false;
        }
        let Some(ordered) = self.ordered.as_mut().filter(|ordered| ordered.owned) else { return false };
        let line = &mut ordered.lines[key.0 as usize];
        if line.value(key.1).is_none() || self.marks.contains_key(&key) {
            // Its mark has to be looked up anew.
            return false;
        }
        line.put_back(key.1);
        true
    }

    /// Its retry is stored: it stays in hand until that is due.
    pub(super) async fn hold(&mut self, key: Key, record: Record) {
        let lost = self.is_lost(key);
        let hop = self.hops.get(&key).copied().unwrap_or(0) + 1;
        let marked = self.marks.contains_key(&key);
        if let Some(ordered) = self.ordered.as_mut().filter(|ordered| ordered.owned && !lost && !marked) {
            let line = &mut ordered.lines[key.0 as usize];
            if let Some(Waiting(delivery, _)) = line.value(key.1).cloned() {
                let due = record.not_before;
                line.wait(key.1, Waiting(delivery, Some(Box::new(record))), due);
                self.hops.insert(key, hop);
                return self.finish_key(key, Settled::Stored);
            }
        }
        // Whoever gets it next finds what was stored.
        self.finish_key(key, Settled::Stored);
        self.release(key, NAK).await;
    }

    /// It is out of hand.
    pub(super) fn leave_line(&mut self, key: Key, hop: Option<u64>, settled: bool) {
        let Some(ordered) = &mut self.ordered else { return };
        let line = &mut ordered.lines[key.0 as usize];
        if settled
            && hop.is_some_and(|hop| hop > 0)
            && let Some(Waiting(delivery, record)) = line.value(key.1)
        {
            let job = names::key_of(record.as_deref(), &delivery.origin().to_string());
            let context = self.context.clone();
            self.tasks.spawn(async move {
                // What stays ends with its time to live, and is never looked up again.
                let held = context.names.record(&context.queue.name, "held", &job);
                let _ = context.api.purge(&context.names.work(), &held).await;
                Done::Cleared
            });
        }
        line.remove(key.1, settled);
    }

    /// How many deliveries each consumer may have outstanding. False where there is no order.
    pub(super) fn line_rooms(&mut self, rooms: &mut Vec<usize>) -> bool {
        let Some(ordered) = &self.ordered else { return false };
        rooms.clear();
        let window = WINDOW * self.context.queue.slots.get();
        let held: usize = ordered.lines.iter().map(Line::len).sum();
        let bytes: usize = ordered.lines.iter().map(Line::bytes).sum();
        let full = held > 0 && bytes >= self.shared.free_bytes();
        let owned = ordered.owned && ordered.may_read();
        rooms.extend(ordered.lines.iter().map(|line| match (owned, full && line.is_open()) {
            (true, false) => line.room((window + line.len()).saturating_sub(held)),
            _ => 0,
        }));
        true
    }

    /// Follows the ownership, hands out what is ready, and counts where it is not known what others hold.
    pub(super) async fn in_order(&mut self) {
        if self.ordered.is_none() {
            return;
        }
        let now = self.now();
        let leaving = self.stopping || self.closed.is_cancelled();
        let Some(ordered) = &mut self.ordered else { return };
        if leaving {
            ordered.leave.cancel();
        }
        // Reading ends before the ownership does; what is in hand is kept until then.
        let owns = ordered.until.borrow().is_some_and(|until| Instant::now() < until);
        let owned = !leaving && (ordered.may_read() || ordered.owned && owns);
        let (began, ended) = (owned && !ordered.owned, !owned && ordered.owned);
        ordered.owned = owned;
        if began || ended {
            ordered.lines.iter_mut().for_each(Line::foreign);
        }
        if !owned {
            return self.give_back_waiting(None).await;
        }
        let wall = self.context.clock.now();
        let mut ready = Vec::new();
        for (index, line) in ordered.lines.iter_mut().enumerate() {
            for (seq, Waiting(kept, record)) in line.ready(wall) {
                let token = Token(index as u64, seq);
                let mut delivery = Delivery::new(kept.message.clone(), kept.channel.clone(), seq, kept.at, token);
                delivery.record = record;
                (delivery.redelivered, delivery.suspect) = (kept.redelivered, kept.suspect);
                (delivery.condemned, delivery.needs_mark) = (kept.condemned, kept.needs_mark);
                ready.push(delivery);
            }
        }
        if !ready.is_empty() {
            self.shared.push(ready.into_iter());
        }
        self.count(now);
    }

    fn count(&mut self, now: Moment) {
        if !self.connected() {
            return;
        }
        let Some(ordered) = &mut self.ordered else { return };
        for (index, line) in ordered.lines.iter().enumerate() {
            if line.is_open() || ordered.counts[index].is_err() || ordered.counts[index].is_ok_and(|next| now < next) {
                continue;
            }
            ordered.counts[index] = Err(());
            let (context, changes) = (self.context.clone(), line.changes());
            let subscription = &self.consumers[index].subscription;
            let (stream, durable) = (subscription.stream.clone(), subscription.durable.clone());
            self.tasks.spawn(async move {
                let info = context.api.consumer(&stream, &durable).await;
                let counted = info.and_then(|info| {
                    let info = info.ok_or_else(|| Error::Answer("the consumer is gone".to_owned()))?;
                    let counts = || {
                        Some(Counts {
                            pending: info["num_ack_pending"].as_u64()?.try_into().ok()?,
                            sequence: info["delivered"]["consumer_seq"].as_u64()?,
                            last: info["delivered"]["stream_seq"].as_u64()?,
                            floor: info["ack_floor"]["stream_seq"].as_u64()?,
                        })
                    };
                    counts().ok_or_else(|| Error::Answer("a consumer without its counts".to_owned()))
                });
                Done::Counted(index, changes, counted)
            });
        }
    }

    pub(super) async fn line_counted(&mut self, index: usize, changes: u64, counted: Result<Counts, Error>) {
        let next = self.now() + COUNT;
        let Some(ordered) = &mut self.ordered else { return };
        ordered.counts[index] = Ok(next);
        match counted {
            Ok(counts) if ordered.owned => {
                match ordered.lines[index].counted(changes, counts.pending, counts.sequence) {
                    Count::GiveBack => self.give_back_waiting(Some(index)).await,
                    Count::CallBack => self.call_back(index, counts).await,
                    Count::Open | Count::Again => {}
                }
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(error = %error, "failed to count what is unsettled"),
        }
    }

    /// Gives back, for the consumer, what was delivered and is not in hand. The server goes by the sequence of the stream
    /// and passes over what is settled or was never delivered (`processNak` in nats-server's consumer.go).
    async fn call_back(&mut self, index: usize, counts: Counts) {
        let Some(ordered) = &self.ordered else { return };
        let Subscription { stream, durable, .. } = &self.consumers[index].subscription;
        tracing::debug!(queue = %self.context.queue.name, stream, "deliveries were lost; they are called back");
        let first = counts.floor.max(counts.last.saturating_sub(CALLED)) + 1;
        for seq in (first..=counts.last).filter(|seq| !ordered.lines[index].holds(*seq)) {
            let reply = format!("$JS.ACK.{stream}.{durable}.1.{seq}.{}.0.0", counts.sequence);
            self.bundle.push(&reply, None, NAK);
        }
        self.bundle.send(&self.context.link.client()).await;
    }

    /// Gives back what is not handed out, of one consumer or of all.
    async fn give_back_waiting(&mut self, only: Option<usize>) {
        let Some(ordered) = &self.ordered else { return };
        let lines = ordered.lines.iter().enumerate().filter(|(index, _)| only.is_none_or(|only| only == *index));
        let waiting: Vec<Key> =
            lines.flat_map(|(index, line)| line.waiting().into_iter().map(move |seq| Key(index as u64, seq))).collect();
        for key in waiting {
            self.release(key, Bytes::from_static(b"-NAK {\"delay\":0}")).await;
        }
    }
}

/// The key that order is kept by: `partitionkey`, of an attribute or of a structured event.
fn order_key(message: &Message, origin: &Origin) -> Option<Bytes> {
    let headers = &message.headers;
    let named = [format!("ce-{}", attribute::PARTITIONKEY), attribute::PARTITIONKEY.to_owned()];
    if let Some(key) = named.iter().find_map(|name| headers.get_str_ignore_case(name)) {
        return Some(Bytes::copy_from_slice(key.as_bytes()));
    }
    let kind = headers.get_str_ignore_case("content-type")?;
    if !kind.starts_with("application/cloudevents") {
        return None;
    }
    decode(message, origin, None).ok()?.key
}
