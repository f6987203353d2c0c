//! The JSON that the API answers with, where it is not defined beside what it shows. Names and types are a contract
//! (INTERFACE 5 and 6); a figure that a broker cannot know is `null`.

use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use crate::broker;
use crate::worker::handle::QueueState;

/// `/api/v1/status`: what the broker holds, and this process' part.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Status {
    /// The broker's address, without passwords.
    pub(super) broker: String,
    /// What the broker holds.
    pub(super) queues: Vec<QueueStatus>,
    /// This process.
    pub(super) worker: Worker,
}

/// A queue at the broker.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QueueStatus {
    /// Its name.
    name: String,
    /// Waiting and due.
    ready: Option<u64>,
    /// Leased now.
    running: Option<u64>,
    /// Waiting for their next attempt.
    retrying: Option<u64>,
    /// Enqueued for later.
    scheduled: Option<u64>,
    /// Dead letters.
    dead: Option<u64>,
    /// Of the oldest ready one, in seconds; 0 where none is.
    oldest_age_s: Option<f64>,
    /// Of the oldest dead letter, in seconds; 0 where none is.
    dead_oldest_age_s: Option<f64>,
    /// Attached to it.
    workers: Option<u64>,
    /// Of all workers.
    slots: Option<u64>,
    /// Always `null` for now.
    paused: Option<String>,
}

impl From<broker::QueueStatus> for QueueStatus {
    fn from(status: broker::QueueStatus) -> Self {
        let seconds = |age: Option<Duration>| age.map(|age| age.as_millis() as f64 / 1e3);
        Self {
            name: status.name,
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

/// This process.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Worker {
    /// Whether it takes nothing new and will leave.
    pub(super) draining: bool,
    /// The queues that it works.
    pub(super) queues: Vec<WorkerQueue>,
}

/// A queue of this process.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WorkerQueue {
    /// Its name.
    name: String,
    /// Jobs that may run at once here.
    slots: usize,
    /// Jobs running here.
    in_flight: usize,
    /// Bytes of payload in hand.
    bytes_in_flight: usize,
    /// Finished and not yet confirmed.
    unconfirmed: usize,
    /// Why nothing is taken from the broker, in the words of the metric `intake_paused`; empty while it is.
    paused: Vec<&'static str>,
    /// Whether the broker has answered since the last reconnect.
    consuming: bool,
    /// What is wrong, if something is.
    trouble: Option<String>,
    /// When a job last succeeded here, RFC 3339.
    last_success: Option<String>,
}

impl From<QueueState> for WorkerQueue {
    fn from(state: QueueState) -> Self {
        Self {
            name: state.name.to_string(),
            slots: state.slots,
            in_flight: state.in_flight,
            bytes_in_flight: state.bytes_in_flight,
            unconfirmed: state.unconfirmed,
            paused: state.paused.into_iter().map(|why| why.as_str()).collect(),
            consuming: state.consuming,
            trouble: state.trouble,
            last_success: state.last_success.map(|at| at.to_rfc3339()),
        }
    }
}

/// An event that was stored.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Published {
    /// The event's id.
    pub(super) id: String,
    /// The topic.
    pub(super) topic: String,
    /// How many queues hear it.
    pub(super) queues: Option<u32>,
}

/// A job that was stored.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Enqueued {
    /// The event's id.
    pub(super) id: String,
    /// The queue.
    pub(super) queue: String,
    /// RFC 3339; `null`: at once.
    pub(super) not_before: Option<String>,
}

/// A drain that has begun.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Draining {
    /// `draining`
    pub(super) status: &'static str,
}

/// A page of dead letters.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Letters {
    /// The newest first.
    pub(super) letters: Vec<broker::letter::Row>,
    /// Give it as `cursor` for the next page; `null` on the last one.
    pub(super) next: Option<String>,
}

/// Dead letters that failed alike.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Groups {
    /// The largest first.
    pub(super) groups: Vec<broker::selector::Group>,
}

/// What an import did.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(super) struct Imported {
    /// Lines read.
    pub(super) selected: u64,
    /// Letters stored.
    pub(super) done: u64,
    /// Letters that could not be.
    pub(super) failed: u64,
    /// Whether nothing was to be done.
    pub(super) dry_run: bool,
}
