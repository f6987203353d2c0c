//! Where partitions begin that were assigned, and where they go on when their log has moved from under them.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use super::super::super::{Channel, Lane, Overtaken, Start, Trouble};
use super::super::context;
use super::super::memo::Memo;
use super::super::native::PartitionQueue;
use super::super::partition::{Partition, Setup};
use super::super::state::Lease;
use super::{ASK, Running, Seat};
use crate::message::{Binding, Place};

impl Running {
    /// Takes what was assigned: where each begins, what its last owner left, a queue of its own.
    pub(super) fn assign(&mut self) {
        if self.pending.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        for (topic, number) in &self.pending {
            list.add_partition(topic, *number);
        }
        // The one wait of this thread: the broker answers within a round trip, heartbeats go on beside it.
        let committed = match self.consumer.committed_offsets(list, ASK) {
            Ok(committed) => committed,
            Err(error) => {
                tracing::warn!(%error, "the committed offsets cannot be read yet");
                return;
            }
        };
        let mut assigned = Vec::new();
        let mut partitions = Vec::new();
        for element in committed.elements() {
            let (topic, number) = (element.topic().to_owned(), element.partition());
            let (offset, memo) = match element.offset() {
                Offset::Offset(offset) if element.error().is_ok() => (offset, Memo::read(element.metadata(), offset)),
                _ if element.error().is_err() => {
                    tracing::warn!(topic, number, "a committed offset cannot be read yet");
                    return;
                }
                _ => match self.begin(&topic, number) {
                    Ok(offset) => (offset, None),
                    Err(error) => {
                        tracing::warn!(%error, topic, number, "where a partition begins cannot be read yet");
                        return;
                    }
                },
            };
            let shared = &self.setup.shared;
            let Some(queue) = PartitionQueue::split(&self.consumer, &topic, number, &shared.wake) else { return };
            let id = self.next_id;
            self.next_id += 1;
            let [first, again] = self.channels(&topic, number);
            partitions.push(Partition::new(Setup {
                id,
                topic: Arc::from(topic.as_str()),
                number,
                first,
                again,
                committed: offset,
                memo,
                owner: self.owner,
                ordered: self.setup.shared.ordered,
                max_crashes: self.setup.max_crashes,
                limit: self.metadata_limit,
            }));
            assigned.push((topic.clone(), number, offset));
            self.queues.insert(
                (topic, number),
                Seat { id, since: Instant::now(), queue, full_since: None, paused: false, sought: None },
            );
        }
        self.pending.clear();
        tracing::debug!(group = self.setup.work, partitions = ?assigned, "partitions are taken");
        context::assign(&self.consumer, &assigned);
        // A pause outlives its assignment: what is ours anew begins as we wish it.
        let mut list = TopicPartitionList::new();
        for (topic, number, _) in &assigned {
            list.add_partition(topic, *number);
        }
        if let Err(error) = self.consumer.resume(&list) {
            tracing::warn!(%error, "a partition cannot be resumed");
        }
        if partitions.iter().any(|partition| partition.accuses(false)) {
            let present = self.present().unwrap_or_default();
            partitions.iter_mut().for_each(|partition| partition.acquit(&present));
        }
        let mut state = self.setup.shared.state.lock();
        for partition in partitions {
            state.add(partition);
        }
        if self.drains.is_empty() && state.trouble == Some(Trouble::Rebalance) {
            state.trouble = None;
        }
        drop(state);
        self.news();
    }

    /// Where a partition begins that nobody has committed anything of.
    fn begin(&self, topic: &str, number: i32) -> KafkaResult<i64> {
        let (low, high) = self.consumer.fetch_watermarks(topic, number, ASK)?;
        // `start` means the partitions that were there when the queue began: one that was added later begins at its
        // beginning, or what was published before we saw it would be lost.
        if self.setup.start != Start::Earliest && self.has_begun(topic)? {
            return Ok(low);
        }
        let work = topic == self.setup.work;
        match self.setup.start {
            Start::At(at) if !work => {
                let mut list = TopicPartitionList::new();
                list.add_partition_offset(topic, number, Offset::Offset(at.as_millis()))?;
                let found = self.consumer.offsets_for_times(list, ASK)?;
                Ok(found
                    .elements()
                    .first()
                    .and_then(|e| match e.offset() {
                        Offset::Offset(offset) => Some(offset),
                        _ => None,
                    })
                    .unwrap_or(high))
            }
            Start::Latest if !work => Ok(high),
            _ => Ok(low),
        }
    }

    /// Whether anything of this topic was ever committed by the group.
    fn has_begun(&self, topic: &str) -> KafkaResult<bool> {
        let metadata = self.consumer.fetch_metadata(Some(topic), ASK)?;
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
            list.add_partition(topic, partition.id());
        }
        let committed = self.consumer.committed_offsets(list, ASK)?;
        Ok(committed.elements().iter().any(|element| matches!(element.offset(), Offset::Offset(_))))
    }

    fn channels(&mut self, topic: &str, number: i32) -> [Arc<Channel>; 2] {
        let name = format!("{topic}:{number}");
        let setup = &self.setup;
        let make = || {
            let work = topic == setup.work;
            let leases = Arc::new(Lease::of(&setup.shared));
            let place = Arc::new(Place {
                position: format!("kafka:{topic}:{number}"),
                source: format!("kafka://{topic}"),
                topic: (!work).then(|| Arc::from(topic)),
                binding: Binding::Kafka,
            });
            [if work { Lane::Retry } else { Lane::Fresh }, Lane::Retry]
                .map(|lane| Arc::new(Channel { lane, place: place.clone(), leases: leases.clone() }))
        };
        self.places.entry(name).or_insert_with(make).clone()
    }

    /// Goes on behind what retention, or an election that lost records, took from under a partition. What nobody was
    /// given is counted: it is lost.
    pub(super) fn overtaken(&mut self, topic: &str, number: i32) -> KafkaResult<()> {
        let (low, high) = self.consumer.fetch_watermarks(topic, number, ASK)?;
        let Some(seat) = self.queues.get_mut(&(topic.to_owned(), number)) else { return Ok(()) };
        let mut state = self.setup.shared.state.lock();
        let Some(partition) = state.partitions.get_mut(&seat.id) else { return Ok(()) };
        let expected = partition.expects();
        let offset = if expected < low { low } else { high.min(expected) };
        let events = partition.skip_to(offset);
        if events > 0 {
            let place = format!("{topic}:{number}, offsets {expected} to {}", low - 1);
            state.overtaken.push(Overtaken { place, events });
        }
        drop(state);
        if offset < expected {
            tracing::error!(
                topic,
                number,
                expected,
                end = high,
                "the log ends before what was read already: the cluster lost records, and goes on where it ends"
            );
        }
        // An assignment without a position is not sought, it is taken anew.
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, number);
        self.consumer.incremental_unassign(&list)?;
        if let Some(queue) = PartitionQueue::split(&self.consumer, topic, number, &self.setup.shared.wake) {
            seat.queue = queue;
        }
        seat.paused = false;
        list.set_partition_offset(topic, number, Offset::Offset(offset))?;
        self.consumer.incremental_assign(&list)
    }
}
