//! The JSON that others rely on, the same from the command line and from the admin port. Names, order and types are
//! a contract (INTERFACE 5); a figure that a broker cannot know is `null`.
//!
//! Those of dead letters are in [`letter`](super::letter) and [`selector`](super::selector), that of a replay in
//! [`redrive`](super::redrive).

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

/// A queue at the broker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
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

impl From<&super::QueueStatus> for QueueStatus {
    fn from(status: &super::QueueStatus) -> Self {
        let seconds = |age: Option<Duration>| age.map(|age| age.as_millis() as f64 / 1e3);
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

/// An event that was stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Published {
    // Of a bare one that no queue hears there is none: it would get it from where it lies. The admin port takes none.
    /// The event's id.
    #[schema(value_type = String, required)]
    pub id: Option<String>,
    /// The topic.
    pub topic: String,
    /// How many queues hear it.
    pub queues: Option<u32>,
}

/// A job that was stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Enqueued {
    /// The event's id.
    pub id: String,
    /// The queue.
    pub queue: String,
    /// RFC 3339; `null`: at once.
    pub not_before: Option<String>,
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
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
            json(&queue),
            r#"{"name":"invoice","ready":0,"running":0,"retrying":0,"scheduled":0,"dead":2,"oldest_age_s":0.0,"dead_oldest_age_s":0.0,"workers":3,"slots":48,"paused":null}"#
        );
        assert_eq!(
            json(&Published { id: Some("..".to_owned()), topic: "..".to_owned(), queues: Some(2) }),
            r#"{"id":"..","topic":"..","queues":2}"#
        );
        assert_eq!(
            json(&Enqueued { id: "..".to_owned(), queue: "..".to_owned(), not_before: None }),
            r#"{"id":"..","queue":"..","not_before":null}"#
        );
        assert_eq!(
            json(&super::super::redrive::Progress { selected: 12, done: 12, failed: 0, dry_run: false }),
            r#"{"selected":12,"done":12,"failed":0,"dry_run":false}"#
        );
        assert_eq!(
            json(&super::super::Finding {
                severity: super::super::Severity::Warn,
                subject: "..".to_owned(),
                finding: "..".to_owned(),
                fix: "..".to_owned()
            }),
            r#"{"severity":"warn","subject":"..","finding":"..","fix":".."}"#
        );
    }

    #[test]
    fn what_cannot_be_known_is_null() {
        let status = QueueStatus::from(&super::super::QueueStatus { name: "q".to_owned(), ..Default::default() });
        assert_eq!(
            json(&status),
            r#"{"name":"q","ready":null,"running":null,"retrying":null,"scheduled":null,"dead":null,"oldest_age_s":null,"dead_oldest_age_s":null,"workers":null,"slots":null,"paused":null}"#
        );
    }
}
