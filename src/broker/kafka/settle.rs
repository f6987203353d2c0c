//! Settling: each disposition becomes a step of its partition; what is stored is what a confirmed commit covers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::super::{Delivery, Disposition, Head, Overtaken, Settled, Settlement, Settler, Trouble};
use super::batch::{Batch, Part};
use super::names;
use super::outgoing;
use super::partition::COMMIT_AFTER;
use super::state::{Move, Shared};
use crate::message::record::{Dead, Record, write};
use crate::message::{Binding, Message, Namespace, Origin, QueueName};

/// Settlements that may be unconfirmed at once: what two windows hold.
const UNCONFIRMED: usize = 131_072;

/// See the module's documentation.
pub struct KafkaSettler {
    /// Shared with the poll thread.
    pub shared: Arc<Shared>,
    /// The namespace.
    pub namespace: Namespace,
    /// The queue.
    pub queue: QueueName,
    /// The longest retry that waits with its offset held open.
    pub in_place: Duration,
    /// Names this process in dead letters.
    pub worker: Arc<str>,
}

impl KafkaSettler {
    fn begin(&self, batch: Vec<Settlement>) -> tokio::sync::oneshot::Receiver<Vec<Settled>> {
        let size = batch.len();
        let (shared_batch, receiver) = Batch::new(size);
        // Held open until all are in.
        let guard = shared_batch.part(0, 0);
        let mut urgent = false;
        {
            let mut state = self.shared.state.lock();
            let state = &mut *state;
            let mut last = 0;
            for (index, settlement) in batch.into_iter().enumerate() {
                let (delivery, disposition) = settlement.take();
                let token = delivery.token;
                let offset = token.1 as i64;
                let Some(partition) = state.of(token) else {
                    if !matches!(disposition, Disposition::Release) {
                        shared_batch.part(index, index + 1).fail(&Settled::Stale);
                    }
                    state.forget(token);
                    continue;
                };
                match disposition {
                    Disposition::Ack => {
                        let before = partition.fresh_finished;
                        let extends = last == partition.id
                            && partition.last_part().is_some_and(|(max, part)| {
                                let extends = part.extend(&shared_batch, index);
                                if extends {
                                    *max = (*max).max(offset);
                                }
                                extends
                            });
                        last = partition.id;
                        if extends {
                            // A second settlement of one delivery is not possible: it was consumed.
                            partition.finish_more(offset);
                        } else if let Err(part) = partition.finish(offset, shared_batch.part(index, index + 1)) {
                            part.fail(&Settled::Stale);
                        }
                        urgent |= before < COMMIT_AFTER && partition.fresh_finished >= COMMIT_AFTER;
                    }
                    Disposition::Release => {
                        let Delivery { .. } = &delivery;
                        let at = delivery.at;
                        partition.release(offset, Some(take(delivery, at)));
                        urgent = true;
                    }
                    Disposition::Retry { at, attempt, failure, unroutable_since } => {
                        let part = shared_batch.part(index, index + 1);
                        if !partition.owns(offset) {
                            part.fail(&Settled::Stale);
                            continue;
                        }
                        urgent = true;
                        let wait = self.shared.clock.now().until(at);
                        let channel = delivery.channel.clone();
                        let origin = Origin { place: &channel.place, seq: delivery.seq, at: delivery.at };
                        let stored_at = delivery.at;
                        let (message, _, record) = take(delivery, stored_at);
                        if self.shared.ordered || (wait <= self.in_place && partition.may_wait()) {
                            let record = record.unwrap_or_default();
                            let record = Box::new(record.again(at, attempt, failure, unroutable_since));
                            partition.retry(offset, message, stored_at, record, part);
                            continue;
                        }
                        let record = record.map_or_else(|| Record::fresh(&origin), |record| full(*record, &origin));
                        let record = record.again(at, attempt, failure, unroutable_since);
                        let headers = write(&message.headers, &record, None, Binding::Kafka);
                        let message = Message { headers, ..message };
                        let (topic, message) = match names::tier(wait) {
                            None => (names::work(&self.namespace, &self.queue), message),
                            Some(tier) => {
                                (names::delay(&self.namespace, tier), outgoing::delayed(message, &self.queue))
                            }
                        };
                        if !partition.begin_move(offset) {
                            part.fail(&Settled::Stale);
                            continue;
                        }
                        let partition = partition.id;
                        state.moves.push(Move { token, partition, topic, message, dead: false, part });
                    }
                    Disposition::DeadLetter { reason, failure, attempts, event_id, job } => {
                        let part = shared_batch.part(index, index + 1);
                        if !partition.begin_move(offset) {
                            part.fail(&Settled::Stale);
                            continue;
                        }
                        urgent = true;
                        if crate::seeded::bug("letter-before-stored") {
                            partition.end_move(offset);
                        }
                        let id = partition.id;
                        let channel = delivery.channel.clone();
                        let origin = Origin { place: &channel.place, seq: delivery.seq, at: delivery.at };
                        let stored_at = delivery.at;
                        let (message, _, record) = take(delivery, stored_at);
                        let mut record = record.map_or_else(|| Record::fresh(&origin), |record| full(*record, &origin));
                        record.failure = Some(failure);
                        record.event_id = event_id.or(record.event_id);
                        let lay = record.origin.as_deref().and_then(outgoing::parse_lay);
                        let dead = Dead {
                            reason,
                            attempts,
                            job,
                            queue: self.queue.clone(),
                            partition: lay.as_ref().map(|lay| lay.partition),
                            offset: lay.as_ref().map(|lay| lay.offset as u64),
                            worker: Some(self.worker.to_string()),
                        };
                        let headers = write(&message.headers, &record, Some(&dead), Binding::Kafka);
                        let group = names::group(&self.namespace, &self.queue);
                        let headers = match &lay {
                            Some(lay) => outgoing::foreign(&headers, lay, &group, &record, &dead),
                            None => headers,
                        };
                        state.moves.push(Move {
                            token,
                            partition: id,
                            topic: names::dead(&self.namespace, &self.queue),
                            message: Message { headers, ..message },
                            dead: true,
                            part,
                        });
                    }
                }
            }
        }
        drop(guard);
        if urgent {
            self.shared.wake.wake();
        }
        if self.shared.ordered {
            // The next of a key that was let go may be handed out.
            self.shared.arrived.notify_one();
        }
        receiver
    }
}

/// The parts of a delivery that its adapter has taken over.
fn take(mut delivery: Delivery, at: crate::time::Timestamp) -> (Message, crate::time::Timestamp, Option<Box<Record>>) {
    (std::mem::take(&mut delivery.message), at, delivery.record.take())
}

/// A retry in place keeps no origin: it is where it was.
fn full(mut record: Record, origin: &Origin<'_>) -> Record {
    if record.origin.is_none() {
        let fresh = Record::fresh(origin);
        record.origin = fresh.origin;
        record.topic = record.topic.or(fresh.topic);
        record.event_id = record.event_id.or(fresh.event_id);
        record.event_source = record.event_source.or(fresh.event_source);
    }
    record
}

impl Settler for KafkaSettler {
    fn settle(&self, batch: Vec<Settlement>) -> BoxFuture<'static, Vec<Settled>> {
        let size = batch.len();
        let receiver = self.begin(batch);
        Box::pin(async move {
            let gone = || vec![Settled::Unconfirmed("the worker left the group".to_owned()); size];
            receiver.await.unwrap_or_else(|_| gone())
        })
    }

    fn mark<'a>(&'a self, starting: &'a [&'a Delivery]) -> BoxFuture<'a, Vec<bool>> {
        let (batch, receiver) = Batch::new(starting.len());
        {
            let guard = batch.part(0, 0);
            let mut state = self.shared.state.lock();
            for (index, delivery) in starting.iter().enumerate() {
                let part: Part = batch.part(index, index + 1);
                let offset = delivery.token.1 as i64;
                match state.of(delivery.token) {
                    Some(partition) if partition.owns(offset) => {
                        partition.start(offset);
                        partition.confirm_start(part);
                    }
                    _ => part.fail(&Settled::Stale),
                }
            }
            drop(state);
            drop(guard);
        }
        self.shared.wake.wake();
        let size = starting.len();
        Box::pin(async move {
            let results = receiver.await.unwrap_or_else(|_| vec![Settled::Stale; size]);
            results.into_iter().map(|settled| settled == Settled::Stored).collect()
        })
    }

    fn unconfirmed_limit(&self) -> usize {
        UNCONFIRMED
    }

    fn trouble(&self) -> Option<Trouble> {
        let state = self.shared.state.lock();
        state.trouble.clone().or_else(|| state.waits_for_order.then_some(Trouble::Order))
    }

    fn head(&self) -> Option<Head> {
        let now = self.shared.clock.now();
        self.shared.state.lock().head(now)
    }

    fn overtaken(&self) -> Vec<Overtaken> {
        std::mem::take(&mut self.shared.state.lock().overtaken)
    }
}

#[cfg(test)]
mod tests {
    use super::super::source::KafkaSource;
    use super::super::takeover::{offset, open, partition, read};
    use super::*;
    use crate::broker::{Credit, Source};
    use crate::time::Clock;

    #[tokio::test]
    async fn the_next_of_a_key_comes_when_the_one_before_has_ended_whatever_the_poll_thread_does() {
        let shared = Arc::new(Shared {
            state: parking_lot::Mutex::default(),
            arrived: tokio::sync::Notify::new(),
            wake: Arc::default(),
            clock: Clock::System,
            ordered: true,
        });
        let mut one = partition(1, 0, None, true);
        read(&mut one, 0..6);
        open(&mut one);
        shared.state.lock().add(one);
        let mut source = KafkaSource { shared: shared.clone() };
        let settler = KafkaSettler {
            shared,
            namespace: Namespace::new("n").expect("valid"),
            queue: QueueName::new("q").expect("valid"),
            in_place: Duration::ZERO,
            worker: "w".into(),
        };
        let credit = Credit { jobs: 10, fresh_floor: 0, retry_floor: 0, bytes: 1 << 20, suspect: true };
        let mut taken = source.receive(credit).await.expect("there are three keys");
        assert_eq!(taken.iter().map(offset).collect::<Vec<_>>(), [0, 1, 2]);
        let waiting = tokio::spawn(async move { source.receive(credit).await.expect("it goes on") });
        tokio::task::yield_now().await;
        drop(settler.settle(vec![taken.remove(1).settle(Disposition::Ack)]));
        let next = tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("at once").expect("no panic");
        assert_eq!(next.iter().map(offset).collect::<Vec<_>>(), [4]);
    }
}
