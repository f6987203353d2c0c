//! Where the dead letters of a queue lie: of each, what a listing sorts and counts by, and not its bytes.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{Error, Letter};
use super::config::Settings;
use super::dead;
use super::marks::Marks;
use super::names;
use super::scan::{scan, scan_from};
use crate::message::{Namespace, QueueName};
use crate::time::Timestamp;

/// A letter's place, and what it is listed by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Partition and offset.
    pub at: (i32, i64),
    /// Its id.
    pub id: String,
    /// When it failed last.
    pub last: Timestamp,
    /// Its size in bytes.
    pub size: usize,
}

/// The letters of one queue that are there.
#[derive(Debug, Default)]
pub struct Index {
    /// Each id once, in the order of ids.
    pub entries: Vec<Entry>,
    /// Second records of one failure, which a kill may leave where transactions are denied: they are no letters.
    pub doubles: Vec<(i32, i64)>,
    /// What may be removed from the log: everything before it is gone.
    pub ends: BTreeMap<i32, i64>,
    /// Where the log of each partition begins.
    pub starts: BTreeMap<i32, i64>,
}

impl Index {
    /// Reads the queue's topic through. Blocks.
    pub fn read(settings: &Settings, namespace: &Namespace, queue: &QueueName, marks: &Marks) -> Result<Self, Error> {
        let topic = names::dead(namespace, queue);
        let mut found: BTreeMap<String, Entry> = BTreeMap::new();
        let mut records: BTreeMap<_, Vec<Record>> = BTreeMap::new();
        let mut index = Self::default();
        let mut held: BTreeSet<i32> = BTreeSet::new();
        let bounds = scan(settings, &format!("{namespace}._reader"), &topic, |partition, arrived| {
            let at = (partition, arrived.offset);
            let gone = marks.is_gone(queue, at);
            if gone && !held.contains(&partition) {
                index.ends.insert(partition, at.1 + 1);
            } else if !gone {
                held.insert(partition);
            }
            let size = arrived.message.size();
            let Some((letter, imported)) = dead::letter(&topic, queue, partition, arrived) else {
                if !gone {
                    tracing::warn!(
                        topic,
                        partition,
                        offset = at.1,
                        "what lies among the dead letters is none of windlass"
                    );
                }
                return;
            };
            let entry = Entry { at, id: letter.id, last: letter.failure.last, size };
            match letter.record.origin.filter(|_| !imported) {
                Some(origin) => {
                    let record = Record { entry, gone, removed: marks.is_removed(queue, at) };
                    records.entry((origin, letter.record.replays)).or_default().push(record);
                }
                None if !gone => {
                    found.insert(entry.id.clone(), entry);
                }
                None => {}
            }
        })?;
        for records in records.into_values() {
            let (letter, doubles) = choose(records);
            index.doubles.extend(doubles);
            if let Some(letter) = letter {
                found.insert(letter.id.clone(), letter);
            }
        }
        index.entries = found.into_values().collect();
        index.starts = bounds.into_iter().map(|(number, low, _)| (number, low)).collect();
        Ok(index)
    }
}

/// One record of a failure.
struct Record {
    entry: Entry,
    gone: bool,
    /// Gone by somebody's wish, and not as a double.
    removed: bool,
}

/// Of the records of one failure, which is its letter, and which are still to be marked as doubles. The letter is the
/// lowest in the order of partitions and offsets, in whatever order they were read: everybody has to choose the same
/// one. Where somebody removed one of them, the failure is gone, and no double of it may come to light.
fn choose(mut records: Vec<Record>) -> (Option<Entry>, Vec<(i32, i64)>) {
    records.sort_by_key(|record| record.entry.at);
    let removed = records.iter().any(|record| record.removed);
    let letter = records.iter().position(|record| !record.gone).filter(|_| !removed);
    let mut chosen = None;
    let mut doubles = Vec::new();
    for (index, record) in records.into_iter().enumerate() {
        if Some(index) == letter {
            chosen = Some(record.entry);
        } else if !record.gone {
            doubles.push(record.entry.at);
        }
    }
    (chosen, doubles)
}

/// Reads letters whole, given where they lie in their queue's topic. What went meanwhile is absent. Blocks.
pub fn fetch(
    settings: &Settings,
    namespace: &Namespace,
    queue: &QueueName,
    places: &BTreeSet<(i32, i64)>,
) -> Result<BTreeMap<(i32, i64), Letter>, Error> {
    let topic = names::dead(namespace, queue);
    let mut from: BTreeMap<i32, i64> = BTreeMap::new();
    let mut last: BTreeMap<i32, i64> = BTreeMap::new();
    for (partition, offset) in places {
        from.entry(*partition).or_insert(*offset);
        last.insert(*partition, *offset);
    }
    let mut letters = BTreeMap::new();
    let whole = last.clone();
    scan_from(settings, &format!("{namespace}._reader"), &topic, &from, |partition, arrived| {
        let at = (partition, arrived.offset);
        if places.contains(&at)
            && let Some((letter, _)) = dead::letter(&topic, queue, partition, arrived)
        {
            letters.insert(at, letter);
        }
        whole.get(&partition).is_some_and(|last| at.1 < *last)
    })?;
    Ok(letters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(at: (i32, i64), gone: bool, removed: bool) -> Record {
        let last = Timestamp::from_millis(0);
        Record { entry: Entry { at, id: "id".to_owned(), last, size: 1 }, gone, removed }
    }

    #[test]
    fn a_double_that_is_gone_never_takes_its_letter_with_it_and_a_letter_that_is_gone_takes_its_doubles() {
        let letter = |records: Vec<Record>| {
            let (letter, doubles) = choose(records);
            (letter.map(|letter| letter.at), doubles)
        };
        let (low, high) = ((0, 7), (2, 3));
        for turned in [false, true] {
            let both = |mut records: Vec<Record>| {
                if turned {
                    records.reverse();
                }
                letter(records)
            };
            assert_eq!(both(vec![record(low, false, false), record(high, false, false)]), (Some(low), vec![high]));
            assert_eq!(both(vec![record(low, false, false), record(high, true, false)]), (Some(low), vec![]));
            assert_eq!(both(vec![record(low, true, false), record(high, false, false)]), (Some(high), vec![]));
            // The letter's own record is in the log no more, and neither is its mark.
            assert_eq!(both(vec![record(low, true, false), record(high, true, false)]), (None, vec![]));
            assert_eq!(both(vec![record(low, true, true), record(high, false, false)]), (None, vec![high]));
            assert_eq!(both(vec![record(low, false, false), record(high, true, true)]), (None, vec![low]));
        }
        assert_eq!(letter(vec![record(low, true, true)]), (None, vec![]));
    }
}
