//! What waits in the delay topics, by queue. Each record is read once, however often it is asked for: a tier loses its
//! oldest first and gets new ones at its end, so what was counted stays counted, in chunks, and only the chunk that is
//! half gone is read again.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::Error;
use super::config::Settings;
use super::native::Arrived;
use super::outgoing;
use super::scan::scan_from;
use crate::message::Binding;
use crate::message::record::read;
use crate::time::Timestamp;

/// Records of a chunk: what is read again of a partition each time, at most.
const CHUNK: usize = 512;

/// Jobs of one queue that wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Later {
    /// For their first attempt.
    pub scheduled: u64,
    /// For a further one.
    pub retrying: u64,
    /// When the first of these is due.
    pub retry_due: Option<Timestamp>,
}

/// By queue.
pub type ByQueue = BTreeMap<String, Later>;

/// One partition of a delay topic.
pub struct Tier {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub number: i32,
    /// Below this they have gone on.
    pub committed: i64,
    /// Where the next record will be.
    pub high: i64,
}

/// What was counted so far.
#[derive(Clone, Default)]
pub struct Counter(Arc<Mutex<BTreeMap<(String, i32), Counted>>>);

impl Counter {
    /// Brings it up to date with these partitions, which are all that there are. Blocks; whoever asks meanwhile waits,
    /// and finds it counted. What was read before an error is not read again.
    pub fn count(&self, settings: &Settings, reader: &str, tiers: &[Tier]) -> Result<ByQueue, Error> {
        let mut counted = self.0.lock();
        counted.retain(|(topic, number), _| tiers.iter().any(|tier| tier.topic == *topic && tier.number == *number));
        let mut topics: BTreeMap<&str, Vec<&Tier>> = BTreeMap::new();
        for tier in tiers {
            counted.entry((tier.topic.clone(), tier.number)).or_default().forget(tier.committed, tier.high);
            topics.entry(&tier.topic).or_default().push(tier);
        }
        for (topic, tiers) in topics {
            // First what is missing before what is known, last what is missing after it.
            loop {
                let mut from: BTreeMap<i32, i64> = tiers.iter().map(|tier| (tier.number, i64::MAX)).collect();
                let mut until = BTreeMap::new();
                for tier in &tiers {
                    let known = counted.get(&(topic.to_owned(), tier.number));
                    if let Some((start, end)) = known.and_then(|known| known.missing(tier.committed, tier.high)) {
                        from.insert(tier.number, start);
                        until.insert(tier.number, (start, end));
                    }
                }
                if until.is_empty() {
                    break;
                }
                scan_from(settings, reader, topic, &from, |number, arrived| {
                    let Some((_, end)) = until.get(&number) else { return false };
                    if arrived.offset < *end {
                        let known = counted.entry((topic.to_owned(), number)).or_default();
                        known.add(arrived.offset, what(&arrived));
                    }
                    arrived.offset + 1 < *end
                })?;
                for (number, (start, end)) in until {
                    // Markers of transactions and what was trimmed are no records, and nothing to look for again.
                    counted.entry((topic.to_owned(), number)).or_default().close(start, end);
                }
            }
        }
        Ok(sum(counted.values()))
    }
}

/// Whose record it is, and when it is due where it is a retry.
fn what(arrived: &Arrived) -> Option<(String, Option<Option<Timestamp>>)> {
    let queue = outgoing::destination(&arrived.message)?;
    let record = read(&arrived.message.headers, Binding::Kafka).ok()?.record;
    Some((queue, (record.attempt.get() > 1).then_some(record.not_before)))
}

fn sum<'a>(all: impl Iterator<Item = &'a Counted>) -> ByQueue {
    let mut sum = ByQueue::new();
    for (queue, later) in all.flat_map(|counted| &counted.chunks).flat_map(|chunk| &chunk.queues) {
        let of = sum.entry(queue.clone()).or_default();
        of.scheduled += later.scheduled;
        of.retrying += later.retrying;
        of.retry_due = [of.retry_due, later.retry_due].into_iter().flatten().min();
    }
    sum
}

/// One partition's records: chunks in the order of their offsets, which may leave out some before the first, and all
/// after the last.
#[derive(Default)]
struct Counted {
    chunks: VecDeque<Chunk>,
}

#[derive(Debug, PartialEq, Eq)]
struct Chunk {
    from: i64,
    to: i64,
    records: usize,
    queues: ByQueue,
}

impl Counted {
    /// What is below `committed` has gone on.
    fn forget(&mut self, committed: i64, high: i64) {
        // Another topic of the same name.
        if self.chunks.back().is_some_and(|last| last.to > high) {
            self.chunks.clear();
        }
        while self.chunks.front().is_some_and(|first| first.from < committed) {
            self.chunks.pop_front();
        }
    }

    /// The first offsets that were not looked at.
    fn missing(&self, committed: i64, high: i64) -> Option<(i64, i64)> {
        let mut known = committed;
        for chunk in &self.chunks {
            if chunk.from > known {
                return Some((known, chunk.from));
            }
            known = chunk.to;
        }
        (known < high).then_some((known, high))
    }

    /// A record; in ascending order within what is missing.
    fn add(&mut self, offset: i64, what: Option<(String, Option<Option<Timestamp>>)>) {
        let place = self.chunks.partition_point(|chunk| chunk.to <= offset);
        let grows = place.checked_sub(1).filter(|before| self.chunks[*before].records < CHUNK);
        let place = grows.unwrap_or_else(|| {
            let from = place.checked_sub(1).map_or(offset, |before| self.chunks[before].to);
            self.chunks.insert(place, Chunk { from, to: offset, records: 0, queues: ByQueue::new() });
            place
        });
        let chunk = &mut self.chunks[place];
        chunk.to = offset + 1;
        chunk.records += 1;
        let Some((queue, retry)) = what else { return };
        let of = chunk.queues.entry(queue).or_default();
        match retry {
            None => of.scheduled += 1,
            Some(due) => {
                of.retrying += 1;
                of.retry_due = [of.retry_due, due].into_iter().flatten().min();
            }
        }
    }

    /// All of `start..end` was looked at.
    fn close(&mut self, start: i64, end: i64) {
        let place = self.chunks.partition_point(|chunk| chunk.from < end);
        match place.checked_sub(1).map(|before| &mut self.chunks[before]) {
            Some(last) if last.to >= start => last.to = last.to.max(end),
            _ => self.chunks.insert(place, Chunk { from: start, to: end, records: 0, queues: ByQueue::new() }),
        }
        let first = self.chunks.partition_point(|chunk| chunk.to <= start);
        if let Some(chunk) = self.chunks.get_mut(first) {
            chunk.from = chunk.from.min(start);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A partition: which offsets hold a record, and whose. What is no record is a marker.
    fn partition() -> impl Strategy<Value = Vec<Option<u8>>> {
        prop::collection::vec(prop::option::weighted(0.9, 0..3_u8), 1..3_000)
    }

    /// Reads what is missing, as a scan does; `stops`: it fails after so many records.
    fn look(counted: &mut Counted, log: &[Option<u8>], committed: i64, high: i64, mut stops: usize) -> usize {
        let mut seen = 0;
        counted.forget(committed, high);
        while let Some((start, end)) = counted.missing(committed, high) {
            for offset in start..end {
                let Some(queue) = log[offset as usize] else { continue };
                if stops == 0 {
                    return seen;
                }
                stops -= 1;
                seen += 1;
                counted.add(offset, Some((queue.to_string(), (queue == 2).then_some(None))));
            }
            counted.close(start, end);
        }
        seen
    }

    fn naive(log: &[Option<u8>], committed: i64, high: i64) -> ByQueue {
        let mut sum = ByQueue::new();
        for queue in log[committed as usize..high as usize].iter().flatten() {
            let of = sum.entry(queue.to_string()).or_default();
            if *queue == 2 {
                of.retrying += 1;
            } else {
                of.scheduled += 1;
            }
        }
        sum
    }

    proptest! {
        #[test]
        fn what_is_counted_is_what_is_there_and_is_read_once(
            log in partition(),
            looks in prop::collection::vec((0.0..1.0_f64, 0.0..1.0_f64, prop::option::weighted(0.2, 0..600_usize)), 1..12),
        ) {
            let mut counted = Counted::default();
            let (mut committed, mut high, mut seen, mut times) = (0, 0, 0, 0);
            for (goes, comes, stops) in looks {
                high += ((log.len() as i64 - high) as f64 * comes) as i64;
                committed += ((high - committed) as f64 * goes) as i64;
                seen += look(&mut counted, &log, committed, high, stops.unwrap_or(usize::MAX));
                times += 1;
                if stops.is_none() {
                    let mut sum = sum([&counted].into_iter());
                    sum.retain(|_, later| *later != Later::default());
                    prop_assert_eq!(sum, naive(&log, committed, high));
                }
                let ordered = counted.chunks.iter().zip(counted.chunks.iter().skip(1)).all(|(a, b)| a.to <= b.from);
                prop_assert!(ordered, "{:?}", counted.chunks);
            }
            prop_assert!(seen <= log.len() + times * CHUNK, "{seen} were read of {}", log.len());
        }
    }

    #[test]
    fn a_topic_that_was_made_anew_is_counted_anew() {
        let mut counted = Counted::default();
        let log = vec![Some(0); 1_000];
        assert_eq!(look(&mut counted, &log, 0, 1_000, usize::MAX), 1_000);
        assert_eq!(look(&mut counted, &log, 0, 10, usize::MAX), 10);
        assert_eq!(sum([&counted].into_iter())["0"].scheduled, 10);
    }
}
