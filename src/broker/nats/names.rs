//! Every name of ours at the server: streams, durables, subjects, message ids.
//!
//! | subject | what | in |
//! |---|---|---|
//! | `N.work.Q.run.KEY` | a record that is due, or is put off by its receiver | `N_work` |
//! | `N.work.Q.wait.KEY` | a retry's schedule (2.12): published to `run` when due | `N_work` |
//! | `N.work.Q.held.KEY` | of a job that keeps its key waiting: attempt and due time of its retry | `N_work` |
//! | `N.work.Q.later.KEY` | an enqueued job's, likewise | `N_work` |
//! | `N.state.Q.mark.KEY`, `N.state.Q.replay`, `N.state.Q.owner`, `N.state._worker.W` | marks, the right to replay, who reads in key order, presence | `N_work` |
//! | `N.dead.Q.ID` | a dead letter | `N_dead` |
//! | `N.dead.Q._part.ID`, `N.work.Q.part.KEY` | the end of a body that fits no single message | |
//!
//! KEY names a job of a queue: the place and time of its origin, and how often it was replayed.

use async_nats::HeaderMap;

use super::wire::{self, header};
use crate::message::record::Record;
use crate::message::{Namespace, QueueName};

/// The names of a namespace.
#[derive(Clone, Debug)]
pub struct Names {
    /// The namespace.
    pub namespace: Namespace,
}

impl Names {
    /// `N_events`
    pub fn events(&self) -> String {
        format!("{}_events", self.namespace)
    }

    /// `N_work`
    pub fn work(&self) -> String {
        format!("{}_work", self.namespace)
    }

    /// `N_dead`
    pub fn dead(&self) -> String {
        format!("{}_dead", self.namespace)
    }

    /// `N_Q`
    pub fn durable(&self, queue: &QueueName) -> String {
        format!("{}_{queue}", self.namespace)
    }

    /// The queue that a durable of ours belongs to.
    pub fn queue_of(&self, durable: &str) -> Option<QueueName> {
        let name = durable.strip_prefix(self.namespace.as_str())?.strip_prefix('_')?;
        QueueName::new(name).ok()
    }

    /// Where a queue's records lie: `kind` is `run`, `wait`, `held`, `later` or `part`.
    pub fn record(&self, queue: &QueueName, kind: &str, key: &str) -> String {
        format!("{}.work.{queue}.{kind}.{key}", self.namespace)
    }

    /// Where a queue's marks and claims lie.
    pub fn state(&self, queue: &QueueName, what: &str) -> String {
        format!("{}.state.{queue}.{what}", self.namespace)
    }

    /// A worker's presence record.
    pub fn worker(&self, worker: &str) -> String {
        format!("{}.state._worker.{}", self.namespace, token(worker))
    }

    /// A dead letter.
    pub fn letter(&self, queue: &QueueName, id: &str) -> String {
        format!("{}.dead.{queue}.{id}", self.namespace)
    }

    /// The end of a dead letter's body.
    pub fn letter_part(&self, queue: &QueueName, id: &str) -> String {
        format!("{}.dead.{queue}._part.{id}", self.namespace)
    }

    /// The subjects of `N_work`.
    pub fn work_subjects(&self) -> [String; 2] {
        [format!("{}.work.>", self.namespace), format!("{}.state.>", self.namespace)]
    }

    /// The subjects of `N_dead`.
    pub fn dead_subjects(&self) -> [String; 1] {
        [format!("{}.dead.>", self.namespace)]
    }
}

/// Names a job: its origin (`nats:STREAM:SEQ:MS`) and how often it was replayed. `[A-Za-z0-9_-]+`.
pub fn key(origin: &str, replays: u32) -> String {
    let origin = origin.strip_prefix("nats:").unwrap_or(origin);
    format!("{}-{replays}", token(&origin.replace(':', "-")))
}

/// The key of a job that was enqueued under this event id.
pub fn enqueued(id: &str) -> String {
    let plain = id.len() <= 100 && !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if plain {
        return format!("e-{id}");
    }
    format!("h-{:032x}", hash(id.bytes()))
}

/// The message id of an event on its way to a topic. An event is told from others by its source and its id together
/// (CloudEvents 1.0, `id`), and a stream may hold many topics: of two that differ in any of the three both are stored.
pub fn published(topic: &str, source: &[u8], id: &str) -> String {
    // Lengths first, so that no two triples are written alike.
    let lengths = format!("{}:{}:", topic.len(), source.len());
    let all = lengths.bytes().chain(topic.bytes()).chain(source.iter().copied()).chain(id.bytes());
    format!("p-{:032x}", hash(all))
}

/// FNV-1a, 128 bits: the same on every machine and in every version.
fn hash(bytes: impl Iterator<Item = u8>) -> u128 {
    bytes.fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// What may stand in a subject and in a dead letter's id; everything else as `_` and two hex digits.
pub fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("_{byte:02x}"));
        }
    }
    token
}

/// The key of the job that a record, or a message fresh from its origin, is about.
pub fn key_of(record: Option<&Record>, origin: &str) -> String {
    let kept = record.and_then(|record| record.origin.as_deref());
    key(kept.unwrap_or(origin), record.map_or(0, |record| record.replays))
}

/// How many records came before this one; 0 of a message fresh from its topic.
pub fn hop(headers: Option<&HeaderMap>) -> u64 {
    wire::text(headers, header::HOP).and_then(|hop| hop.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn events_are_told_apart_by_topic_source_and_id() {
        let one = published("a", b"/s", "1");
        assert_eq!(one, published("a", b"/s", "1"), "our own retries are the same");
        let others = [("b", "/s", "1"), ("a", "/t", "1"), ("a", "/s", "2"), ("a/", "s", "1"), ("a", "/s1", "")];
        for (topic, source, id) in others {
            assert_ne!(one, published(topic, source.as_bytes(), id), "{topic} {source} {id}");
        }
        assert!(published("a", b"/s", "x\r\ny").bytes().all(|byte| byte.is_ascii_graphic()));
    }

    proptest! {
        #[test]
        fn tokens_are_plain_and_tell_apart(a in ".{0,12}", b in ".{0,12}") {
            let (x, y) = (token(&a), token(&b));
            prop_assert!(x.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'-'));
            prop_assert_eq!(a == b, x == y);
        }

        #[test]
        fn keys_of_enqueued_jobs_tell_apart(a in ".{0,150}", b in ".{0,150}") {
            prop_assert_eq!(a == b, enqueued(&a) == enqueued(&b));
        }
    }

    #[test]
    fn a_key_names_origin_and_replays() {
        assert_eq!(key("nats:ORDERS:17:1763719200000", 2), "ORDERS-17-1763719200000-2");
    }

    #[test]
    fn durables_name_their_queues() {
        let names = Names { namespace: Namespace::new("a-b").expect("valid") };
        let queue = QueueName::new("c_d").expect("valid");
        assert_eq!(names.queue_of(&names.durable(&queue)), Some(queue));
        assert_eq!(names.queue_of("other_c"), None);
    }
}
