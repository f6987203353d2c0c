//! What our own records say beside the original: attempt, due time, job, failure.
//!
//! A retry, an enqueued job, a dead letter and a replay are records of ours. Brokers that have columns keep
//! these fields there; brokers that have only headers write them with [`write`] and read them with [`read`].

use std::sync::Arc;

use super::{Attempt, Failure, JobName};
use crate::time::Timestamp;

/// The fields of a record of ours. A message fresh from a topic has none (see [`Record::fresh`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The job it names, if it names one.
    pub job: Option<JobName>,
    /// The attempt that runs next.
    pub attempt: Attempt,
    /// Not to be started before this.
    pub not_before: Option<Timestamp>,
    /// When the event was first handed out.
    pub first_seen: Option<Timestamp>,
    /// Since when no worker knew its job.
    pub unroutable_since: Option<Timestamp>,
    /// The `origin` attribute of the original, where this record replaces one.
    pub origin: Option<String>,
    /// The id of the event, where the original had none of its own (a plain message).
    pub event_id: Option<String>,
    /// The original's `source`, likewise.
    pub event_source: Option<String>,
    /// The topic of the original.
    pub topic: Option<Arc<str>>,
    /// The last attempt's failure.
    pub failure: Option<Failure>,
    /// How often the event was replayed from the dead letters of this queue.
    pub replays: u32,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            job: None,
            attempt: Attempt::FIRST,
            not_before: None,
            first_seen: None,
            unroutable_since: None,
            origin: None,
            event_id: None,
            event_source: None,
            topic: None,
            failure: None,
            replays: 0,
        }
    }
}
