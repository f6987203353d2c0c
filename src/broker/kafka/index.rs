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
        let mut known = BTreeSet::new();
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
            // One that is gone keeps its double from coming to light.
            let identity = (letter.record.origin.clone(), letter.record.replays);
            if !imported && identity.0.is_some() && !known.insert(identity) {
                if !gone {
                    index.doubles.push(at);
                }
                return;
            }
            if !gone {
                found.insert(letter.id.clone(), Entry { at, id: letter.id, last: letter.failure.last, size });
            }
        })?;
        index.entries = found.into_values().collect();
        index.starts = bounds.into_iter().map(|(number, low, _)| (number, low)).collect();
        Ok(index)
    }
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
