//! The JSON that others rely on. Names and types are a contract; a figure that a broker cannot know is `null`.
//!
//! Those of dead letters are in [`broker::letter`](crate::broker::letter) and
//! [`broker::selector`](crate::broker::selector), which the admin port shares.

use serde::Serialize;

use crate::broker;

/// `status`
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Status {
    /// The address without passwords.
    pub broker: String,
    /// In the order of their names.
    pub queues: Vec<QueueStatus>,
}

/// A queue of `status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct QueueStatus {
    /// Its name.
    pub name: String,
    /// Waiting and due.
    pub ready: Option<u64>,
    /// Leased now.
    pub running: Option<u64>,
    /// Waiting for their next attempt.
    pub retrying: Option<u64>,
    /// Enqueued for later.
    pub scheduled: Option<u64>,
    /// Dead letters.
    pub dead: Option<u64>,
    /// Of the oldest ready one, in seconds; 0 where none is.
    pub oldest_age_s: Option<f64>,
    /// Of the oldest dead letter, in seconds; 0 where none is.
    pub dead_oldest_age_s: Option<f64>,
    /// Attached to it.
    pub workers: Option<u64>,
    /// Of all workers.
    pub slots: Option<u64>,
    /// Always `null` for now.
    pub paused: Option<String>,
}

impl From<&broker::QueueStatus> for QueueStatus {
    fn from(status: &broker::QueueStatus) -> Self {
        let seconds = |age: Option<std::time::Duration>| age.map(|age| age.as_millis() as f64 / 1_000.0);
        Self {
            name: status.name.clone(),
            ready: status.ready,
            running: status.running,
            retrying: status.retrying,
            scheduled: status.scheduled,
            dead: status.dead,
            oldest_age_s: seconds(status.oldest_age),
            dead_oldest_age_s: seconds(status.dead_oldest_age),
            workers: status.workers,
            slots: status.slots,
            paused: None,
        }
    }
}

/// `publish`, a line an event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Published<'a> {
    /// The event's id; `null` of a bare one that no queue hears, which would get it from where it lies.
    pub id: Option<&'a str>,
    /// The topic.
    pub topic: &'a str,
    /// How many queues hear it.
    pub queues: Option<u32>,
}

/// `enqueue`, a line a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Enqueued<'a> {
    /// The event's id.
    pub id: &'a str,
    /// The queue.
    pub queue: &'a str,
    /// RFC 3339; `null`: at once.
    pub not_before: Option<String>,
}

/// `queues list`, a line a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KnownQueue {
    /// Its name.
    pub name: String,
    /// The topics it hears.
    pub topics: Vec<String>,
    /// Workers attached.
    pub workers: Option<u64>,
}

/// `queues forget`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Forgotten<'a> {
    /// Its name.
    pub queue: &'a str,
    /// Jobs that it held and that are gone with it; `null` in a dry run.
    pub jobs: Option<u64>,
    /// Whether nothing was to be done.
    pub dry_run: bool,
}

/// `dlq import`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Lines read.
    pub selected: u64,
    /// Letters stored.
    pub done: u64,
    /// Letters that could not be.
    pub failed: u64,
    /// Whether nothing was to be done.
    pub dry_run: bool,
}

/// `ready`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ready<'a> {
    /// What was asked.
    pub url: &'a str,
    /// Whether it answered 200.
    pub ready: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json<T: Serialize>(value: &T) -> String {
        serde_json::to_string(value).expect("JSON")
    }

    #[test]
    fn shapes_are_the_contract() {
        let queue = QueueStatus {
            name: "invoice".to_owned(),
            ready: Some(0),
            running: Some(0),
            retrying: Some(0),
            scheduled: Some(0),
            dead: Some(2),
            oldest_age_s: Some(0.0),
            dead_oldest_age_s: Some(0.0),
            workers: Some(3),
            slots: Some(48),
            paused: None,
        };
        assert_eq!(
            json(&Status { broker: "..".to_owned(), queues: vec![queue] }),
            r#"{"broker":"..","queues":[{"name":"invoice","ready":0,"running":0,"retrying":0,"scheduled":0,"dead":2,"oldest_age_s":0.0,"dead_oldest_age_s":0.0,"workers":3,"slots":48,"paused":null}]}"#
        );
        assert_eq!(
            json(&Published { id: Some(".."), topic: "..", queues: Some(2) }),
            r#"{"id":"..","topic":"..","queues":2}"#
        );
        assert_eq!(
            json(&Enqueued { id: "..", queue: "..", not_before: None }),
            r#"{"id":"..","queue":"..","not_before":null}"#
        );
        assert_eq!(
            json(&broker::redrive::Progress { selected: 12, done: 12, failed: 0, dry_run: false }),
            r#"{"selected":12,"done":12,"failed":0,"dry_run":false}"#
        );
        assert_eq!(json(&crate::app::Tally { done: 10, retried: 2, dead: 1 }), r#"{"done":10,"retried":2,"dead":1}"#);
        assert_eq!(
            json(&broker::Finding {
                severity: broker::Severity::Warn,
                subject: "..".to_owned(),
                finding: "..".to_owned(),
                fix: "..".to_owned()
            }),
            r#"{"severity":"warn","subject":"..","finding":"..","fix":".."}"#
        );
    }

    #[test]
    fn what_cannot_be_known_is_null() {
        let status = QueueStatus::from(&broker::QueueStatus { name: "q".to_owned(), ..Default::default() });
        assert_eq!(
            json(&status),
            r#"{"name":"q","ready":null,"running":null,"retrying":null,"scheduled":null,"dead":null,"oldest_age_s":null,"dead_oldest_age_s":null,"workers":null,"slots":null,"paused":null}"#
        );
    }
}
