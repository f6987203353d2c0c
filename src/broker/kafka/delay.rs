//! The delay lane: one consumer in group `N._delay` for all queues. A tier holds each record for the same time, so a
//! partition is in the order of its due times and its head is all that has to be looked at. What has waited goes on to
//! the next tier or to its queue's own topic, in one transaction with the offset that it leaves.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::context::{self, Change, Context};
use super::login::{Login, Renewal};
use super::native::{self, Arrived, Batch, Events, PartitionQueue, Wake};
use super::topics::Ensure;
use super::transaction::Transactor;
use super::{names, outgoing};
use crate::message::record::read;
use crate::message::{Binding, Message, Namespace, QueueName};
use crate::time::{Clock, Timestamp};

/// Records held of a partition.
const HELD: usize = 256;
/// Records in one transaction.
const MOVES: usize = 512;
/// How soon a head that became due is noticed.
const LOOK: Duration = Duration::from_millis(200);
/// How long one question to the broker may take.
const ASK: Duration = Duration::from_secs(5);

/// Ends the lane.
#[derive(Clone, Default)]
pub struct Stop {
    stop: Arc<AtomicBool>,
    wake: Arc<Wake>,
}

impl Stop {
    /// It ends after what it is doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.wake.wake();
    }
}

/// What the lane is made of.
pub struct Delay {
    /// The consumer's settings.
    pub config: ClientConfig,
    /// How it logs in.
    pub login: Login,
    /// Carries records on.
    pub transactor: Transactor,
    /// Creates topics that are not there yet.
    pub ensure: Ensure,
    /// The namespace.
    pub namespace: Namespace,
    /// The wall clock.
    pub clock: Clock,
}

struct Held {
    queue: PartitionQueue<Context>,
    records: VecDeque<Arrived>,
    tier: Duration,
}

impl Delay {
    /// Starts the thread.
    pub fn spawn(self) -> std::io::Result<Stop> {
        let stop = Stop::default();
        let handle = stop.clone();
        std::thread::Builder::new().name("kafka-delay".to_owned()).spawn(move || self.run(&stop))?;
        Ok(handle)
    }

    fn run(mut self, stop: &Stop) {
        stop.wake.here();
        let mut config = self.config.clone();
        // A million delayed records must not be held here: what is read ahead is bounded for each partition. New
        // tiers are found well within the shortest delay.
        config
            // Only what has gone on is ever removed from a tier.
            .set("auto.offset.reset", "earliest")
            .set("queued.max.messages.kbytes", "256")
            .set("fetch.message.max.bytes", "262144")
            .set("topic.metadata.refresh.interval.ms", "5000");
        let consumer: BaseConsumer<Context> =
            match config.create_with_context(Context::new(self.login.token_command.clone())) {
                Ok(consumer) => consumer,
                Err(error) => return tracing::error!(%error, "the delay lane cannot start"),
            };
        let consumer = Rc::new(consumer);
        let topics = format!("^{}\\.delay\\..*", self.namespace.as_str().replace('.', "\\."));
        if let Err(error) = consumer.subscribe(&[&topics]) {
            return tracing::error!(%error, "the delay lane cannot start");
        }
        let mut held: HashMap<(String, i32), Held> = HashMap::new();
        let mut pending: Vec<(String, i32)> = Vec::new();
        let mut batch = Batch::new(HELD);
        let mut resting = Instant::now();
        let mut renewal = Renewal::new(&self.login);
        let events = Events::new(&consumer);
        while !stop.stop.load(Ordering::Acquire) {
            renewal.renew(consumer.client());
            events.serve(|event| {
                if let Err(error) = event {
                    tracing::debug!(%error, "the delay lane's consumer reports an error");
                }
            });
            for change in consumer.context().take_changes() {
                match change {
                    Change::Assigned(partitions) => {
                        if partitions.is_empty() {
                            context::assign(&consumer, &[]);
                        }
                        pending.extend(partitions);
                    }
                    Change::Revoked { partitions, .. } => {
                        // Nothing is on its way between two steps: what is held is read again by whoever is next.
                        let mut list = TopicPartitionList::new();
                        for place in partitions {
                            pending.retain(|other| *other != place);
                            list.add_partition(&place.0, place.1);
                            held.remove(&place);
                        }
                        context::unassign(&consumer, &list);
                    }
                }
            }
            self.assign(&consumer, &mut pending, &mut held, &stop.wake);
            for one in held.values_mut().filter(|one| one.records.len() < HELD) {
                one.queue.read(&mut batch, HELD - one.records.len());
                one.records.extend(batch.records.drain(..));
            }
            let now = self.clock.now();
            let next = held.values().filter_map(|one| Some(due(one.records.front()?, one.tier))).min();
            match next {
                Some(due) if due <= now && Instant::now() >= resting => {
                    if let Err(why) = self.carry(&consumer, &mut held, now) {
                        tracing::warn!(why, "delayed jobs cannot be carried on yet");
                        resting = Instant::now() + LOOK;
                    }
                }
                next => {
                    let wait = next.map_or(LOOK, |due| now.until(due).clamp(Duration::from_millis(1), LOOK));
                    std::thread::park_timeout(wait);
                }
            }
        }
        drop(held);
        drop(events);
        context::leave(&consumer, !pending.is_empty(), std::iter::empty());
        // Nothing waits for this thread: a close that hangs keeps nobody.
        drop(consumer);
    }

    fn assign(
        &self,
        consumer: &Rc<BaseConsumer<Context>>,
        pending: &mut Vec<(String, i32)>,
        held: &mut HashMap<(String, i32), Held>,
        wake: &Arc<Wake>,
    ) {
        if pending.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        for (topic, number) in pending.iter() {
            list.add_partition(topic, *number);
        }
        let Ok(committed) = consumer.committed_offsets(list, ASK) else { return };
        let mut assigned = Vec::new();
        for element in committed.elements() {
            let place = (element.topic().to_owned(), element.partition());
            let offset = match element.offset() {
                Offset::Offset(offset) => offset,
                _ => match consumer.fetch_watermarks(&place.0, place.1, ASK) {
                    Ok((low, _)) => low,
                    Err(_) => return,
                },
            };
            let tier = place.0.rsplit('.').next().and_then(|text| crate::time::parse_duration(text).ok());
            let Some(queue) = PartitionQueue::split(consumer, &place.0, place.1, wake) else { return };
            held.insert(place.clone(), Held { queue, records: VecDeque::new(), tier: tier.unwrap_or_default() });
            assigned.push((place.0, place.1, offset));
        }
        pending.clear();
        context::assign(consumer, &assigned);
    }

    /// Carries on what is due.
    fn carry(
        &mut self,
        consumer: &BaseConsumer<Context>,
        held: &mut HashMap<(String, i32), Held>,
        now: Timestamp,
    ) -> Result<(), String> {
        let mut records: Vec<(String, Message)> = Vec::new();
        let mut offsets = TopicPartitionList::new();
        let mut taken: Vec<((String, i32), usize)> = Vec::new();
        for (place, one) in held.iter() {
            let mut count = 0usize;
            for arrived in &one.records {
                if records.len() >= MOVES || due(arrived, one.tier) > now {
                    break;
                }
                count += 1;
                let onward = self.onward(arrived, now).unwrap_or_else(|| {
                    // It may be a job, so it is kept where people can find it; what is behind it goes on.
                    let kept = names::lost_property(&self.namespace);
                    let at = format!("{}:{}:{}", place.0, place.1, arrived.offset);
                    tracing::error!(at, kept, "a delayed record names no queue; it is kept where nothing runs it");
                    (kept, arrived.message.clone())
                });
                records.push(onward);
            }
            if let Some(last) = count.checked_sub(1).and_then(|last| one.records.get(last)) {
                // Offsets are never negative.
                let _ = offsets.add_partition_offset(&place.0, place.1, Offset::Offset(last.offset + 1));
                taken.push((place.clone(), count));
            }
        }
        if taken.is_empty() {
            return Ok(());
        }
        for (topic, _) in &records {
            (self.ensure)(topic)?;
        }
        let generation = native::generation(consumer).ok_or("the group has no generation")?;
        let list: Vec<_> = records.iter().map(|(topic, message)| (topic.as_str(), message)).collect();
        let whole = self.transactor.write(&list, Some((&offsets, &generation))).map_err(|refusal| refusal.why)?;
        if !whole {
            consumer.commit(&offsets, rdkafka::consumer::CommitMode::Sync).map_err(|error| error.to_string())?;
        }
        for (place, count) in taken {
            if let Some(one) = held.get_mut(&place) {
                one.records.drain(..count);
            }
        }
        Ok(())
    }

    /// Where a record goes that has waited; `None` where it names no queue. One that names a queue and cannot be read
    /// otherwise (a newer worker's, perhaps) goes on to that queue, whose reader judges it.
    fn onward(&self, arrived: &Arrived, now: Timestamp) -> Option<(String, Message)> {
        let queue = QueueName::new(&outgoing::destination(&arrived.message)?).ok()?;
        let due = read(&arrived.message.headers, Binding::Kafka).ok().and_then(|stored| stored.record.not_before);
        let left = due.map_or(Duration::ZERO, |due| now.until(due));
        let message = arrived.message.clone();
        Some(match names::tier(left) {
            Some(tier) => (names::delay(&self.namespace, tier), message),
            None => (names::work(&self.namespace, &queue), outgoing::arrived(message)),
        })
    }
}

/// When a record has waited its tier's time.
fn due(arrived: &Arrived, tier: Duration) -> Timestamp {
    arrived.at.after(tier)
}
