//! What Kafka cannot say by deleting: which dead letters are gone, and who replays. A compacted topic, `N.marks`.
//!
//! A letter that was replayed or purged has a mark under `gone:QUEUE:PARTITION:OFFSET`. The mark may go when the
//! letter's record is below the start of the log, never before. The second record of one failure is marked so too, as a
//! double: that one is gone says nothing of the letter. A right to replay is a claim under
//! `claim:QUEUE:OWNER`; of several, the first in the log holds, for as long as it is renewed. A worker that is there
//! says so under `worker:NAME`. That a queue has committed offsets of a topic, and how many partitions that had, stands
//! under `begun:QUEUE:TOPIC`: where those are gone they have expired.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::super::Error;
use super::config::Settings;
use super::names;
use super::scan::scan;
use crate::message::{Message, Namespace, QueueName};
use crate::time::Timestamp;

/// What a mark says of a second record; any other one says when its letter went.
const DOUBLE: &[u8] = b"double";

/// A right to replay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Whose it is.
    pub owner: String,
    /// Where in the log it was written first.
    pub order: i64,
    /// When it ends unless it is renewed.
    pub until: Timestamp,
}

/// All marks of a namespace.
#[derive(Debug, Default)]
pub struct Marks {
    /// Letters that are gone: partition and offset, by queue.
    pub gone: BTreeMap<String, BTreeSet<(i32, i64)>>,
    /// Those of them that are gone because they were second records.
    doubles: BTreeMap<String, BTreeSet<(i32, i64)>>,
    /// Partitions of the topics that queues have begun to read, by queue and topic.
    pub begun: BTreeMap<(String, String), usize>,
    /// Workers: until when, and the slots of each queue.
    workers: BTreeMap<String, (Timestamp, BTreeMap<String, u64>)>,
    /// Rights to replay, by queue and owner.
    claims: BTreeMap<(String, String), Claim>,
}

impl Marks {
    /// Reads them. Blocks.
    pub fn read(settings: &Settings, namespace: &Namespace) -> Result<Self, Error> {
        let mut marks = Self::default();
        let topic = names::marks(namespace);
        let read = scan(settings, &format!("{namespace}._reader"), &topic, |_, arrived| {
            let key = arrived.message.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            let value = arrived.message.body.as_deref();
            marks.take(key.unwrap_or_default(), value, arrived.offset);
        });
        match read {
            // Nothing was ever marked.
            Err(Error::NotFound(_)) => Ok(marks),
            Err(error) => Err(error),
            Ok(_) => Ok(marks),
        }
    }

    fn take(&mut self, key: &str, value: Option<&[u8]>, offset: i64) {
        let mut parts = key.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("gone"), Some(queue), Some(partition), Some(at)) => {
                let (Ok(partition), Ok(at)) = (partition.parse(), at.parse()) else { return };
                let gone = self.gone.entry(queue.to_owned()).or_default();
                if value.is_some() {
                    gone.insert((partition, at))
                } else {
                    gone.remove(&(partition, at))
                };
                let doubles = self.doubles.entry(queue.to_owned()).or_default();
                if value == Some(DOUBLE) {
                    doubles.insert((partition, at))
                } else {
                    doubles.remove(&(partition, at))
                };
            }
            (Some("begun"), Some(queue), Some(topic), None) => {
                let place = (queue.to_owned(), topic.to_owned());
                let count = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
                match count {
                    Some(count) => self.begun.insert(place, count),
                    None => self.begun.remove(&place),
                };
            }
            (Some("worker"), Some(name), None, None) => {
                let value: serde_json::Value = serde_json::from_slice(value.unwrap_or_default()).unwrap_or_default();
                let until = Timestamp::from_millis(value["until"].as_i64().unwrap_or(0));
                let slots = value["slots"].as_object().into_iter().flatten();
                let slots = slots.map(|(queue, slots)| (queue.clone(), slots.as_u64().unwrap_or(0))).collect();
                self.workers.insert(name.to_owned(), (until, slots));
            }
            (Some("claim"), Some(queue), Some(owner), None) => {
                let place = (queue.to_owned(), owner.to_owned());
                let Some(value) = value else {
                    self.claims.remove(&place);
                    return;
                };
                let value: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
                let order = value["order"].as_i64().unwrap_or(offset);
                let until = Timestamp::from_millis(value["until"].as_i64().unwrap_or(0));
                self.claims.insert(place, Claim { owner: owner.to_owned(), order, until });
            }
            _ => {}
        }
    }

    /// Whether a letter is gone.
    pub fn is_gone(&self, queue: &QueueName, at: (i32, i64)) -> bool {
        self.gone.get(queue.as_str()).is_some_and(|gone| gone.contains(&at))
    }

    /// Whether a letter is gone by somebody's wish, and not as a double.
    pub fn is_removed(&self, queue: &QueueName, at: (i32, i64)) -> bool {
        let is_double = self.doubles.get(queue.as_str()).is_some_and(|doubles| doubles.contains(&at));
        self.is_gone(queue, at) && !is_double
    }

    /// Workers of a queue that are there, and their slots.
    pub fn workers(&self, queue: &QueueName, now: Timestamp) -> (u64, u64) {
        let there = self.workers.values().filter(|(until, _)| *until > now);
        let of_queue = there.filter_map(|(_, slots)| slots.get(queue.as_str()));
        of_queue.fold((0, 0), |(workers, all), slots| (workers + 1, all + slots))
    }

    /// Who may replay from a queue.
    pub fn holder(&self, queue: &QueueName, now: Timestamp) -> Option<&Claim> {
        let of_queue = self.claims.iter().filter(|((of, _), claim)| of == queue.as_str() && claim.until > now);
        of_queue.map(|(_, claim)| claim).min_by_key(|claim| claim.order)
    }
}

/// The mark of a letter that is gone; `None` takes the mark away.
pub fn gone(queue: &QueueName, at: (i32, i64), when: Option<Timestamp>) -> Message {
    Message {
        key: Some(Bytes::from(format!("gone:{queue}:{}:{}", at.0, at.1))),
        body: when.map(|when| Bytes::from(when.to_rfc3339())),
        ..Message::default()
    }
}

/// The mark of the second record of one failure.
pub fn double(queue: &QueueName, at: (i32, i64)) -> Message {
    let body = Some(Bytes::from_static(DOUBLE));
    Message { body, ..gone(queue, at, None) }
}

/// That a queue has begun to read a topic of so many partitions; `None` takes it away.
pub fn begun(queue: &str, topic: &str, partitions: Option<usize>) -> Message {
    Message {
        key: Some(Bytes::from(format!("begun:{queue}:{topic}"))),
        body: partitions.map(|count| Bytes::from(count.to_string())),
        ..Message::default()
    }
}

/// A claim, or its end.
pub fn claim(queue: &QueueName, owner: &str, order: Option<i64>, until: Option<Timestamp>) -> Message {
    let body = until.map(|until| {
        let mut value = serde_json::json!({ "until": until.as_millis() });
        if let Some(order) = order {
            value["order"] = order.into();
        }
        Bytes::from(value.to_string())
    });
    Message { key: Some(Bytes::from(format!("claim:{queue}:{owner}"))), body, ..Message::default() }
}

/// A worker is there until then, with so many slots for each queue; `None`: it has left.
pub fn worker(name: &str, until: Option<Timestamp>, queues: &[(QueueName, usize)]) -> Message {
    let body = until.map(|until| {
        let slots: serde_json::Map<_, _> =
            queues.iter().map(|(queue, slots)| (queue.to_string(), (*slots).into())).collect();
        Bytes::from(serde_json::json!({ "until": until.as_millis(), "slots": slots }).to_string())
    });
    let name = name.replace(':', "_");
    Message { key: Some(Bytes::from(format!("worker:{name}"))), body, ..Message::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(marks: &mut Marks, offset: i64, message: &Message) {
        let key = String::from_utf8(message.key.as_ref().expect("a key").to_vec()).expect("text");
        marks.take(&key, message.body.as_deref(), offset);
    }

    #[test]
    fn the_first_claim_in_the_log_holds_until_it_ends() {
        let queue = QueueName::new("q").expect("valid");
        let at = |seconds: i64| Timestamp::from_millis(seconds * 1_000);
        let mut marks = Marks::default();
        apply(&mut marks, 5, &claim(&queue, "a", None, Some(at(10))));
        apply(&mut marks, 6, &claim(&queue, "b", None, Some(at(99))));
        assert_eq!(marks.holder(&queue, at(1)).map(|claim| claim.owner.as_str()), Some("a"));
        apply(&mut marks, 7, &claim(&queue, "a", Some(5), Some(at(20))));
        assert_eq!(marks.holder(&queue, at(15)).map(|claim| claim.owner.as_str()), Some("a"), "renewed");
        assert_eq!(marks.holder(&queue, at(21)).map(|claim| claim.owner.as_str()), Some("b"), "ended");
        apply(&mut marks, 8, &claim(&queue, "b", None, None));
        assert_eq!(marks.holder(&queue, at(21)), None);
    }

    #[test]
    fn a_letter_is_gone_until_its_mark_is_taken_away() {
        let queue = QueueName::new("q").expect("valid");
        let mut marks = Marks::default();
        apply(&mut marks, 0, &gone(&queue, (2, 7), Some(Timestamp::from_millis(1))));
        assert!(marks.is_gone(&queue, (2, 7)) && !marks.is_gone(&queue, (2, 8)));
        assert!(marks.is_removed(&queue, (2, 7)));
        apply(&mut marks, 1, &gone(&queue, (2, 7), None));
        assert!(!marks.is_gone(&queue, (2, 7)));
        apply(&mut marks, 2, &double(&queue, (2, 7)));
        assert!(marks.is_gone(&queue, (2, 7)) && !marks.is_removed(&queue, (2, 7)));
        apply(&mut marks, 3, &gone(&queue, (2, 7), Some(Timestamp::from_millis(1))));
        assert!(marks.is_removed(&queue, (2, 7)));
    }
}
